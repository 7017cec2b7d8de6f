"""Retention in one step of a serving engine: which rows of the flat batch go on, and what requests remember.

vLLM computes a step for many requests at once, as one flat list of rows (tokens). A prompt may come in chunks, over
several steps, and a preempted request is read again together with the tokens it had generated. Here stands what
follows from that, as functions and objects that know no engine. Which tokens are kept is decided by the same run
object as on Transformers, always when the last token of the prompt has been read:

    layers up to the first selection   run on all rows of the step, as in the stock model;
    then                               rows of an unfinished prompt wait; where a prompt is complete, the rows that
                                       waited join, tokens are chosen, and only those and what follows go on;
    later layers                       hold the chosen tokens as their first entries, and later tokens behind these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from distill.models import PromptDistill
from distill.patches.run import Call, Observation, Run, Tokens
from distill.patches.selection import Softmax


@dataclass(frozen=True)
class Part:
    """One request's share of a step.

    Attributes:
        request: its id.
        index: its row in the engine's block tables.
        start: its first row in the flat batch.
        computed: tokens it had before this step.
        count: tokens it gets in this step.
        length: tokens of its prompt.
        policy: its policy, `None` where it is off.
    """

    request: str
    index: int
    start: int
    computed: int
    count: int
    length: int
    policy: PromptDistill | None

    @property
    def reading(self) -> bool:
        """Whether tokens of a prompt under a policy are read in this step."""
        return self.policy is not None and self.computed < self.length

    @property
    def completing(self) -> bool:
        """Whether the last of them is read in this step."""
        return self.reading and self.computed + self.count >= self.length


@dataclass
class State:
    """What is remembered of one request under a policy.

    Attributes:
        run: decides what is kept; `None` where nothing can be dropped.
        tokens: the tokens of the prompt that are alive, until the choice is made.
        waiting: hidden states and residuals `(rows, hidden)` of chunks that wait, each tensor of one chunk.
        keys, queries: by observed layer, `(1, heads, tokens, head_dim)` so far; queries only of the tokens that ask.
        held: once the prompt has been read, how many of its tokens each stage after the first holds.
        kept: once the prompt has been read, the positions `(tokens,)` that each stage after the first holds.
    """

    run: Run | None
    tokens: Tokens
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def forget(self) -> None:
        """Drops what only the choice needs."""
        self.run = None
        self.waiting, self.keys, self.queries = [], {}, {}

    @property
    def waiting_bytes(self) -> int:
        """Bytes of everything that waits for the end of the prompt."""
        tensors = [tensor for pair in self.waiting for tensor in pair]
        tensors += [*self.keys.values(), *self.queries.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Totals:
    """What was read so far; a preempted prompt counts each time.

    Attributes:
        prompts, prompts_off: complete prompts under the policy, and with the policy off.
        tokens: tokens of the prompts under the policy.
        layer_tokens: tokens times layers that the stock model would have computed of these.
        layer_tokens_kept: those that were computed.
    """

    prompts: int = 0
    prompts_off: int = 0
    tokens: int = 0
    layer_tokens: int = 0
    layer_tokens_kept: int = 0

    def add(self, length: int, held: list[int], stages: list[range]) -> None:
        """Counts a prompt of which the stages after the first hold so many tokens."""
        self.prompts += 1
        self.tokens += length
        self.layer_tokens += length * sum(map(len, stages))
        self.layer_tokens_kept += sum(count * len(stage) for count, stage in zip([length, *held], stages, strict=True))


@dataclass(frozen=True)
class Segment:
    """The rows of one request that are alive in a stage.

    Attributes:
        part: the request's share of the step.
        past: entries that the layers of this stage hold of it before the step.
        rows: `(alive,)` indices of its rows among the rows before the last selection, and behind these the rows that
            waited.
        origin: `(alive,)` their rows in the flat batch, `-1` for those of earlier steps.
        positions: `(alive,)` original positions.
    """

    part: Part
    past: int
    rows: Tensor
    origin: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def tokens_at(positions: Tensor) -> Tokens:
    """A prompt of which the tokens at `positions` `(tokens,)` are alive, the last one being its last, as one row."""
    count = len(positions)
    return Tokens(
        hidden=torch.empty(1, count, 0),
        positions=positions[None],
        valid=torch.ones(1, count, dtype=torch.bool),
        padded=False,
        rotary=cast(Any, None),  # the engine's layers rotate by positions
        ends=torch.tensor([count - 1]),
    )


def boundaries_of(policy: PromptDistill, config: Any) -> list[int]:
    """The layers after which tokens may be dropped, ascending."""
    return sorted(policy.layers_of(config))


def stages_of(boundaries: list[int], depth: int) -> list[range]:
    """The layers of each stage: up to the first boundary, and after each one."""
    ends = [*(boundary + 1 for boundary in boundaries), depth]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def entries(tokens: int, length: int, held: int) -> int:
    """Entries that a later layer has of the first `tokens` tokens of a request; blocks are reserved by it, too.

    Args:
        length: tokens of the prompt.
        held: how many of them the layer holds once the prompt has been read.
    """
    return min(tokens, held + max(0, tokens - length))


class Retention:
    """All requests of a model under its policy. One object a model; `step` is called once for each step.

    Args:
        config: the model's.
        policy: the model's policy; requests may turn it off, or say how many tokens ask.
        scaling: that of the model's attention.

    Attributes:
        states: by request id, of the requests that are alive and under the policy.
        totals: what was read so far.
    """

    def __init__(self, config: Any, policy: PromptDistill, scaling: float) -> None:
        self.config, self.policy, self.softmax = config, policy, Softmax(scaling)
        self.boundaries = boundaries_of(policy, config)
        self.stages = stages_of(self.boundaries, config.num_hidden_layers)
        self.states: dict[str, State] = {}
        self.totals = Totals()

    def drop(self, request: str) -> None:
        """Forgets a request that has finished, was aborted or preempted, or whose step failed."""
        self.states.pop(request, None)

    def step(self, parts: list[Part]) -> Step | None:
        """The plan of one step; `None` where no request in it is under the policy."""
        self.totals.prompts_off += sum(
            part.policy is None and part.computed < part.length <= part.computed + part.count for part in parts
        )
        if not any(part.policy for part in parts):
            return None
        for part in parts:
            if part.policy is not None and part.computed == 0:
                self.states[part.request] = self._begun(part)
        return Step(self, parts)

    def _begun(self, part: Part) -> State:
        assert part.policy is not None
        tokens = tokens_at(torch.arange(part.length))
        decoder = cast(Any, SimpleNamespace(config=self.config))
        return State(part.policy.begin(Call(decoder, tokens, past=0, cache=None)), tokens)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of all rows, keys and queries that wait for the end of their prompt."""
        return sum(state.waiting_bytes for state in self.states.values())


class Step:
    """One step: told what each layer was given, asked after each stage which rows go on.

    Attributes:
        segments: the rows of each request that are alive in the present stage, in the order of the flat batch.
    """

    def __init__(self, retention: Retention, parts: list[Part]) -> None:
        self.retention, self.stage = retention, 0
        self.parts = parts
        total = sum(part.count for part in parts)
        rows = torch.arange(total)
        self.total = total
        self.segments = [
            Segment(part, part.computed, own, own, torch.arange(part.computed, part.computed + part.count))
            for part in parts
            for own in [rows[part.start : part.start + part.count]]
        ]

    def state(self, part: Part) -> State:
        """What is remembered of a request of this step.

        Raises:
            RuntimeError: nothing, although some of its tokens were read before.
        """
        if part.request not in self.retention.states:
            raise RuntimeError(f"request {part.request}: {part.computed} tokens were read, but not under the policy")
        return self.retention.states[part.request]

    def wants(self, layer: int) -> bool:
        """Whether `see` is to be called with what this layer's attention was given."""
        return any(
            segment.part.reading and (run := self.state(segment.part).run) is not None and run.observes(layer)
            for segment in self.segments
        )

    def see(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Takes the rotated queries `(rows, heads, head_dim)` and keys `(rows, kv_heads, head_dim)` of a layer."""
        start = 0
        for segment in self.segments:
            own = slice(start, start + len(segment))
            start += len(segment)
            part = segment.part
            if not part.reading:
                continue
            state = self.state(part)
            if state.run is None or not state.run.observes(layer):
                continue
            assert part.policy is not None
            # the place of each row among the tokens of the prompt that are alive; behind these come generated tokens,
            # which a preempted request reads again
            place = segment.positions if self.stage == 0 else torch.arange(len(segment))
            prompt = place < state.tokens.count
            asks = prompt & (place >= state.tokens.count - part.policy.observation_window)
            found = {"keys": key[own][prompt], "queries": query[own][asks]}
            for name, rows in found.items():
                rows = rows.transpose(0, 1)[None]  # (1, heads, tokens, head_dim)
                earlier = getattr(state, name).get(layer)
                getattr(state, name)[layer] = rows.clone() if earlier is None else torch.cat([earlier, rows], dim=2)
            if part.completing:
                self._observe(state, layer)

    def _observe(self, state: State, layer: int) -> None:
        keys, queries = state.keys.pop(layer), state.queries.pop(layer)
        count = state.tokens.count
        groups = queries.shape[1] // keys.shape[1]
        assert state.run is not None and keys.shape[2] == count
        seen = Observation(
            layer=cast(Any, None),
            hidden=state.tokens.hidden,
            module=cast(Any, SimpleNamespace(num_key_value_groups=groups)),
            query=queries,
            key=keys,
            value=keys,  # no score of PromptDistill reads values
            softmax=self.retention.softmax,
            start=count - queries.shape[2],
            stop=count,
            tokens=state.tokens,
        )
        state.run.observe(layer, seen)

    def choose(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Ends a stage: the rows that go on, of the hidden states and residuals `(rows, hidden)`.

        `segments` are those of the next stage afterwards.
        """
        boundary, first = self.retention.boundaries[self.stage], self.stage == 0
        joined: list[tuple[Tensor, Tensor]] = []
        behind = len(hidden)  # rows that waited are counted behind those of this step
        segments: list[Segment] = []
        start = 0
        for segment in self.segments:
            part, own = segment.part, torch.arange(start, start + len(segment))
            start += len(segment)
            if part.policy is None:
                segments.append(replace(segment, rows=own))
            elif not part.reading:
                past = part.computed - part.length + self.state(part).held[self.stage]
                segments.append(replace(segment, rows=own, past=past))
            elif not part.completing:
                self.state(part).waiting.append((hidden[own], residual[own]))
            else:
                state = self.state(part)
                segment = replace(segment, rows=own, past=0)
                if first:
                    waited = sum(len(pair[0]) for pair in state.waiting)
                    if waited != part.computed:
                        raise RuntimeError(
                            f"request {part.request}: {waited} of {part.computed} rows wait; a prompt that grows "
                            "after it was read (streaming input) cannot be run under a policy"
                        )
                    joined += state.waiting
                    segment = replace(
                        segment,
                        rows=torch.cat([torch.arange(behind, behind + waited), own]),
                        origin=torch.cat([torch.full((waited,), -1), segment.origin]),
                        positions=torch.cat([torch.arange(waited), segment.positions]),
                    )
                    behind += waited
                segments.append(self._chosen(state, segment, boundary))
        rows = torch.cat([segment.rows for segment in segments]) if segments else torch.arange(0)
        self.segments, self.stage = segments, self.stage + 1
        if len(rows) == behind == len(hidden):
            return hidden, residual
        rows = rows.to(hidden.device)
        both = torch.cat([hidden, *(pair[0] for pair in joined)]), torch.cat([residual, *(pair[1] for pair in joined)])
        return both[0][rows], both[1][rows]

    def _chosen(self, state: State, segment: Segment, boundary: int) -> Segment:
        """The rows of a complete prompt that go on, and the tokens generated behind it."""
        tokens = state.tokens
        retention = None if state.run is None else state.run.retain(boundary, tokens)
        if retention is not None:
            keep = retention.keep[0].cpu()
            state.tokens = tokens_at(tokens.positions[0, keep])
            keep = torch.cat([keep, torch.ones(len(segment) - tokens.count, dtype=torch.bool)])
            segment = replace(
                segment,
                rows=segment.rows[keep],
                origin=segment.origin[keep],
                positions=segment.positions[keep],
            )
        state.held.append(state.tokens.count)
        state.kept.append(state.tokens.positions[0])
        if len(state.held) == len(self.retention.boundaries):
            state.forget()
            self.retention.totals.add(segment.part.length, state.held, self.retention.stages)
        elif self.stage == 0:
            state.waiting = []
        return segment

    @property
    def positions(self) -> Tensor:
        """`(rows,)` original positions of the rows that are alive."""
        return torch.cat([segment.positions for segment in self.segments]) if self.segments else torch.arange(0)

    def restored(self, hidden: Tensor) -> Tensor:
        """The rows that reached the end, each at its row of the flat batch; the others are zero."""
        origin = torch.cat([segment.origin for segment in self.segments]) if self.segments else torch.arange(0)
        if len(origin) == self.total and bool((origin == torch.arange(self.total)).all()):
            return hidden
        output = hidden.new_zeros(self.total, hidden.shape[1])
        inside = origin >= 0
        output[origin[inside].to(hidden.device)] = hidden[inside.to(hidden.device)]
        return output

    def failed(self) -> None:
        """Forgets the requests of this step, whose state may be half of the old and half of the new."""
        for part in self.parts:
            self.retention.drop(part.request)
