"""Tiny models and tokenizers made on the spot: no download, no data from outside the repository."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from distill.pruning import Distill

torch.set_num_threads(1)

PROSE = """\
The committee met on Tuesday in Geneva and agreed that the old bridge should not be repaired before the winter.
Maria Lopez, who had drafted the report, said that the cost of $1,250.00 was far too low. "We cannot build anything
with that," she told the members. The engineers measured the river at 10:45 and again at noon, and found that the
water had risen by 12 cm. Nobody expected such a change in so short a time. Version v1.5.2 of the plan, which is
stored under the number AB12CD, describes three ways to cross the valley. The first way follows the railway and
needs a tunnel of 2.4 km. The second way is longer, but it never leaves the public land. The third way was proposed
by Acme Industries in 1998 and is described at https://example.org/plans?id=7&lang=en in more detail. If the council
agrees, the work will start in spring and end before the first snow falls. Several farmers asked whether their
fields would be flooded. The answer was that nothing is certain, except that the decision cannot wait for another
year. Letters may be sent to office@bridge.example, and the minutes are kept in /srv/minutes/2024 for everyone to
read.
"""
SENTENCES = [s.strip() for s in PROSE.replace("\n", " ").split(". ")]


def long_prose(words: int, seed: int = 0) -> str:
    """Shuffled sentences of `PROSE`, in paragraphs, about `words` words long."""
    generator = random.Random(seed)
    parts: list[str] = []
    count = 0
    while count < words:
        paragraph = ". ".join(generator.choice(SENTENCES).rstrip(".") for _ in range(6)) + "."
        parts.append(paragraph)
        count += len(paragraph.split())
    return "\n\n".join(parts)


def _train(model, trainer, normalizer, pre_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator([PROSE] * 3, trainer)
    return tokenizer


def wordpiece(folder: Path) -> None:
    """A cased WordPiece tokenizer with BERT's special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False),
        normalizers.BertNormalizer(lowercase=False, strip_accents=False),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    ).save_pretrained(folder)


def sentencepiece(folder: Path) -> None:
    """A Unigram tokenizer with XLM-RoBERTa's special tokens and metaspace."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _train(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token="<unk>", show_progress=False),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    ).save_pretrained(folder)


def byte_level(folder: Path) -> None:
    """A byte-level BPE tokenizer: no text is unknown to it."""
    tokenizer = _train(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> SimpleNamespace:
    """Folders of random tiny checkpoints: `bert`, `xlmr` (token classifiers), `cross` (a reranker), `llama`."""
    root = tmp_path_factory.mktemp("checkpoints")
    # llmlingua chooses the model family by the folder's name
    folders = {
        "bert": root / "bert-base-multilingual-cased",
        "xlmr": root / "xlm-roberta-large",
        "cross": root / "cross",
        "llama": root / "llama",
    }
    for name, make in (("bert", wordpiece), ("xlmr", sentencepiece), ("cross", wordpiece), ("llama", byte_level)):
        make(folders[name])
    torch.manual_seed(0)
    sizes = {name: len(AutoTokenizer.from_pretrained(folder)) for name, folder in folders.items()}
    wide = {"initializer_range": 0.6}  # random scores that differ
    BertForTokenClassification(
        BertConfig(vocab_size=sizes["bert"], max_position_embeddings=512, num_labels=2, **_SIZES, **wide)
    ).save_pretrained(folders["bert"])
    XLMRobertaForTokenClassification(
        XLMRobertaConfig(
            vocab_size=sizes["xlmr"], max_position_embeddings=514, num_labels=2, type_vocab_size=1, **_SIZES, **wide
        )
    ).save_pretrained(folders["xlmr"])
    BertForSequenceClassification(
        BertConfig(vocab_size=sizes["cross"], max_position_embeddings=128, num_labels=1, **_SIZES, **wide)
    ).save_pretrained(folders["cross"])
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["llama"],
            max_position_embeddings=1024,
            num_key_value_heads=1,
            bos_token_id=0,
            eos_token_id=0,
            **_SIZES,
            **wide,
        )
    ).save_pretrained(folders["llama"])
    return SimpleNamespace(**{name: str(folder) for name, folder in folders.items()})


@pytest.fixture(scope="session")
def default(checkpoints) -> Distill:
    """The default mode on a tiny model: self-information, all rules, names by capitals, counts by the model's own
    tokenizer."""
    return Distill(checkpoints.llama, ner="capitals", target_tokenizer=checkpoints.llama)


@pytest.fixture(scope="session")
def plain(checkpoints) -> Distill:
    """The same without masks: only scores and the budget decide."""
    return Distill(checkpoints.llama, ner=None, rules=False, target_tokenizer=checkpoints.llama)


NAMES = [
    "Maria Lopez",
    "Geneva",
    "Acme Industries",
    "Tom Reed",
    "Oslo",
    "Lake Union",
    "Ada Byron",
    "Porto",
    "Nordic Steel",
]
FRAMES = [
    "{} met the members of {}",
    "the report of {} was late",
    "we went from {} to {}",
    "{} said that {} is closed",
    "nobody asked {}",
    "in {} the river rose",
    "the council of {} agreed",
    "letters from {} were read",
]


@pytest.fixture(scope="session")
def ner_model(tmp_path_factory) -> str:
    """The folder of a tiny NER model, trained on made-up sentences in a few seconds: it knows the names of `NAMES`."""
    from distill.pruning.recipe.ner import train

    generator = random.Random(0)
    sentences = []
    for _ in range(320):
        words: list[str] = []
        tags: list[str] = []
        for part in generator.choice(FRAMES).split():
            name = generator.choice(NAMES).split() if part == "{}" else []
            words += name or [part]
            tags += ["B-ENT" if i == 0 else "I-ENT" for i in range(len(name))] or ["O"]
        sentences.append((words, tags))
    model, tokenizer = train(sentences, epochs=8, hidden=32, rate=5e-3)
    folder = str(tmp_path_factory.mktemp("ner"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prose() -> str:
    """A page with numbers, names, negations, a link, a quotation."""
    return PROSE


@pytest.fixture(scope="session", name="long_prose")
def long_prose_fixture():
    """`long_prose(words, seed)`: shuffled sentences of the page, in paragraphs."""
    return long_prose
