"""The tokenizer: byte-level BPE in which every number up to three digits is one token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SIZE = 4096
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
#: words with the space before them, digits in threes, marks, line breaks; a space before a number stands alone
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*\n+|\s+(?!\S)|\s+"


def train(texts: Iterable[str], size: int = SIZE, numbers: int = 2000) -> Any:
    """Learns the merges; the three special tokens come first, and BOS stands before every text.

    Args:
        texts: what to learn from.
        size: entries.
        numbers: how often every number of two and three digits is read beside the texts, so that each is learnt.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counted = " ".join(f"{n:0{width}d}" for width in (2, 3) for n in range(10**width))
    tokenizer.train_from_iterator(itertools.chain(texts, [counted] * numbers), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
