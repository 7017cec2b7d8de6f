"""Trains a tiny NER model from CoNLL files, in a few minutes on one core: for offline use and tests, not for quality.

    python -m distill.pruning.recipe.ner OUT --train wikigold.conll.txt wnut17train.conll --test emerging.dev.conll

A two-layer BERT with its own cased WordPiece vocabulary, trained from scratch. Entity types are merged to one, ENT:
what the mask needs to know is where a name is, not what it names. A run that was cut off goes on from its last
checkpoint in OUT when it is started again with the same files and options.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from distill.training import Panel, RunFolder, Training, plot, write_whole

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("O", "B-ENT", "I-ENT")
Sentence = tuple[list[str], list[str]]


def read_conll(path: str | Path) -> list[Sentence]:
    """Reads a file with one "word tag" pair a line and an empty line after each sentence.

    Returns:
        For each sentence its words and their tags, which become O, B-ENT and I-ENT.
    """
    found: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for line in [*Path(path).read_text(encoding="utf-8").splitlines(), ""]:
        parts = line.split()
        if len(parts) >= 2 and parts[0] != "-DOCSTART-":
            inside = parts[-1] != "O"
            goes_on = parts[-1].startswith("I-") and bool(tags) and tags[-1] != "O"
            words.append(parts[0])
            tags.append(("I-ENT" if goes_on else "B-ENT") if inside else "O")
        elif words:
            found.append((words, tags))
            words, tags = [], []
    return found


def train_tokenizer(sentences: Sequence[Sentence], vocabulary: int = 4000) -> Any:
    """A cased WordPiece tokenizer of these sentences, as Transformers has it.

    Two calls may differ: where two pieces are equally frequent, the `tokenizers` package chooses at random.

    Args:
        sentences: what it is made of.
        vocabulary: the most tokens that it may have.
    """
    special = list(SPECIAL)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((" ".join(words) for words, _ in sentences), trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    return _transformers_tokenizer(tokenizer)


def _transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)


def _batch(tokenizer: Any, batch: Sequence[Sentence]) -> tuple[Any, torch.Tensor]:
    """Inputs and labels, int64 `(batch, length)`: a word's first token has its tag, all others -100 (ignored)."""
    inputs = tokenizer(
        [words for words, _ in batch], is_split_into_words=True, truncation=True, padding=True, return_tensors="pt"
    )
    labels = torch.full(inputs["input_ids"].shape, -100)
    for row, (_, tags) in enumerate(batch):
        previous = None
        for column, word in enumerate(inputs.word_ids(row)):
            if word is not None and word != previous:
                labels[row, column] = LABELS.index(tags[word])
            previous = word
    return inputs, labels


class NerTraining(Training):
    """The training of the tiny NER model: `epochs` times over the sentences, in a new order each time.

    Args:
        folder: where the run is kept.
        sentences: what to train on.
        epochs: how often each sentence is seen.
        hidden: width of the model.
        rate: the highest learning rate.
        seed: decides the first weights, the order of the sentences, and dropout.
    """

    unit = "sentences"
    BATCH = 32

    def __init__(
        self, folder: RunFolder, sentences: Sequence[Sentence], epochs: int, hidden: int, rate: float, seed: int
    ) -> None:
        from transformers import BertConfig, BertForTokenClassification

        super().__init__(folder, epochs * len(sentences), save_minutes=1.0)
        self.sentences = sentences
        vocabulary = folder.path / "tokenizer.json"
        if not vocabulary.exists():
            made = train_tokenizer(sentences).backend_tokenizer
            write_whole(vocabulary, lambda new: made.save(str(new)))
        self.tokenizer = _transformers_tokenizer(Tokenizer.from_file(str(vocabulary)))
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(self.tokenizer), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=256, num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
        )  # fmt: skip
        self.model = BertForTokenClassification(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01)
        steps = epochs * math.ceil(len(sentences) / self.BATCH)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=steps, pct_start=0.1)
        self.order = list(range(len(sentences)))
        self.rng = random.Random(seed)
        self.resume()

    def step(self) -> dict[str, float]:
        """One batch; its loss in nats a word."""
        begin = int(self.done) % len(self.sentences)
        if begin == 0:
            self.rng.shuffle(self.order)
        batch = [self.sentences[i] for i in self.order[begin : begin + self.BATCH]]
        inputs, labels = _batch(self.tokenizer, batch)
        loss = self.model(**inputs, labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.done += len(batch)
        self.steps += 1
        return {"loss": loss.item()}

    def state(self) -> dict[str, Any]:
        """Weights, optimizer, schedule, the order of the sentences, and both random generators."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "order": self.order, "rng": self.rng.getstate(),
            "dropout": torch.get_rng_state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.order = state["order"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["dropout"])


def train(
    sentences: Sequence[Sentence],
    *,
    epochs: int = 8,
    hidden: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
) -> tuple[Any, Any]:
    """Trains a model. With the same arguments and the same tokenizer, one thread gives the same model.

    Args:
        sentences: words and tags, as `read_conll` gives them.
        epochs: how often each sentence is seen.
        hidden: width of the model, a multiple of 4.
        rate: the highest learning rate.
        seed: decides all that is random.
        out: a folder that keeps checkpoints, a log and a curve (needs matplotlib); a run that was cut off goes on
            there. None keeps nothing.

    Returns:
        The model and its tokenizer.

    Raises:
        ValueError: `out` holds a run with other sentences or settings.
    """
    digest = hashlib.sha256(json.dumps(sentences).encode()).hexdigest()
    options = {"sentences": digest, "epochs": epochs, "hidden": hidden, "rate": rate, "seed": seed}
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as nowhere:
        folder = RunFolder(nowhere if out is None else out, options)
        try:
            run = NerTraining(folder, sentences, epochs, hidden, rate, seed)
            run.train()
            if out is not None:
                loss = Panel("training loss (nats)", ("loss",))
                plot(folder.path / "curves.png", folder.rows(), run.unit, [loss])
        finally:
            folder.close()
    return run.model.eval(), run.tokenizer


def entities(tags: Sequence[str]) -> set[tuple[int, int]]:
    """The entities that tags mark, as words `[start, end)`."""
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and tag != "I-ENT":
            found.add((start, i))
            start = None
        if tag == "B-ENT" or (tag == "I-ENT" and start is None):
            start = i
    return found


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, sentences: Sequence[Sentence]) -> dict[str, float]:
    """Measures a model: precision, recall and F1 of whole entities, and the share of their words that were found.

    Args:
        model: a token classifier with the labels `LABELS`.
        tokenizer: its tokenizer.
        sentences: words and true tags.
    """
    right = said = gold = covered = words = 0
    for begin in range(0, len(sentences), 64):
        batch = sentences[begin : begin + 64]
        inputs, labels = _batch(tokenizer, batch)
        best = model(**inputs).logits.argmax(-1)
        for row, (_, tags) in enumerate(batch):
            at = labels[row] != -100
            mine = [LABELS[i] for i in best[row][at].tolist()]
            truth = tags[: len(mine)]
            right += len(entities(mine) & entities(truth))
            said += len(entities(mine))
            gold += len(entities(truth))
            words += sum(t != "O" for t in truth)
            covered += sum(t != "O" and m != "O" for t, m in zip(truth, mine, strict=True))
    precision, recall = right / max(said, 1), right / max(gold, 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "entity_words_found": covered / max(words, 1),
        "entities": gold,
    }


def main() -> None:
    """Reads, trains, saves, and prints how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder for the model")
    parser.add_argument("--train", nargs="+", required=True, help="CoNLL files to train on")
    parser.add_argument("--test", nargs="+", required=True, help="CoNLL files to measure on")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    sentences = [s for path in args.train for s in read_conll(path)]
    try:
        model, tokenizer = train(sentences, epochs=args.epochs, out=args.out)
    except ValueError as error:
        parser.error(str(error))
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    for path in args.test:
        found = evaluate(model, tokenizer, read_conll(path))
        print(path, {name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
