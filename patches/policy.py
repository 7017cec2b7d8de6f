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

from distill.patches.cache import KeptLayer

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
            ends=indices.shape[1] - kept_after,
        )


@dataclass
class Call:
    """One forward call, as a policy sees it when it begins.

    Attributes:
        decoder: the model that runs the layers.
        tokens: the tokens of this call, before the first layer.
        past: tokens seen before this call.
        cache: the cache of this call, or None.
        reduce: sums a tensor over the ranks that share the heads (tensor parallelism), and their number.
    """

    decoder: nn.Module
    tokens: Tokens
    past: int
    cache: Cache | None
    reduce: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    ranks: int = 1


@dataclass
class Observation:
    """What attention was given at one layer, for the tokens `[start, stop)` of those alive there.

    Attributes:
        module: the attention module.
        query: `(batch, heads, stop - start, head_dim)`, rotated.
        key, value: `(batch, kv_heads, held + stop, head_dim)`; entries from before this call come first.
        tokens: the tokens alive at this layer.
    """

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


@dataclass(frozen=True)
class Policy:
    """Settings of one method. Subclasses are frozen dataclasses whose fields are JSON values or tuples of them."""

    name: ClassVar[str]

    def check(self, config: Any) -> None:
        """Raises a `ValueError` if this policy cannot run on a model of this config."""

    def begin(self, call: Call) -> Run | None:
        """The run for one forward call; `None` if this call drops nothing."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"name": ..., argument: value, ...}`."""
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


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
    return cls(**arguments)


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
