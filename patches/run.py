"""What a method is told during one forward call, and what it answers: tokens, observations, decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from distill.patches.cache import KeptLayer
from distill.patches.layout import PADDING
from distill.patches.selection import Softmax
from distill.patches.stock import Rotary, Start

#: what architectures call the output projection of attention, and the norm before attention
OUTPUT_PROJECTIONS = ("o_proj", "dense", "out_proj")
INPUT_NORMS = ("input_layernorm", "attention_layernorm")


class Attention(Protocol):
    """The parts of an attention module that methods read."""

    config: Any
    scaling: float
    num_key_value_groups: int
    o_proj: nn.Linear


class Layer(Protocol):
    """The parts of a decoder layer that methods read."""

    self_attn: nn.Module

    def __call__(self, hidden: Tensor, **kwargs: Any) -> Tensor: ...


class Decoder(Protocol):
    """The parts of a base model that the layer loop uses.

    Attributes:
        config: the model's.
        layers: the decoder layers, in order.
    """

    config: Any
    layers: Sequence[Layer]

    def around_layers(self, loop: Callable[[Start], Tensor], **inputs: Any) -> Any:
        """Does what the model does around its layers, with `loop` in their place.

        Args:
            loop: given what the layers begin with, runs them: `(batch, any number of tokens, hidden)`.
            inputs: `input_ids` or `inputs_embeds`, `position_ids` `(batch or 1, tokens)`, and what the caller passed
                on.
        Returns:
            the output of the stock model, with what the loop returned as its hidden states.
        """


@dataclass
class Tokens:
    """The tokens that are alive at some layer. Columns are indices into them.

    Attributes:
        hidden: `(batch, tokens, hidden)`.
        positions: `(batch, tokens)` original positions.
        valid: bool `(batch, tokens)`; False for padding.
        padded: whether any entry of `valid` is False.
        rotary: the rotary tables of all layers, at the original positions.
        ends: `(batch,)` column of the last prompt token: it and all after it are never dropped.
    """

    hidden: Tensor
    positions: Tensor
    valid: Tensor
    padded: bool
    rotary: Rotary
    ends: Tensor

    @property
    def count(self) -> int:
        return self.valid.shape[1]

    @property
    def droppable(self) -> Tensor:
        """bool `(batch, tokens)`: real tokens before the last prompt token."""
        columns = torch.arange(self.count, device=self.valid.device)
        return self.valid & (columns < self.ends[:, None])

    @property
    def marked(self) -> Tensor:
        """Original positions `(batch, tokens)`, `-1` for padding."""
        return self.positions.masked_fill(~self.valid, PADDING)

    @property
    def prompt(self) -> Tensor:
        """bool `(batch, tokens)`: real tokens up to the last prompt token, this included."""
        columns = torch.arange(self.count, device=self.valid.device)
        return self.valid & (columns <= self.ends[:, None])

    def at(self, indices: Tensor) -> Tokens:
        """The tokens at `indices` `(batch, kept)`: ascending, `-1` at the front of short rows."""
        real = indices >= 0
        index = indices.clamp(min=0)

        def rows(tensor: Tensor) -> Tensor:
            where = index.to(tensor.device)[..., None].expand(-1, -1, tensor.shape[-1])
            return tensor.expand(len(index), -1, -1).gather(1, where)

        return Tokens(
            hidden=rows(self.hidden),
            positions=self.positions.gather(1, index),
            valid=real,
            padded=not bool(real.all()),
            rotary=self.rotary.map(rows),
            ends=(indices < self.ends[:, None]).sum(1).clamp(max=indices.shape[1] - 1),
        )


@dataclass
class Call:
    """One forward call, as a policy sees it when it begins.

    Attributes:
        decoder: the model that runs the layers.
        tokens: the tokens of this call, before the first layer.
        past: tokens seen before this call.
        cache: the cache of this call, or None.
        input_ids: `(batch, tokens)`, or None if embeddings were given.
        reduce: sums a tensor over the ranks that share the heads under tensor parallelism; with `most=True` it takes
            the largest values instead. `ranks`: the number of those ranks.
        question_tokens: `(batch,)` how many of the last prompt tokens ask the question, or None if nobody said so.
    """

    decoder: Decoder
    tokens: Tokens
    past: int
    cache: Cache | None
    input_ids: Tensor | None = None
    reduce: Callable[..., Tensor] = field(default=lambda tensor, most=False: tensor)
    ranks: int = 1
    question_tokens: Tensor | None = None

    def mean_of_ranks(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the ranks that share the heads."""
        return self.reduce(tensor) / self.ranks

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return int(self.decoder.config.num_hidden_layers)


@dataclass
class Observation:
    """What attention was given at one layer, for the tokens `[start, stop)` of those alive there.

    Attributes:
        layer: the decoder layer, and `hidden` `(batch, stop - start, hidden)` what went into it.
        module: its attention module.
        query: `(batch, heads, stop - start, head_dim)`, rotated.
        key, value: `(batch, kv_heads, held + stop, head_dim)`; entries from before this call come first.
        softmax: how this layer makes probabilities of products of queries and keys.
        tokens: the tokens alive at this layer.
    """

    layer: Layer
    hidden: Tensor
    module: Attention
    query: Tensor
    key: Tensor
    value: Tensor
    softmax: Softmax
    start: int
    stop: int
    tokens: Tokens

    @property
    def complete(self) -> bool:
        """Whether the keys of all tokens alive at this layer are there."""
        return self.stop == self.tokens.count

    @property
    def output_weight(self) -> Tensor:
        """Weight of the attention module's output projection, `(hidden, heads * head_dim)`.

        Raises:
            ValueError: the module has none under a known name.
        """
        for name in OUTPUT_PROJECTIONS:
            if hasattr(self.module, name):
                return getattr(self.module, name).weight
        raise ValueError(
            f"policy: got one that weighs values by the output projection, which a {type(self.module).__name__} does "
            f"not have; allowed are modules with {' or '.join(OUTPUT_PROJECTIONS)}"
        )

    @property
    def attended(self) -> Tensor:
        """What the attention module was given, `(batch, stop - start, hidden)`: `hidden`, after the norm before it."""
        for name in INPUT_NORMS:
            if hasattr(self.layer, name):
                return getattr(self.layer, name)(self.hidden)
        return self.hidden  # some architectures only normalise what comes out of attention

    @property
    def own_key(self) -> Tensor:
        """Keys of this call's tokens only: `(batch, kv_heads, stop, head_dim)`, one per KV head of the model."""
        return self.key[:, :: self.repeats, -self.stop :]

    @property
    def repeats(self) -> int:
        """How often the cache holds the keys of a KV head: more than once where it keeps one set per query head."""
        return self.module.num_key_value_groups * self.key.shape[1] // self.query.shape[1]

    @property
    def prompt_positions(self) -> Tensor:
        """Original positions `(batch, stop)` of this call's tokens, `-1` for padding and what follows the prompt."""
        return self.tokens.positions.masked_fill(~self.tokens.prompt, PADDING)[:, : self.stop]

    @property
    def own_value(self) -> Tensor:
        """Values of this call's tokens only: `(batch, kv_heads, stop, head_dim)`, one per KV head of the model."""
        return self.value[:, :: self.repeats, -self.stop :]


@dataclass
class Retention:
    """Which tokens go on to the next layer.

    Attributes:
        keep: bool `(batch, tokens)`.
        truncate: whether the caches of the layers so far drop the others too, at once.
        scores: `(batch, tokens)`, what the choice was made by; reported on the model's output.
    """

    keep: Tensor
    truncate: bool = False
    scores: Tensor | None = None


class Run:
    """What a policy does during one forward call. Override what the method needs."""

    #: layers after which tokens may be dropped; the layers between two of them form a stage
    boundaries: Iterable[int] = ()
    #: if set: layers up to this one run first, with no trace in the cache; `restart` says what the call begins with
    scout: int | None = None

    def observes(self, layer_idx: int) -> bool:
        """Whether `observe` is to be called at this layer."""
        return False

    def observe(self, layer_idx: int, seen: Observation) -> None:
        """Called after the attention of a layer, once a chunk of the prompt."""

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        """Called after a boundary layer has run on all tokens. `None`: all go on."""
        return None

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        """Called after each layer has run on all tokens: the entries its cache keeps, as for `KeptLayer.keep`."""
        return None

    @property
    def shortens(self) -> bool:
        """Whether the model may return fewer rows than it was given tokens."""
        return self.scout is not None or bool(tuple(self.boundaries))

    def restart(self, tokens: Tokens) -> Retention:
        """Called after the scouting pass: the tokens that are run through all layers, at positions from 0 on.

        No further method of this run is called.
        """
        raise NotImplementedError

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        """Called after the last layer, if there is a cache; may drop more of it.

        Args:
            replay: `replay(input_ids, valid, run)`, both `(batch, tokens)`, reads further tokens right behind each
                row's prompt, under `run`, and then takes them back.
        """
