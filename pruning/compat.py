"""LLMLingua-2, reproduced with its defects, to compare with; `Distill` without `compat` is the method to use.

This follows the published package (llmlingua 0.2.2; Pan et al., ACL 2024) so closely that it returns the same strings.
That includes what is wrong with them: the text is decoded from tokens, white space between chunks is lost, each chunk
has a threshold of its own, and words that the vocabulary lacks vanish. Two things differ and cannot change a result:
remote code is never run, and the kind of model is read from its tokenizer and not from its name. Batches have the
shape that they have in the original, because matrix products of another shape are rounded differently; where two
words are almost equally probable, that could move a threshold across one of them.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distill.pruning.checks import BadArgument, bad, check_texts, choice, flag, number, strings, whole
from distill.pruning.loading import load
from distill.pruning.scorers.base import pad
from distill.pruning.tokenization import load_tiktoken, make_counter

WINDOW = 512
MAX_FORCED = 100  # the original reserves this many placeholder tokens
BATCH = 50
SEED = 42  # the original's


@dataclass(frozen=True)
class _Forced:
    """The strings to force. Those that are not a single token are `mapped` to placeholders, which are."""

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
    """The words of one chunk, and the probabilities of their tokens: with forced ones set to 1, and as they were."""

    words: list[str] = field(default_factory=list)
    forced: list[list[float]] = field(default_factory=list)
    plain: list[list[float]] = field(default_factory=list)


class LLMLingua2:
    """The compressor of llmlingua 0.2.2 with `use_llmlingua2=True`.

    Args:
        model_name: a token classifier with two labels and a WordPiece or XLM-RoBERTa tokenizer.
        device_map: where the model runs.
        counter: counts the tokens for thresholds and targets; None is tiktoken's cl100k_base, as in the original.

    Raises:
        ValueError: another kind of tokenizer, or a model or counter that cannot be loaded.
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
            got = f"{str(model_name)!r}, whose tokenizer gives {pieces}"
            raise BadArgument("model_name", got, "models with a WordPiece or SentencePiece tokenizer, with compat")
        self._skip = self._special_tokens()
        self._placeholders = [f"[NEW{i}]" for i in range(MAX_FORCED)]
        with torch.random.fork_rng(devices=[]):
            # the placeholders' embeddings are random in the original too; its seed makes them the same here
            torch.manual_seed(SEED)
            self.tokenizer.add_special_tokens({"additional_special_tokens": self._placeholders})
            self.model.resize_token_embeddings(len(self.tokenizer))
        self._ids = self._boundary_ids()

    def _special_tokens(self) -> set[str]:
        named = self.tokenizer.special_tokens_map
        return {str(v) for k, v in named.items() if k not in ("additional_special_tokens", "extra_special_tokens")}

    def _boundary_ids(self) -> tuple[int, int]:
        # the original always looks up BERT's special tokens; a vocabulary without them gives the unknown token
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
        """Compresses contexts as `PromptCompressor.compress_prompt` does, with its arguments and defaults.

        Args:
            context: the texts.
            rate: share of the tokens to keep, above 0 and up to 1.
            target_token: tokens to keep of all contexts; -1 for what `rate` says.
            use_context_level_filter: whether whole contexts are dropped first.
            context_level_rate: share of contexts to keep; 1 lets the original choose it.
            force_context_ids: indices of contexts that are not dropped.
            force_tokens: strings to keep, at most 100.
            force_reserve_digit: whether tokens with a digit are kept.
            drop_consecutive: whether repeated forced strings are kept once.
            token_to_word: how tokens make a word's probability, `"mean"` or `"first"`.
            chunk_end_tokens: tokens at which a chunk may end.

        Returns:
            The compressed contexts that were not dropped.

        Raises:
            ValueError: an argument that is not allowed, by name; also where the original crashes (a rate of 0, an
                empty text with a target, more than 100 forced strings).
        """
        texts = check_texts(context, "context")
        rate = number("rate", rate, 0, 1, above=True, meaning="the share to keep")
        target_token = whole("target_token", target_token, -1)
        context_level_rate = number("context_level_rate", context_level_rate, 0, 1, above=True)
        force_tokens = strings("force_tokens", force_tokens, MAX_FORCED)
        chunk_end_tokens = strings("chunk_end_tokens", chunk_end_tokens, MAX_FORCED)
        choice("token_to_word", token_to_word, ("mean", "first"))
        flag("use_context_level_filter", use_context_level_filter)
        flag("force_reserve_digit", force_reserve_digit)
        flag("drop_consecutive", drop_consecutive)
        if not isinstance(force_context_ids, (list, tuple)):
            raise bad("force_context_ids", force_context_ids, "lists of indices of contexts")
        for i in force_context_ids:
            whole("force_context_ids", i, 0)
        forced = self._forced(list(force_tokens), force_reserve_digit)
        ends = {*chunk_end_tokens, *(forced.mapped[t] for t in chunk_end_tokens if t in forced.mapped)}
        original = sum(self.counter.count(texts))
        if target_token > 0 and not original:
            raise bad("target_token", target_token, "-1 for a context without tokens")
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
        """The text in chunks of at most 511 tokens, decoded; a chunk ends with an end token if it has one."""
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
        """Which contexts stay: those with the highest mean probability of their words, a `share` of all."""
        scored = iter(self._score([c for group in chunks for c in group], forced))
        means = []
        for group in chunks:
            values = [v for _ in group for v in _per_word(next(scored).plain, how)]
            if not values:
                got = "a text without words beside others"
                raise BadArgument("context", got, "texts with words, or any with use_context_level_filter=False")
            means.append(sum(values) / len(values))
        bar = np.percentile(means, int(100 * (1 - share)))
        return [i for i, mean in enumerate(means) if mean >= bar or i in always]

    @torch.inference_mode()
    def _score(self, chunks: list[str], forced: _Forced) -> list[_Words]:
        """The words of each chunk with their probabilities. Tokens beyond 512 are dropped, as in the original."""
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
                # the original repeats the word's first probability here, so that for contexts "mean" equals "first"
                found.plain[-1].append(found.plain[-1][0])
        return found

    def _begins(self, token: str, forced: _Forced) -> bool:
        if self.wordpiece:
            return not token.startswith("##") or forced.is_forced(token.lstrip("#"))
        # the original tests whether the token is a substring of string.punctuation
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
