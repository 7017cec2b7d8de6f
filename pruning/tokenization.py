"""Token ids, offsets and counts from a Hugging Face tokenizer, and counters for the model that will read the result.

A fast tokenizer carries truncation and padding as state that other code may have set. What is used here is a private
copy of its backend with both off, so a count is always a count of the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import regex
from tokenizers import Tokenizer


class Encoded(NamedTuple):
    """One text in tokens: `ids`, `starts`, `ends`, int64 [n]; offsets count characters of the text as given."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Counter(Protocol):
    """Counts tokens as some model would. `exact` is False where the count is an estimate."""

    name: str
    exact: bool

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        ...

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Where each token starts and ends, int64 [tokens]; used to price units, never to rebuild text."""
        ...


def check_text(text: object, name: str = "text") -> str:
    """`text` itself; ValueError if it is no string or cannot be encoded (lone surrogates)."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string; got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate at character {error.start}, which no tokenizer can encode"
        ) from None
    return text


def display_name(tokenizer: Any) -> str:
    """A short name: the Hub id, or the last part of a local path."""
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    return Path(name).name if Path(name).exists() else name


class Encoder:
    """A fast Hugging Face tokenizer, stateless. Raises ValueError for one without offsets."""

    exact = True

    def __init__(self, tokenizer: Any, name: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer must be a fast one (with offsets); got {type(tokenizer).__name__}: "
                "save it with its tokenizer.json, or name another checkpoint"
            )
        self.name = name or display_name(tokenizer)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Ids and offsets of each text, no special tokens added."""
        found = []
        for encoding in self._encodings(texts):
            # np.array takes twice as long over a list of tuples
            flat = itertools.chain.from_iterable(encoding.offsets)
            offsets = np.fromiter(flat, np.int64, 2 * len(encoding)).reshape(-1, 2)
            found.append(Encoded(np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1]))
        return found

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, no special tokens added."""
        return [len(encoding) for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        # a batch of one pays for threads that it does not use, more than a short text costs
        if len(texts) == 1:
            return [self._backend.encode(texts[0], add_special_tokens=False)]
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Character offsets of the tokens of `text`."""
        encoded = self.encode([text])[0]
        return encoded.starts, encoded.ends


class TiktokenCounter:
    """Counts with a tiktoken encoding. Text that looks like a special token is ordinary text."""

    exact = True

    def __init__(self, encoding: Any) -> None:
        self.name = f"tiktoken:{encoding.name}"
        self._encoding = encoding
        self._lengths: dict[int, int] = {}

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(self._encoding.encode_ordinary(text)) for text in texts]

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Character offsets of the tokens: a token starts where its first whole character does."""
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
    """No tokenizer at hand: about one token for four letters, one for a mark or a line break. Labelled an estimate."""

    name = "estimate (4 characters a token)"
    exact = False
    _PIECE = regex.compile(r"\p{L}{1,4}|\p{N}|[^\s\p{L}\p{N}]|[\n\r]+")

    def count(self, texts: Sequence[str]) -> list[int]:
        """Estimated tokens of each text."""
        return [sum(1 for _ in self._PIECE.finditer(text)) for text in texts]

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Character offsets of the pieces that are counted."""
        spans = np.array([m.span() for m in self._PIECE.finditer(text)], dtype=np.int64).reshape(-1, 2)
        return spans[:, 0], spans[:, 1]


class Estimated:
    """A counter whose tokenizer is not known to be the reader's: the same counts, labelled an estimate."""

    exact = False

    def __init__(self, counter: Counter) -> None:
        self.name = f"{counter.name} (estimate: no target_tokenizer given)"
        self.count = counter.count
        self.offsets = counter.offsets


def load_tiktoken(name: str) -> TiktokenCounter:
    """The counter of a tiktoken encoding (`cl100k_base`) or of an OpenAI model (`gpt-4o`).

    Raises ValueError if tiktoken is not installed, does not know the name, or cannot read the encoding here (it
    fetches encodings on first use; offline, set TIKTOKEN_CACHE_DIR to a folder that holds it).
    """
    try:
        import tiktoken
    except ImportError:
        raise ValueError(f"target_tokenizer {name!r} needs the package tiktoken, which is not installed") from None
    try:
        known = name in tiktoken.list_encoding_names()
        return TiktokenCounter(tiktoken.get_encoding(name) if known else tiktoken.encoding_for_model(name))
    except KeyError:
        raise ValueError(f"target_tokenizer {name!r} is neither a tiktoken encoding nor a model it knows") from None
    except Exception as error:
        raise ValueError(
            f"target_tokenizer {name!r}: tiktoken could not read its encoding ({type(error).__name__}); "
            "offline, set TIKTOKEN_CACHE_DIR to a folder that holds it, or name a Hugging Face tokenizer"
        ) from None


def make_counter(target: Any) -> Counter:
    """A counter from a counter, a tokenizer, `"tiktoken:NAME"`, or the name or folder of a Hugging Face tokenizer.

    Raises ValueError if `target` is none of these or cannot be loaded.
    """
    if hasattr(target, "count") and hasattr(target, "offsets"):
        return target
    if hasattr(target, "backend_tokenizer"):
        return Encoder(target)
    if not isinstance(target, (str, Path)):
        raise ValueError(
            "target_tokenizer must be a tokenizer, its name or folder, or 'tiktoken:NAME'; "
            f"got {type(target).__name__}"
        )
    name = str(target)
    if name.startswith("tiktoken:"):
        return load_tiktoken(name.removeprefix("tiktoken:"))
    from transformers import AutoTokenizer

    try:
        return Encoder(AutoTokenizer.from_pretrained(name))
    except (OSError, KeyError) as error:
        raise ValueError(f"target_tokenizer {name!r} could not be loaded: {str(error).splitlines()[0]}") from None
