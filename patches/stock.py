"""How a stock decoder's own `forward` is used around our layer loop.

What a model does before and after its layers (scaled embeddings, rotary tables for each type of layer, norms at the
end) differs from architecture to architecture, and all of it stands in the stock `forward`. So that `forward` runs
as it is, on a view of the model in which each layer has been replaced by a stand-in. A stand-in notes what its layer
would have been given. The last one hands what was noted to our loop, which runs the real layers, and returns what
came out of it to the stock `forward`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

#: what the loop itself decides for every layer
_OURS = ("attention_mask", "position_ids", "position_embeddings", "past_key_values", "use_cache")


@dataclass(frozen=True)
class Rotary:
    """What layers rotate queries and keys by, at the positions of some tokens.

    Attributes:
        tables: the different ones, by any key; each is a tuple of tensors `(batch or 1, tokens, rotary_dim)`, such as
            cosines and sines, or one tensor, or `None` for layers that are given none.
        used: for each layer, the key of its table.
        places: `(batch or 1, tokens, 1)` the positions that the tables are for.
        counting: for each layer, whether its attention reads positions itself, beside its table.
    """

    tables: dict[int, Any]
    used: tuple[int, ...]
    places: Tensor
    counting: tuple[bool, ...]

    def of(self, layer_idx: int) -> Any:
        """The table of one layer."""
        return self.tables[self.used[layer_idx]]

    def rows(self, layer_idx: int, start: int, stop: int) -> Any:
        """The table of one layer, for the tokens `[start, stop)`."""
        return _each(self.of(layer_idx), lambda part: part[:, start:stop])

    def positions(self, layer_idx: int, start: int, stop: int) -> Tensor | None:
        """Positions `(batch or 1, stop - start)`, if the attention of this layer reads them."""
        return self.places[:, start:stop, 0] if self.counting[layer_idx] else None

    def map(self, function: Callable[[Tensor], Tensor]) -> Rotary:
        """All tables, after a function of one tensor."""
        tables = {key: _each(table, function) for key, table in self.tables.items()}
        return replace(self, tables=tables, places=function(self.places))


def _each(table: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(table, Tensor):
        return function(table)
    return None if table is None else tuple(function(part) for part in table)


@dataclass(frozen=True)
class Start:
    """What the layers of a model begin with.

    Attributes:
        hidden: `(batch, tokens, hidden)`, what goes into the first layer.
        rotary: the rotary tables of all layers.
        kwargs: for each layer, its further arguments.
    """

    hidden: Tensor
    rotary: Rotary
    kwargs: tuple[dict[str, Any], ...]


class _Prepared(Exception):
    """Ends a stock `forward` once its layers have been reached."""

    def __init__(self, start: Start) -> None:
        self.start = start


class _StandIn:
    """Takes the place of one layer; other attributes are those of the layer."""

    def __init__(self, layer: nn.Module, call: Callable[..., Tensor]) -> None:
        self._layer, self._call = layer, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1:
            names = list(inspect.signature(self._layer.forward).parameters)
            kwargs = dict(zip(names[1:], args[1:])) | kwargs  # noqa: B905  (there are more names than arguments)
        return self._call(args[0] if args else kwargs.pop("hidden_states"), kwargs)


class _Recorder:
    """What the stand-ins of all layers note."""

    def __init__(self, layers: Iterable[nn.Module], known: dict[str, Any], loop: Callable[[Start], Tensor]) -> None:
        self.stands = [_StandIn(layer, self.note) for layer in layers]
        self.known, self.loop = known, loop
        self.hidden: Tensor | None = None
        self.given: list[dict[str, Any]] = []

    def note(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if self.hidden is None:
            self.hidden = hidden
        elif hidden is not self.hidden:
            raise ValueError(
                "model: got a stock forward that changes hidden states between its layers; allowed under a policy are "
                "those that hand them from layer to layer as they are"
            )
        for name, value in kwargs.items():
            if name not in _OURS and isinstance(value, Tensor) and value is not self.known.get(name):
                raise ValueError(
                    f"model: got a stock forward that gives its layers a tensor {name!r}, which may belong to tokens; "
                    "allowed under a policy are hidden states, masks, positions and rotary tables"
                )
        self.given.append(kwargs)
        return self.loop(self._start(hidden)) if len(self.given) == len(self.stands) else hidden

    def _start(self, hidden: Tensor) -> Start:
        tables = [given.get("position_embeddings") for given in self.given]
        counting = tuple(_counts(type(stand.self_attn).forward) for stand in self.stands)
        places = self.known["position_ids"][..., None]
        # layers that are given the same table share what is made of it
        rotary = Rotary({id(table): table for table in tables}, tuple(map(id, tables)), places, counting)
        rest = tuple({name: value for name, value in given.items() if name not in _OURS} for given in self.given)
        return Start(hidden, rotary, rest)


@cache
def _counts(forward: Callable[..., Any]) -> bool:
    """Whether this `forward` of an attention class has an argument of its own for positions."""
    return "position_ids" in inspect.signature(forward).parameters


def around_layers(decoder: Any, forward: Callable[..., Any], loop: Callable[[Start], Tensor], **inputs: Any) -> Any:
    """Runs a stock `forward` with our loop in place of its layers.

    Args:
        decoder: the base model; nothing is stored on it.
        forward: the function `forward` of its stock class.
        loop: given what the layers begin with, runs them: `(batch, any number of tokens, hidden)`.
        inputs: `input_ids` or `inputs_embeds`, `position_ids` `(batch or 1, tokens)`, and what the caller passed on.
    Returns:
        what the stock `forward` returns.
    Raises:
        ValueError: a stock `forward` that does more than hand hidden states from one layer to the next.
    """
    recorder = _Recorder(decoder.layers, inputs, loop)
    view = object.__new__(type(decoder))
    view.__dict__.update(decoder.__dict__ | {"layers": recorder.stands})  # found before the module of that name
    # a mask of four dimensions is handed on as it is, so that no mask is made that the loop does not use
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs["position_ids"].device)
    # the decorators of `forward` record what layers return; the caller of the loop does that already
    function = inspect.unwrap(forward)
    return function(view, **inputs | {"attention_mask": mask, "past_key_values": None, "use_cache": False})


def prepare(decoder: Any, **inputs: Any) -> Start:
    """What the layers of a model begin with, for other inputs than those of the call; no layer runs.

    Args:
        decoder: a model with the method `around_layers`.
        inputs: `input_ids` or `inputs_embeds`, and `position_ids`.
    """

    def stop(start: Start) -> Tensor:
        raise _Prepared(start)

    try:
        decoder.around_layers(stop, **inputs)
    except _Prepared as prepared:
        return prepared.start
    raise ValueError(f"model: got a {type(decoder).__name__} without layers; allowed are models that have some")


def rotation(module: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Callable[..., Tensor] | None:
    """How a layer rotates its queries: a function of vectors, cosines and sines; `None` if it does not.

    It is found by running the attention on one token, with its tables and with ones that turn nothing.

    Args:
        module: an attention module that can be observed.
        hidden: `(batch, 1, hidden)`, the token.
        cos, sin: `(batch or 1, 1, rotary_dim)`.
    Raises:
        ValueError: queries are changed in another way, or once more after they have been rotated.
    """
    seen: list[Tensor] = []
    for tables in ((torch.ones_like(cos), torch.zeros_like(sin)), (cos, sin)):
        module(
            hidden_states=hidden,
            position_embeddings=tables,
            attention_mask=None,
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=hidden.device),
            past_key_values=None,
            observer=lambda _, query, *rest: seen.append(query.float()),
        )
    plain, turned = seen
    if torch.equal(plain, turned):
        return None
    function = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if function is not None:

        def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return function(vectors, vectors, cos, sin)[0]

        error = (rotate(plain, cos.float(), sin.float()) - turned).abs().max()
        if bool(error <= 0.02 * turned.abs().max()):  # bfloat16 has 8 bits
            return rotate
    raise ValueError(
        "policy: got one that rotates queries, for a model whose queries are not simply rotated "
        f"({type(module).__name__}); allowed are models whose attention rotates queries last, by a function "
        "apply_rotary_pos_emb of its module"
    )


def tables_at(decoder: Any, positions: Tensor, layer_idx: int) -> Any:
    """The rotary table of a layer at any positions `(batch, tokens)`, in float32.

    Some rotary embeddings remember the largest position that they were asked for, so a copy of them is asked.
    """
    view = object.__new__(type(decoder))
    view.__dict__.update(decoder.__dict__)
    rotary = {name: deepcopy(part) for name, part in decoder._modules.items() if "rotary" in name}
    view.__dict__["_modules"] = decoder._modules | rotary
    hidden = torch.zeros((), device=positions.device).expand(*positions.shape, decoder.config.hidden_size)
    return prepare(view, inputs_embeds=hidden, position_ids=positions).rotary.of(layer_idx)
