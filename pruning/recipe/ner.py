"""Trains a tiny NER model from CoNLL files, in a few minutes on one core: for offline use and tests, not for quality.

    python -m distill.pruning.recipe.ner OUT --train wikigold.conll.txt wnut17train.conll --test emerging.dev.conll

A two-layer BERT with its own cased WordPiece vocabulary, trained from scratch. Entity types are merged to one, ENT:
what the mask needs to know is where a name is, not what it names.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm

LABELS = ("O", "B-ENT", "I-ENT")
Sentence = tuple[list[str], list[str]]


def read_conll(path: str | Path) -> list[Sentence]:
    """Sentences as (words, tags) from a file of "word tag" lines; tags become O, B-ENT and I-ENT."""
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
    """A cased WordPiece tokenizer of these sentences, as Transformers has it."""
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((" ".join(words) for words, _ in sentences), trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)


def _batch(tokenizer: Any, batch: Sequence[Sentence]) -> tuple[Any, torch.Tensor]:
    """Inputs, and labels int64 [batch, length]: a word's first sub-token has its tag, all else is ignored (-100)."""
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


def train(
    sentences: Sequence[Sentence], *, epochs: int = 8, hidden: int = 128, rate: float = 1e-3, seed: int = 0
) -> tuple[Any, Any]:
    """A model and its tokenizer, trained on `sentences`. Deterministic for a seed on one thread."""
    from transformers import BertConfig, BertForTokenClassification

    tokenizer = train_tokenizer(sentences)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=256, num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
        )  # fmt: skip
        model = BertForTokenClassification(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        order, size = list(sentences), 32
        steps = epochs * ((len(order) + size - 1) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        generator = random.Random(seed)
        with tqdm(total=steps, desc="training", leave=False) as bar:
            for _ in range(epochs):
                generator.shuffle(order)
                for begin in range(0, len(order), size):
                    inputs, labels = _batch(tokenizer, order[begin : begin + size])
                    loss = model(**inputs, labels=labels).loss
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    return model.eval(), tokenizer


def entities(tags: Sequence[str]) -> set[tuple[int, int]]:
    """Entities of a tag sequence as word spans `[start, end)`."""
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
    """Exact-span precision, recall and F1 over `sentences`, and the share of gold entity words that were found."""
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
    model, tokenizer = train([s for path in args.train for s in read_conll(path)], epochs=args.epochs)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    for path in args.test:
        found = evaluate(model, tokenizer, read_conll(path))
        print(path, {name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
