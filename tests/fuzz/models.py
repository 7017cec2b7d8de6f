"""Conversations on tiny models: random policies, architectures, padding, chunks, turns, searches, interruptions.

What is compared by value must differ for several drawings of the tokens to be a fault: two scores may be equal up to
rounding, and which of them is the higher one is then chance.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import distill
from distill import Policy
from distill.patches.meter import cache_bytes
from distill.patches.policy import as_policy

from ..matrix.caches import assert_same, contents, entries, held, naive_step
from ..tiny import ARCHITECTURES, KV_HEADS, lasting_pair, prefill, prompt
from . import Fault
from .policies import any_policy, forgets, members, promise, rows_alone

DRAWINGS = 4
ROOT = Path(distill.__file__).resolve().parents[1]
#: interruptions may fall on any line of these; of the guard itself, which is no longer a part of the call, on none
TRACED = tuple(str(ROOT / room) for room in ("patches", "baselines", "models"))


class Differs(Exception):
    """Two values that should be equal are not, which may be chance."""


@dataclass
class Turn:
    """One call: its policy, the length of each row, and how it is read."""

    policy: Policy | None
    lengths: list[int]
    chunk: int | None


def run(seed: int) -> None:
    """One case. Fails with `Fault`, or with whatever went wrong."""
    case = _Case(random.Random(seed))
    found: list[str] = []
    for drawing in range(DRAWINGS):
        try:
            case.check(drawing)
            return
        except Differs as difference:
            found.append(str(difference))
        except Fault:
            raise
        except Exception as error:
            raise Fault(str(case)) from error
    raise Fault(f"{case}: {found}")


class _Case:
    def __init__(self, rng: random.Random) -> None:
        self.arch = rng.choice(list(ARCHITECTURES))
        self.implementation = rng.choice(["sdpa", "sdpa", "eager"])
        self.rows = rng.choice([1, 1, 2, 3])
        self.side = rng.choice(["left", "right"])
        self.turns = [self._turn(rng, first=place == 0) for place in range(rng.choice([1, 2, 2, 3]))]
        if rng.random() < 0.4:  # the same policy all along
            self.turns = [Turn(self.turns[0].policy, turn.lengths, turn.chunk) for turn in self.turns]
        policies = [turn.policy for turn in self.turns]
        used = {member.name for policy in policies if policy for member in members(policy)}
        if self.arch == "nanochat" and "knorm" in used:  # which gives all keys the same norm
            self.arch = "llama"
        if None in policies:  # without a policy, the last column of a row padded on the right is none of its tokens
            self.side = "left"
        if "keydiff" in used:
            for turn in self.turns:  # two keys are equally far from their mean
                turn.lengths = [3 if length == 2 else length for length in turn.lengths]
        self.steps = rng.randint(1, 4)
        self.search = rng.choice([None, None, {}, {"num_beams": 2}, {"do_sample": True}, {"num_return_sequences": 2}])
        self.interrupt = rng.random() if rng.random() < 0.3 else None
        self.interrupted_turn = rng.randrange(len(self.turns) + 1)

    def _turn(self, rng: random.Random, first: bool) -> Turn:
        longest = rng.choice([1, 4, 12, 40, 70])
        policy = None if rng.random() < 0.1 else any_policy(rng)
        chunk = rng.randint(1, 20) if rng.random() < 0.3 else None
        lengths = [rng.randint(1, longest) for _ in range(self.rows)]
        if not first:  # a turn behind padding would need a mask with holes, which no caller makes
            lengths = [max(lengths)] * self.rows
        return Turn(policy, lengths, chunk)

    @property
    def widened(self) -> bool:
        """Whether a row may give all rows a cache with one set per query head, in which a policy then chooses."""
        inside = [member for turn in self.turns if turn.policy is not None for member in members(turn.policy)]
        wide = any(getattr(member, "granularity", "") == "query_head" for member in inside)
        return wide and any(forgets(member) or member.name == "kvzip" for member in inside)

    def __str__(self) -> str:
        return f"{self.arch}, {self.implementation}, {self.side}, {self.turns}, {self.search}, {self.interrupt}"

    def check(self, drawing: int) -> None:
        self.stock, self.model = lasting_pair(self.arch, implementation=self.implementation)
        total = sum(max(turn.lengths) for turn in self.turns) + self.steps
        self.tokens = prompt(total, batch=self.rows, seed=drawing)
        for turn in self.turns:
            if turn.policy is not None and as_policy(json.loads(json.dumps(turn.policy.to_dict()))) != turn.policy:
                raise Fault(f"{turn.policy} is not what its JSON says")
        together = self.converse(list(range(self.rows)), checked=True)
        if together is None:
            return
        if self.rows > 1 and all(rows_alone(turn.policy) for turn in self.turns) and not self.widened:
            for row in range(self.rows):
                alone = self.converse([row], checked=False)
                if alone is not None:
                    close(alone[0], together[row], f"row {row} of the batch")
        self.generate()

    def converse(self, rows: list[int], checked: bool) -> Tensor | None:
        """Reads all turns and some steps: the logits `(rows, calls, vocabulary)`; None where a policy is refused."""
        cache, logits, place = DynamicCache(), [], 0
        mask = torch.zeros(len(rows), 0, dtype=torch.long)
        last = self.turns[-1]
        calls = [*self.turns, *[Turn(last.policy, [1] * self.rows, None) for _ in range(self.steps)]]
        for number, turn in enumerate(calls):
            width = max(turn.lengths[row] for row in rows)
            ids, new = self.padded(rows, turn, place, width)
            place += max(turn.lengths)
            mask = torch.cat([mask, new], dim=1)
            where = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
            arguments = {
                "ids": ids,
                "mask": mask,
                "position_ids": where,
                "policy": turn.policy,
                "prefill_chunk_size": turn.chunk,
            }
            before = copy.deepcopy(cache) if checked else None
            try:
                if checked and self.interrupt is not None and number == self.interrupted_turn:
                    cache = self.interrupted(cache, arguments)
                out = prefill(self.model, past_key_values=cache, **arguments)
            except ValueError as error:
                refused_by_name(error, turn.policy)
                if before is not None:
                    assert_same(contents(cache), contents(before))
                return None
            logits.append(out.logits[:, -1])
            if before is not None:
                self.check_call(turn, cache, before, ids, mask, where, out, number)
        return torch.stack(logits, dim=1)

    def padded(self, rows: list[int], turn: Turn, place: int, width: int) -> tuple[Tensor, Tensor]:
        """Ids and mask `(rows, width)` of one call."""
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            length = turn.lengths[row]
            where = slice(width - length, width) if self.side == "left" else slice(0, length)
            ids[at, where], mask[at, where] = self.tokens[row, place : place + length], 1
        return ids, mask

    def check_call(
        self, turn: Turn, cache: Any, before: Any, ids: Tensor, mask: Tensor, where: Tensor, out: Any, number: int
    ) -> None:
        if not bool(out.logits.isfinite().all()):
            raise Fault(f"{self}: logits that are not finite")
        if not hasattr(cache.layers[0], "layout"):
            return  # all of it was stock
        if cache_bytes(cache) != sum(layer.nbytes for layer in cache.layers):
            raise Fault(f"{self}: bytes")
        for index, layer in enumerate(cache.layers):
            if layer.get_seq_length() != mask.shape[1]:
                raise Fault(f"{self}: layer {index} has seen {layer.get_seq_length()} tokens of {mask.shape[1]}")
            old = before.layers[index] if before.get_seq_length() else None
            for row, sets in enumerate(held(layer)):
                if any(head != sorted(set(head)) for head in sets) or max(
                    map(max, filter(None, sets)), default=0
                ) > max(where[row].tolist()):
                    raise Fault(f"{self}: positions {sets}")
                if old is not None and hasattr(old, "layout") and not forgets(turn.policy):
                    then = held(old)[row]
                    then = [head for head in then for _ in range(max(len(sets) // len(then), 1))]
                    sets = [head for head in sets for _ in range(max(len(then) // len(sets), 1))]
                    left = -1 if layer.window is None else int(where[row].max()) + 1 - layer.window
                    if not all({p for p in a if p > left} <= set(b) for a, b in zip(then, sets, strict=True)):
                        raise Fault(f"{self}: what an earlier call left is gone from layer {index}")
        if number == 0 and turn.policy is not None:
            self.check_counts(turn, cache, turn.policy)
        if ids.shape[1] == 1 and before.get_seq_length() and hasattr(before.layers[0], "layout"):
            close(out.logits[:, -1], naive_step(self.stock, before, ids, where), "attention on what is held")

    def check_counts(self, turn: Turn, cache: Any, policy: Policy) -> None:
        """What the first call left is what was predicted; heads are told apart as the longest row needs it."""
        for row, length in enumerate(turn.lengths):
            predicted = policy.entries_kept(length, self.model.config)
            if not all(0 < count <= length * cache.layers[0].keys.shape[1] * 2 for count in predicted):
                raise Fault(f"{self}: predicted {predicted} entries of {length} tokens")
            found = [entries(layer, row) for layer in cache.layers]
            split = any(layer.keys.shape[1] != KV_HEADS for layer in cache.layers)
            if split and self.rows > 1:
                continue
            kind = promise(policy)
            wrong = {
                "layers": found != predicted,
                "total": sum(found) != sum(predicted),
                "most": bounded(policy) and any(a > b for a, b in zip(found, predicted, strict=True)),
            }[kind]
            if wrong or not sum(found):
                raise Fault(f"{self}: row {row} holds {found}, predicted {predicted} ({kind})")

    def interrupted(self, cache: Any, arguments: dict[str, Any]) -> Any:
        """Interrupts the call on some line; the cache afterwards, which must be as before, or refused."""
        before = copy.deepcopy(cache)
        lines = _Lines()
        with lines:
            prefill(self.model, past_key_values=copy.deepcopy(cache), **arguments)
        assert self.interrupt is not None
        try:
            with _Lines(stop=int(self.interrupt * lines.count)):
                prefill(self.model, past_key_values=cache, **arguments)
        except KeyboardInterrupt:
            pass
        else:
            return before
        if any(getattr(layer, "torn", False) for layer in cache.layers):
            try:
                prefill(self.model, past_key_values=cache, **arguments)
            except ValueError as error:
                if "past_key_values: got a cache on which" in str(error):
                    return before
            raise Fault(f"{self}: a torn cache is used")
        assert_same(contents(cache), contents(before))
        return cache

    def generate(self) -> None:
        """Greedy search, beams, samples: they run, and greedy search of a row is that of the batch."""
        if self.search is None:
            return
        turn, settings = self.turns[0], {"do_sample": False} | self.search
        if settings.get("num_return_sequences") and not settings.get("num_beams"):
            settings |= {"do_sample": True}
        settings |= {"max_new_tokens": self.steps, "policy": turn.policy}
        ids, mask = self.padded(list(range(self.rows)), turn, 0, max(turn.lengths))
        torch.manual_seed(0)
        try:
            found = self.model.generate(ids, attention_mask=mask, prefill_chunk_size=turn.chunk, **settings)
        except ValueError as error:
            refused_by_name(error, turn.policy)
            return
        if found.shape != (self.rows * settings.get("num_return_sequences", 1), ids.shape[1] + self.steps):
            raise Fault(f"{self}: {found.shape}")
        if not settings["do_sample"] and rows_alone(turn.policy):
            row = self.padded([0], turn, 0, turn.lengths[0])[0]
            alone = self.model.generate(row, attention_mask=torch.ones_like(row), **settings)
            if not torch.equal(alone[0, row.shape[1] :], found[0, ids.shape[1] :]):
                raise Differs(
                    f"generated {found[0, ids.shape[1] :].tolist()}, alone {alone[0, row.shape[1] :].tolist()}"
                )


def bounded(policy: Policy) -> bool:
    """Whether a prediction bounds each layer.

    A policy that shares entries out among layers only bounds their sum, and of several that drop tokens between layers
    the later one chooses among fewer tokens than it would alone.
    """
    inside = members(policy)
    shared = any(member.name == "kvzip" and not getattr(member, "layerwise", True) for member in inside)
    return not shared and sum(member.name in ("promptdistill", "fastkv") for member in inside) < 2


def refused_by_name(error: ValueError, policy: Policy | None) -> None:
    """A refusal names a setting of the policy; anything else is a fault."""
    subject = str(error).split(": got")[0]
    names = {"policy", "policies"} | {name for member in members(policy or distill.Knorm()) for name in vars(member)}
    if not any(name in subject for name in names):
        raise error


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Logits that are equal up to rounding."""
    if one.shape != other.shape or not torch.allclose(one, other, atol=2e-3, rtol=2e-3):
        raise Differs(f"{what}: logits differ by {(one - other).abs().max().item():.3g}")


class _Lines:
    """Counts the lines of ours that run inside the block; `stop`: raises a KeyboardInterrupt at that one."""

    def __init__(self, stop: int | None = None) -> None:
        self.count, self.stop = 0, stop

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: Any) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(TRACED) or name.endswith("guard.py"):
            return None
        if event == "line":
            self.count += 1
            if self.stop is not None and self.count > self.stop:
                self.stop = None
                raise KeyboardInterrupt
        return self._trace
