"""KVzip: keeps the entries that the model needs to repeat its prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from distill.baselines.jointly import Jointly, JointRun
from distill.patches.checks import check_budget, check_flag, check_integer, check_token_ids, check_uneven
from distill.patches.layout import entries_at
from distill.patches.policy import register
from distill.patches.run import Call, Observation, Run
from distill.patches.selection import column_maxima, indices_of, projected_norms

FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"


@register
@dataclass(frozen=True)
class KVzip(Jointly):
    """Keeps the entries that get most attention while the model, its cache still whole, is made to repeat the prompt.

    After the prompt has been read, it is read once more, in chunks of `chunk_size` tokens. For each chunk the model is
    given these tokens, at the positions right after the prompt: `instruction`, `suffix`, and the chunk itself. For all
    chunks but the first, `continuation` and the last `overlap` tokens of the chunk before stand in place of
    `instruction`. After each chunk these tokens leave the cache again. An entry j of the chunk then has the score

        s_j = max_{h, i} softmax_j(q_i^h . K / sqrt(d)),

    where d is the head size, i runs over all tokens given, and h over the query heads that share the entry's KV head.
    K are the keys of the sinks, of the chunk's entries and of the tokens given; the rest of the prompt is left out of
    the softmax.

    The entries of all layers and heads compete with one another, so layers and heads end up with different numbers.
    The price is a second reading of the prompt, which pays off where one cache serves many questions.

    Paper: "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", https://arxiv.org/abs/2505.23416.
    Defaults and equations are those of kvpress 0.5.5 (`compression_ratio=1 - budget`).

    A policy holds token ids, not text, so the published words must be turned into ids: `KVzip.with_tokenizer` does
    that, and so do all commands. The defaults are empty.

    kvpress takes one row only, refuses eager attention, and drops entries when its context manager is left, too late
    for `generate()`. Here, rows of any lengths can form a batch, each treated as if it were alone, and `generate()`
    decodes on the smaller cache. kvpress hides dropped entries behind fake keys; here they leave the cache. Of a
    second prompt on the same cache only its own entries are dropped.

    Args:
        budget: entries kept per row, averaged over layers and heads: an integer, or a fraction (float in (0, 1)) of
            the prompt's entries.
        chunk_size: tokens of the prompt in a chunk.
        sinks: number of first tokens that all heads keep, within the budget. Where the fraction of a short prompt is
            smaller than that, the last of them are kept.
        layerwise: with True, the heads of each layer compete only with one another, and all layers keep the same
            number.
        plus: with True (KVzip+), the probability of entry j and token i is multiplied by ||v_j W_O^h|| / ||x_i||
            before the maximum is taken. x_i is the normalised hidden state from which the query of token i is made.
        instruction, continuation, suffix: token ids that are given before each chunk, see above.
        overlap: number of last tokens of the chunk before that are given after `continuation`.
        prefix: number of first tokens that are not repeated, such as the opening of a chat template. They have no
            score, so those that are not sinks are dropped first.
        windows: whether layers with a sliding window compete too, in models whose other layers see the whole prompt.
            By default their cache holds what the window holds.
    """

    name = "kvzip"

    budget: int | float = 1024
    chunk_size: int = 2048
    sinks: int = 4
    layerwise: bool = False
    plus: bool = False
    instruction: tuple[int, ...] = ()
    continuation: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    overlap: int = 8
    prefix: int = 0
    windows: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        for name, least in (("chunk_size", 1), ("sinks", 0), ("overlap", 0), ("prefix", 0)):
            check_integer(name, getattr(self, name), least)
        check_flag("layerwise", self.layerwise)
        check_flag("plus", self.plus)
        check_flag("windows", self.windows)
        for name in ("instruction", "continuation", "suffix"):
            check_token_ids(name, getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.budget, int) and self.budget <= self.sinks:
            raise ValueError(f"budget: got {self.budget}; allowed are integers > sinks ({self.sinks}), or fractions")

    @classmethod
    def with_tokenizer(cls, tokenizer: Any, suffix: str = "\n", **arguments: Any) -> KVzip:
        """A policy with the published words, written in the ids of a tokenizer.

        Args:
            tokenizer: that of the model.
            suffix: the text that stands between context and answer in a chat.
            arguments: other arguments of the class.
        """
        ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (FIRST, LATER, suffix)]
        return cls(instruction=ids[0], continuation=ids[1], suffix=ids[2], **arguments)

    def for_tokenizer(self, tokenizer: Any) -> KVzip:
        """This policy with the published words, unless it has some already."""
        words = {name: getattr(self, name) for name in ("instruction", "continuation", "suffix")}
        if any(words.values()):
            return self
        published = KVzip.with_tokenizer(tokenizer)
        return replace(self, **{name: getattr(published, name) for name in words})

    def check(self, config: Any) -> None:
        check_uneven(self.name, config)
        for name in ("instruction", "continuation", "suffix"):
            for token in getattr(self, name):
                check_integer(name, token, 0, config.vocab_size - 1)

    def begin(self, call: Call) -> Run | None:
        if call.cache is None or not bool(call.tokens.droppable.any()):
            return None
        longest = int(call.tokens.prompt.sum(1).max())
        if isinstance(self.budget, int) and longest <= self.budget:
            return None
        if longest <= self.prefix:
            raise ValueError(f"prefix: got {self.prefix}; allowed are integers < {longest}, the prompt's length")
        if call.input_ids is None:
            raise ValueError(
                "inputs_embeds: got embeddings for kvzip, which repeats the prompt by its ids; allowed are input_ids"
            )
        if call.ranks > 1:
            raise ValueError(
                "policy: got kvzip, which compares all heads; allowed are models without tensor parallelism"
            )
        return _KVzipRun(self, call)


class _KVzipRun(JointRun):
    """One forward call: after the prompt, reads its chunks again to score them, then drops entries in all layers."""

    policy: KVzip

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        for start in range(self.policy.prefix, int(self.lengths.max()), self.policy.chunk_size):
            replay(*self.repetition(start), _Replay(self, start))
        self.drop()

    def repetition(self, start: int) -> tuple[Tensor, Tensor]:
        """The tokens that are read to score the chunk that begins at prompt token `start`.

        Returns:
            token ids, and a bool mask that is False for padding (on the left); both `(batch, tokens)`.
        """
        assert self.call.input_ids is not None
        policy, rows = self.policy, []
        for ids, prompt in zip(self.call.input_ids, self.call.tokens.prompt, strict=True):
            row = ids[prompt.to(ids.device)].tolist()
            chunk = row[start : start + policy.chunk_size]
            before = row[start - min(policy.overlap, policy.chunk_size) : start]
            opening = [*policy.continuation, *before] if start > policy.prefix else policy.instruction
            rows.append([*opening, *policy.suffix, *chunk] if chunk else [])
        width = max(map(len, rows))
        padded = torch.tensor([[-1] * (width - len(row)) + row for row in rows], device=self.call.input_ids.device)
        return padded.clamp(min=0), padded >= 0


class _Replay(Run):
    """Scores the chunk that begins at prompt token `start`, by the attention it gets while it is repeated."""

    def __init__(self, outer: _KVzipRun, start: int) -> None:
        self.outer, self.start = outer, start

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.outer.competing

    def observe(self, layer_idx: int, seen: Observation) -> None:
        policy, (_, heads, read, _) = self.outer.policy, seen.query.shape
        layout = self.outer.layers[layer_idx].layout
        rank = self.outer.rank(layout[..., :-read].to(seen.key.device))  # (batch, 1 or kv_heads, entries)
        first = indices_of((rank >= 0) & (rank < min(policy.sinks, self.start)))
        chunk = indices_of((rank >= self.start) & (rank < self.start + policy.chunk_size))
        index, valid = torch.cat([chunk, first], dim=-1), seen.tokens.valid.to(seen.key.device)
        weights = None
        if policy.plus:
            norms = projected_norms(entries_at(seen.value, index), seen.output_weight, heads, 2)
            inputs = seen.attended.float().norm(dim=-1)  # (batch, read)
            weights = norms, 1 / inputs.masked_fill(~valid, 1)
        keys = torch.cat([entries_at(seen.key, index), seen.key[:, :, -read:]], dim=2)
        best = column_maxima(seen.query, keys, seen.softmax, index >= 0, valid, weights)  # (..., chunk + sinks)
        longest, kv_heads = int(self.outer.lengths.max()), keys.shape[1]
        where = rank.gather(2, chunk.clamp(min=0)).masked_fill(chunk < 0, longest).expand(-1, kv_heads, -1)
        scores = self.outer.scores.setdefault(layer_idx, best.new_zeros(len(best), kv_heads, longest + 1))
        scores.scatter_(2, where, best[..., : chunk.shape[-1]])
