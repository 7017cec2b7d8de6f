"""The contract between a method and the loop, and the registry of methods.

A `Policy` holds settings only: a frozen dataclass that can be written to JSON. What it learns while a prompt is read
lives in a `Run`, made anew for every forward call, so one policy serves any number of models, calls and threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from distill.patches.cache import PADDING, KeptLayer

_REGISTRY: dict[str, type[Policy]] = {}


@dataclass
class Tokens:
    """The tokens that are alive at some layer. Columns are indices into them.

    Attributes:
        hidden: `(batch, tokens, hidden)`.
        positions: `(batch, tokens)` original positions.
        valid: bool `(batch, tokens)`; False for padding.
        padded: whether any entry of `valid` is False.
        rotary: `(cos, sin)`, each `(batch, tokens, rotary_dim)`, at the original positions.
        ends: `(batch,)` column of the last prompt token: it and all after it are never dropped.
    """

    hidden: Tensor
    positions: Tensor
    valid: Tensor
    padded: bool
    rotary: tuple[Tensor, Tensor]
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
    def prompt(self) -> Tensor:
        """bool `(batch, tokens)`: real tokens up to the last prompt token, this included."""
        columns = torch.arange(self.count, device=self.valid.device)
        return self.valid & (columns <= self.ends[:, None])

    def at(self, indices: Tensor) -> Tokens:
        """The tokens at `indices` `(batch, kept)`: ascending, `-1` at the front of short rows."""
        real = indices >= 0
        index = indices.clamp(min=0)
        kept_after = (real & (indices >= self.ends[:, None])).sum(1)

        def rows(tensor: Tensor) -> Tensor:
            where = index.to(tensor.device)[..., None].expand(-1, -1, tensor.shape[-1])
            return tensor.expand(len(index), -1, -1).gather(1, where)

        return Tokens(
            hidden=rows(self.hidden),
            positions=self.positions.gather(1, index),
            valid=real,
            padded=not bool(real.all()),
            rotary=(rows(self.rotary[0]), rows(self.rotary[1])),
            ends=(indices.shape[1] - kept_after).clamp(max=indices.shape[1] - 1),
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
        reduce: sums a tensor over the ranks that share the heads (tensor parallelism), and their number.
    """

    decoder: nn.Module
    tokens: Tokens
    past: int
    cache: Cache | None
    input_ids: Tensor | None = None
    reduce: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    ranks: int = 1

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return self.decoder.config.num_hidden_layers


@dataclass
class Observation:
    """What attention was given at one layer, for the tokens `[start, stop)` of those alive there.

    Attributes:
        layer: the decoder layer, and `hidden` `(batch, stop - start, hidden)` what went into it.
        module: its attention module.
        query: `(batch, heads, stop - start, head_dim)`, rotated.
        key, value: `(batch, kv_heads, held + stop, head_dim)`; entries from before this call come first.
        tokens: the tokens alive at this layer.
    """

    layer: nn.Module
    hidden: Tensor
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    start: int
    stop: int
    tokens: Tokens

    @property
    def complete(self) -> bool:
        """Whether the keys of all tokens alive at this layer are there."""
        return self.stop == self.tokens.count

    @property
    def own_key(self) -> Tensor:
        """Keys of this call's tokens only: `(batch, kv_heads, stop, head_dim)`."""
        return self.key[:, :, -self.stop :]

    @property
    def prompt_positions(self) -> Tensor:
        """Original positions `(batch, stop)` of this call's tokens, `-1` for padding and what follows the prompt."""
        return self.tokens.positions.masked_fill(~self.tokens.prompt, PADDING)[:, : self.stop]

    @property
    def own_value(self) -> Tensor:
        """Values of this call's tokens only: `(batch, kv_heads, stop, head_dim)`."""
        return self.value[:, :, -self.stop :]


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


@dataclass(frozen=True)
class Policy:
    """Settings of one method. Subclasses are frozen dataclasses of JSON values, policies, or tuples of them."""

    name: ClassVar[str]

    def check(self, config: Any) -> None:
        """Raises a `ValueError` if this policy cannot run on a model of this config."""

    def begin(self, call: Call) -> Run | None:
        """The run for one forward call; `None` if this call drops nothing."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"name": ..., argument: value, ...}`."""
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name} | {name: _to_json(value) for name, value in arguments.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, Policy):
        return value.to_dict()
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return tuple(map(as_policy, value))
    return as_policy(value) if isinstance(value, dict) else value


P = TypeVar("P", bound=type[Policy])


def register(cls: P) -> P:
    """Class decorator: makes a policy known by its `name`.

    Raises:
        ValueError: another class has that name.
    """
    if _REGISTRY.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"name: {cls.name!r} is taken by {_REGISTRY[cls.name].__name__}")
    return cls


def policies() -> list[str]:
    """Names of all registered policies."""
    return sorted(_REGISTRY)


def policy_class(name: str) -> type[Policy]:
    """The class registered as `name`.

    Raises:
        ValueError: no such name; the message lists those that exist.
    """
    if name not in _REGISTRY:
        raise ValueError(f"policy: unknown name {name!r}; known are {', '.join(policies())}")
    return _REGISTRY[name]


def policy(name: str, **arguments: Any) -> Policy:
    """Makes the policy registered as `name`.

    Raises:
        ValueError: unknown name, unknown or missing argument, or a value that is not allowed.
    """
    cls = policy_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(arguments) - set(fields))
    if unknown:
        raise ValueError(f"policy {name!r}: unknown argument {unknown[0]!r}; allowed are {', '.join(fields)}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [n for n in required if n not in arguments]
    if missing:
        raise ValueError(f"policy {name!r}: argument {missing[0]!r} is missing")
    return cls(**{name: _from_json(value) for name, value in arguments.items()})


def as_policy(value: Any) -> Policy | None:
    """Reads a policy given as an object, its JSON form, its name (if its arguments have defaults) or `None`."""
    if value is None or isinstance(value, Policy):
        return value
    if isinstance(value, str):
        return policy(value)
    if isinstance(value, dict) and "name" in value:
        return policy(**value)
    raise ValueError(f"policy: got {value!r}; allowed are a Policy, its name, its to_dict() form, or None")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises a `ValueError` unless `value` is an integer (no bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {value!r}; allowed are integers >= {least}")


def check_budget(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a number of tokens (integer >= 1) or a fraction (float in (0, 1))."""
    if isinstance(value, float) and 0 < value < 1:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; allowed are integers >= 1 (tokens) or floats in (0, 1) (a fraction)")


def budget_tokens(budget: int | float, lengths: Tensor) -> Tensor:
    """Tokens a budget allows in rows of the given lengths `(batch,)`: fractions are rounded down, to at least one."""
    if isinstance(budget, int):
        return torch.full_like(lengths, budget)
    return (lengths.double() * budget).long().clamp(min=1)
