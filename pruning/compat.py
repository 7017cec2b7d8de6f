"""LLMLingua-2, step by step, defects included: the reference to compare with, not the method to use.

Follows the published package (llmlingua 0.2.2; Pan et al., ACL 2024) so that its outputs come back character for
character: text is detokenised, chunks lose white space at their seams, thresholds are per chunk, and words that the
vocabulary lacks vanish. The pruner of this package (`Distill` without `compat`) does none of that. What differs here
is only what cannot change a result: remote code is never run, and the model family is read from the tokenizer rather
than from the model's name. Batches have the original's shape: products of another shape round otherwise, and where two
words are nearly as probable that moves a threshold across one of them.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distill.pruning.loading import load
from distill.pruning.scorers.base import pad
from distill.pruning.tokenization import check_text, load_tiktoken, make_counter

WINDOW = 512
MAX_FORCED = 100
BATCH = 50
SEED = 42


@dataclass(frozen=True)
class _Forced:
    """`tokens`: strings to force. `mapped`: those that are not one token, with the placeholder that stands for
    each.
    """

    tokens: list[str]
    mapped: dict[str, str]
    digits: bool
    placeholders: frozenset[str] = field(default=frozenset())

    def is_forced(self, bare: str) -> bool:
        return bare in self.tokens or bare in self.placeholders

    def restore(self, token: str) -> str:
        for original, placeholder in self.mapped.items():
            token = token.replace(placeholder, original)
        return token

    def shield(self, text: str) -> str:
        for original, placeholder in self.mapped.items():
            text = text.replace(original, placeholder)
        return text


@dataclass
class _Words:
    """The words of one chunk: surface, probability with forced ones raised, and without."""

    words: list[str] = field(default_factory=list)
    forced: list[list[float]] = field(default_factory=list)
    plain: list[list[float]] = field(default_factory=list)


class LLMLingua2:
    """The compressor of llmlingua 0.2.2 with `use_llmlingua2=True`.

    `model_name`: a token classifier with two labels and a WordPiece or XLM-RoBERTa tokenizer. `counter`: counts tokens
    for thresholds and targets; the original uses tiktoken's cl100k_base, which is also the default here. Raises
    ValueError for another tokenizer family or a counter that cannot be loaded.
    """

    def __init__(self, model_name: Any, device_map: str = "cpu", counter: Any = None) -> None:
        self.counter = load_tiktoken("cl100k_base") if counter is None else make_counter(counter)
        self.model, self.tokenizer, _ = load(model_name, "token-classification", device_map)
        pieces = self.tokenizer.tokenize("unbelievably interoperable")
        if any(p.startswith("##") for p in pieces):
            self.wordpiece = True
        elif any(p.startswith("▁") for p in pieces):
            self.wordpiece = False
        else:
            raise ValueError(
                f"model_name {str(model_name)!r}: compat needs a WordPiece or SentencePiece tokenizer; got {pieces}"
            )
        self._skip = self._special_tokens()
        self._placeholders = [f"[NEW{i}]" for i in range(MAX_FORCED)]
        with torch.random.fork_rng(devices=[]):
            # the placeholders' vectors are random in the original too; its seed makes them the same
            torch.manual_seed(SEED)
            self.tokenizer.add_special_tokens({"additional_special_tokens": self._placeholders})
            self.model.resize_token_embeddings(len(self.tokenizer))
        self._ids = self._boundary_ids()

    def _special_tokens(self) -> set[str]:
        named = self.tokenizer.special_tokens_map
        return {str(v) for k, v in named.items() if k not in ("additional_special_tokens", "extra_special_tokens")}

    def _boundary_ids(self) -> tuple[int, int]:
        # inference in the original always uses BERT's names for the special tokens; a vocabulary without them has the
        # unknown token there
        head, tail = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
        return head, tail

    def compress(
        self,
        context: Sequence[str],
        rate: float = 0.5,
        target_token: int = -1,
        *,
        use_context_level_filter: bool = True,
        context_level_rate: float = 1.0,
        force_context_ids: Sequence[int] = (),
        force_tokens: Sequence[str] = (),
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        token_to_word: str = "mean",
        chunk_end_tokens: Sequence[str] = (".", "\n"),
    ) -> list[str]:
        """The compressed contexts that survive: a list of strings, possibly shorter than `context`.

        The arguments are those of `PromptCompressor.compress_prompt`, with its defaults. Where the original crashes
        (rate 0, an empty text with a target, more than 100 forced tokens) this raises ValueError.
        """
        texts = [check_text(t, f"context[{i}]") for i, t in enumerate(context)]
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], the share to keep; got {rate!r}")
        if len(force_tokens) > MAX_FORCED:
            raise ValueError(f"force_tokens must hold at most {MAX_FORCED}; got {len(force_tokens)}")
        if token_to_word not in ("mean", "first"):
            raise ValueError(f"token_to_word must be 'mean' or 'first'; got {token_to_word!r}")
        forced = self._forced(list(force_tokens), force_reserve_digit)
        ends = {*chunk_end_tokens, *(forced.mapped[t] for t in chunk_end_tokens if t in forced.mapped)}
        original = sum(self.counter.count(texts))
        if target_token > 0 and not original:
            raise ValueError("target_token cannot be met: the context has no tokens")
        chunks = [self._chunks(forced.shield(t), ends) for t in texts]
        if use_context_level_filter and len(texts) > 1:
            share = self._context_share(rate, target_token, original, context_level_rate)
            kept = self._keep_contexts(chunks, share, force_context_ids, forced, token_to_word)
            chunks = [chunks[i] for i in kept]
            original = sum(n for c in chunks for n in self.counter.count(c))
        if target_token > 0:
            rate = min(target_token / original, 1.0)
        if rate >= 1:
            return [forced.restore("".join(c)) for c in chunks]
        scored = self._score([c for group in chunks for c in group], forced)
        pieces = iter(self._prune(words, 1 - rate, forced, token_to_word, drop_consecutive) for words in scored)
        return ["".join(next(pieces) for _ in group) for group in chunks]

    def _forced(self, tokens: list[str], digits: bool) -> _Forced:
        mapped = {
            t: placeholder
            for t, placeholder in zip(tokens, self._placeholders, strict=False)
            if len(self.tokenizer.tokenize(t)) != 1
        }
        return _Forced(tokens, mapped, digits, frozenset(mapped.values()))

    def _chunks(self, text: str, ends: set[str]) -> list[str]:
        """The text in chunks of at most 511 tokens that end on an end token where there is one, as strings again."""
        tokens = self.tokenizer.tokenize(text)
        found, begin, reach = [], 0, WINDOW - 2
        while begin < len(tokens):
            last = len(tokens) - 1
            if begin + reach <= last:
                last = next((j for j in range(begin + reach, begin, -1) if tokens[j] in ends), begin + reach)
            found.append(self.tokenizer.convert_tokens_to_string(tokens[begin : last + 1]))
            begin = last + 1
        return found

    @staticmethod
    def _context_share(rate: float, target: int, original: int, share: float) -> float:
        if share < 1:
            return share
        if target > 0:
            return min(2 * target / original, 1.0)
        return (rate + 1) / 2

    def _keep_contexts(
        self, chunks: list[list[str]], share: float, always: Sequence[int], forced: _Forced, how: str
    ) -> list[int]:
        """The contexts whose mean word probability, nothing forced, is in the upper `share`."""
        scored = iter(self._score([c for group in chunks for c in group], forced))
        means = []
        for group in chunks:
            values = [v for _ in group for v in _per_word(next(scored).plain, how)]
            if not values:
                raise ValueError(
                    "context holds a text without words; leave it out or set use_context_level_filter=False"
                )
            means.append(sum(values) / len(values))
        bar = np.percentile(means, int(100 * (1 - share)))
        return [i for i, mean in enumerate(means) if mean >= bar or i in always]

    @torch.inference_mode()
    def _score(self, chunks: list[str], forced: _Forced) -> list[_Words]:
        """The words of each chunk with their probabilities; tokens beyond 512 are lost, as in the original."""
        head, tail = self._ids
        rows = []
        for chunk in chunks:
            ids = self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(chunk))
            rows.append(np.array([head, *ids, tail][:WINDOW], dtype=np.int64))
        found: list[_Words] = []
        for begin in range(0, len(rows), BATCH):
            batch = rows[begin : begin + BATCH]
            ids, mask = pad(batch, self.tokenizer.convert_tokens_to_ids("[PAD]"), WINDOW)
            logits = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)).logits
            for row, keep in zip(batch, logits.softmax(-1)[:, :, 1].cpu().numpy(), strict=True):
                tokens = self.tokenizer.convert_ids_to_tokens(row.tolist())
                found.append(self._words(tokens, list(keep[: len(row)]), forced))
        return found

    def _words(self, tokens: list[str], values: list[float], forced: _Forced) -> _Words:
        found = _Words()
        for token, value in zip(tokens, values, strict=True):
            if token in self._skip:
                continue
            bare = token.lstrip("#") if self.wordpiece else token.lstrip("▁")
            raised = 1.0 if forced.digits and any(c.isdigit() for c in token) else value
            if self._begins(token, forced):
                if raised is value and forced.is_forced(bare):
                    raised = 1.0
                found.words.append(forced.restore(token))
                found.forced.append([raised])
                found.plain.append([value])
            else:
                found.words[-1] += bare
                found.forced[-1].append(raised)
                # the original goes on with the word's first probability here, so "mean" is "first" for whole contexts
                found.plain[-1].append(found.plain[-1][0])
        return found

    def _begins(self, token: str, forced: _Forced) -> bool:
        if self.wordpiece:
            return not token.startswith("##") or forced.is_forced(token.lstrip("#"))
        # the original's test for punctuation is for a substring of string.punctuation
        return token in string.punctuation or token.startswith("▁") or forced.is_forced(token)

    def _prune(self, scored: _Words, removed: float, forced: _Forced, how: str, drop_consecutive: bool) -> str:
        values = _per_word(scored.forced, how)
        if not values:
            return ""
        if drop_consecutive:
            _silence_repeats(scored.words, values, forced.tokens, float(np.percentile(values, int(100 * removed))))
        counts = self.counter.count(scored.words)
        weighted = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
        bar = np.percentile(weighted, int(100 * removed + 1))
        kept: list[str] = []
        for word, value in zip(scored.words, values, strict=True):
            if value > bar or (bar == 1.0 and value == 1.0):
                if drop_consecutive and kept and word in forced.tokens and kept[-1] == word:
                    continue
                kept.append(word)
        return self.tokenizer.convert_tokens_to_string(kept)


def _per_word(values: list[list[float]], how: str) -> list[float]:
    return [v[0] for v in values] if how == "first" else [sum(v) / len(v) for v in values]


def _silence_repeats(words: list[str], values: list[float], forced: list[str], bar: float) -> None:
    """Sets to 0 each forced word that repeats the forced word before it with nothing kept between them."""
    previous: str | None = None
    between = False
    for i, word in enumerate(words):
        if word in forced:
            if between:
                between = False
            elif word == previous:
                values[i] = 0.0
            previous = word
        else:
            between = between or values[i] > bar
