"""Counting tokens: as a Hugging Face tokenizer counts them, as tiktoken does, or as a rough estimate.

A Hugging Face tokenizer remembers truncation and padding that other code has set on it. Each `Encoder` therefore works
on its own copy with both switched off, so a count is always a count of the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import regex
from tokenizers import Tokenizer

from distill.pruning.checks import BadArgument, bad, model_source


class Encoded(NamedTuple):
    """The `n` tokens of one text: `ids`, and the characters `[start, end)` that each covers; all int64 `(n,)`."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Counter(Protocol):
    """Counts tokens as some model would.

    `name` stands in reports; `exact` is False where the count is an estimate.
    """

    name: str
    exact: bool

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        ...

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The characters at which each token starts and ends, int64 `(tokens,)`. Only used to say what a unit
        costs."""
        ...


def display_name(tokenizer: Any) -> str:
    """A short name: the Hub id, or the last part of a local path."""
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    return Path(name).name if Path(name).exists() else name


class Encoder:
    """Encodes and counts with a fast Hugging Face tokenizer, which stays as it is.

    Args:
        tokenizer: a fast tokenizer (one that knows which characters a token covers).
        name: what reports call it; by default its Hub id or the last part of its folder.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """

    exact = True

    def __init__(self, tokenizer: Any, name: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BadArgument("tokenizer", f"a {type(tokenizer).__name__}", "fast tokenizers (with a tokenizer.json)")
        self.name = name or display_name(tokenizer)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text, without special tokens."""
        found = []
        for encoding in self._encodings(texts):
            # np.array takes twice as long over a list of tuples
            flat = itertools.chain.from_iterable(encoding.offsets)
            offsets = np.fromiter(flat, np.int64, 2 * len(encoding)).reshape(-1, 2)
            found.append(Encoded(np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1]))
        return found

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without special tokens."""
        return [len(encoding) for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        # encode_batch starts threads, which takes longer than encoding one short text
        if len(texts) == 1:
            return [self._backend.encode(texts[0], add_special_tokens=False)]
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The characters at which each token starts and ends, int64 `(tokens,)`."""
        encoded = self.encode([text])[0]
        return encoded.starts, encoded.ends


class TiktokenCounter:
    """Counts with a tiktoken encoding. Text that looks like a special token counts as ordinary text.

    Args:
        encoding: a `tiktoken.Encoding`.
    """

    exact = True

    def __init__(self, encoding: Any) -> None:
        self.name = f"tiktoken:{encoding.name}"
        self._encoding = encoding
        self._lengths: dict[int, int] = {}

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(self._encoding.encode_ordinary(text)) for text in texts]

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The characters at which each token starts and ends, int64 `(tokens,)`.

        A token may hold only some bytes of a character; such a token covers that whole character.
        """
        lengths = self._bytes_of(self._encoding.encode_ordinary(text))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        if text.isascii():
            return starts, ends
        char_at = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        chars = np.cumsum((char_at & 0xC0) != 0x80) - 1
        return chars[starts], chars[ends - 1] + 1

    def _bytes_of(self, tokens: list[int]) -> np.ndarray:
        """How many bytes each token stands for, int64 [tokens]."""
        known = self._lengths
        for token in set(tokens).difference(known):
            known[token] = len(self._encoding.decode_single_token_bytes(token))
        return np.array([known[token] for token in tokens], dtype=np.int64)


class EstimateCounter:
    """A rough count for when there is no tokenizer: one token for every four letters, digit, mark and line break."""

    name = "estimate (4 characters a token)"
    exact = False
    _PIECE = regex.compile(r"\p{L}{1,4}|\p{N}|[^\s\p{L}\p{N}]|[\n\r]+")

    def count(self, texts: Sequence[str]) -> list[int]:
        """About how many tokens each text has."""
        return [sum(1 for _ in self._PIECE.finditer(text)) for text in texts]

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The characters at which each counted piece starts and ends, int64 `(pieces,)`."""
        spans = np.array([m.span() for m in self._PIECE.finditer(text)], dtype=np.int64).reshape(-1, 2)
        return spans[:, 0], spans[:, 1]


class Estimated:
    """Another counter's counts, labelled an estimate, because the model that will read the text may count otherwise.

    Args:
        counter: what counts.
    """

    exact = False

    def __init__(self, counter: Counter) -> None:
        self.name = f"{counter.name} (estimate: no target_tokenizer given)"
        self.count = counter.count
        self.offsets = counter.offsets


def unloadable(argument: str, name: object, kind: str, error: Exception) -> BadArgument:
    """The error for a checkpoint that could not be loaded, with the first line of the reason."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return bad(argument, str(name), f"names and folders of {kind} that can be loaded here ({reason})")


def load_tiktoken(name: str) -> TiktokenCounter:
    """A counter for a tiktoken encoding or for the OpenAI model that uses it.

    tiktoken fetches an encoding when it is first used; offline, TIKTOKEN_CACHE_DIR must name a folder that holds it.

    Args:
        name: an encoding (`cl100k_base`) or a model (`gpt-4o`).

    Raises:
        ValueError: tiktoken is not installed, does not know the name, or cannot read the encoding on this machine.
    """
    try:
        import tiktoken
    except ImportError:
        raise bad("target_tokenizer", f"tiktoken:{name}", "others unless the package tiktoken is installed") from None
    try:
        known = name in tiktoken.list_encoding_names()
        return TiktokenCounter(tiktoken.get_encoding(name) if known else tiktoken.encoding_for_model(name))
    except KeyError:
        allowed = f"models that it knows and {', '.join(tiktoken.list_encoding_names())}"
        raise bad("target_tokenizer", f"tiktoken:{name}", allowed) from None
    except Exception as error:  # whatever the download or the cache raises
        raise bad(
            "target_tokenizer",
            f"tiktoken:{name}",
            f"encodings that can be read here ({type(error).__name__}; offline, TIKTOKEN_CACHE_DIR must name a folder "
            "that holds it) and Hugging Face tokenizers",
        ) from None


def make_counter(target: Any) -> Counter:
    """The counter that an argument means.

    Args:
        target: a counter, a Hugging Face tokenizer, its name or folder, or `"tiktoken:NAME"`.

    Raises:
        ValueError: `target` is none of these, or cannot be loaded.
    """
    if hasattr(target, "count") and hasattr(target, "offsets"):
        return target
    if hasattr(target, "backend_tokenizer"):
        return Encoder(target)
    if not isinstance(target, (str, Path)):
        raise bad("target_tokenizer", target, "tokenizers, their names and folders, and 'tiktoken:NAME'")
    name = model_source("target_tokenizer", target)
    if name.startswith("tiktoken:"):
        return load_tiktoken(name.removeprefix("tiktoken:"))
    from transformers import AutoTokenizer

    try:
        return Encoder(AutoTokenizer.from_pretrained(name))
    except Exception as error:  # a damaged or foreign file can make the loader fail in any way
        raise unloadable("target_tokenizer", name, "tokenizers", error) from error
