"""What a model's linear layers are given on calibration text: second moments, layer by layer, and sensitivities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from distill.compression.spec import name_of

#: names of linear layers that choose experts: small, and everything depends on them
ROUTERS = ("gate", "router", "shared_expert_gate")


def windows(ids: Sequence[int], length: int, count: int) -> Tensor:
    """`(count, length)` windows of token ids, spread evenly over a text.

    Raises:
        ValueError: the text has fewer than `count * length` tokens.
    """
    if length < 2 or count < 1 or len(ids) < length * count:
        raise ValueError(
            f"calibration: got a text of {len(ids):,} tokens; allowed for {count} windows of {length} are "
            f"{count * length:,} and more"
        )
    step = len(ids) // count
    return torch.tensor([list(ids[i * step : i * step + length]) for i in range(count)])


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal LM.

    Raises:
        ValueError: a model whose layers are not found.
    """
    for name in ("layers", "h"):
        found = getattr(model.base_model, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise ValueError(f"model: got a {type(model).__name__}; allowed are models whose decoder has `layers` or `h`")


def linears_of(model: Any) -> dict[str, nn.Module]:
    """The linear layers inside the decoder layers, by name, in the order in which they stand; routers are left out."""
    prefix = name_of(model, layers_of(model))
    return {
        f"{prefix}.{name}": module
        for name, module in layers_of(model).named_modules()
        if type(module) in (nn.Linear, Conv1D) and name.rpartition(".")[2] not in ROUTERS
    }


def matrix_of(module: Any) -> Tensor:
    """`(out, in)`: the weights of a linear layer, or of a Conv1D, which holds them the other way round."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


class _Stop(Exception):
    pass


class Walk:
    """Runs calibration windows through a decoder, one layer at a time.

    What a layer is given besides hidden states (masks, positions, rotary tables) is the same for all windows, which
    are equally long; it is caught in one pass of the stock model.

    Args:
        model: a causal LM in eval mode.
        inputs: `(windows, length)` token ids.
    """

    def __init__(self, model: Any, inputs: Tensor) -> None:
        self.layers = layers_of(model)
        self.given: list[tuple[dict[str, Any], tuple[Any, ...]]] = [({}, ())] * len(self.layers)
        self.hidden: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(self._catch(index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]
        with torch.no_grad():
            for number, row in enumerate(inputs):
                if number == 1:
                    for handle in handles[1:]:
                        handle.remove()
                    if len(self.layers) > 1:
                        handles.append(self.layers[1].register_forward_pre_hook(_stop))
                with suppress(_Stop):
                    model.base_model(row[None].to(model.device), use_cache=False)
        for handle in handles:
            handle.remove()

    def _catch(self, index: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            self.given[index] = (rest, args[1:])
            if index == 0:
                self.hidden.append((args[0] if args else kwargs["hidden_states"]).detach())

        return hook

    @torch.no_grad()
    def through(self, index: int) -> list[Tensor]:
        """The outputs of a layer, for the hidden states that the walk has come to; it stays where it is."""
        kwargs, args = self.given[index]
        found = []
        for hidden in self.hidden:
            out = self.layers[index](hidden, *args, **kwargs)
            found.append(out[0] if isinstance(out, tuple) else out)
        return found

    def step(self, index: int) -> None:
        """Goes on behind a layer."""
        self.hidden = self.through(index)

    def moments(self, index: int) -> dict[str, Tensor]:
        """Second moments of the inputs of a layer's linear layers, by name inside the layer, float64."""
        with watching(self.layers[index]) as found:
            self.through(index)
        return {name: moments.mean() for name, moments in found.items()}


def _stop(*_: Any) -> None:
    raise _Stop


class Moments:
    """A running sum of `x x'` over tokens; modules with the same input share one."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, given: Tensor) -> None:
        rows = given.detach().reshape(-1, given.shape[-1]).double()
        product = rows.T @ rows
        self.total = product if self.total is None else self.total + product
        self.tokens += len(rows)

    def mean(self) -> Tensor:
        """`(in, in)`: the mean over tokens.

        Raises:
            ValueError: no token has come by.
        """
        if self.total is None:
            raise ValueError("calibration: got text by which a layer was not reached; allowed is text that uses all")
        return self.total / self.tokens


@contextmanager
def watching(layer: nn.Module) -> Iterator[dict[str, Moments]]:
    """Within the block, sums up second moments of what each linear layer inside `layer` is given."""
    found: dict[str, Moments] = {}
    last: list[Any] = [None, None]  # q, k and v are given the same tensor: it is multiplied once

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Any, ...]) -> None:
            if last[0] is args[0] and name not in found:
                found[name] = last[1]
            if found.get(name) is last[1] and last[0] is args[0]:
                return
            moments = found.setdefault(name, Moments())
            moments.add(args[0])
            last[:] = [args[0], moments]

        return add

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def sensitivities(model: Any, inputs: Tensor, names: Sequence[str], seed: int = 0) -> dict[str, float]:
    """How much an error in the output of a module costs: nats a token, per unit of squared error.

    To second order, an error e in an output costs `E[(g'e)^2] / 2`, where g is the gradient of the log-likelihood of a
    token drawn from the model's own prediction (the Fisher information). Errors are taken to lie in no special
    direction, so that this is `|g|^2 / width / 2` times `|e|^2`.

    Args:
        model: a causal LM in eval mode.
        inputs: `(windows, length)` token ids.
        names: of the modules.
        seed: of the drawn tokens.
    """
    totals, tokens = dict.fromkeys(names, 0.0), 0
    generator = torch.Generator().manual_seed(seed)

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: Any, output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                totals[name] += float(gradient.double().square().sum()) / gradient.shape[-1] / 2

            output.register_hook(add)

        return watch

    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    # gradients begin at the embeddings' output, and no weight gets one; hooks run in this order
    table = model.get_input_embeddings()
    handles = [table.register_forward_hook(lambda module, args, out: out.detach().requires_grad_())]
    handles += [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        for row in tqdm(inputs, desc="sensitivity", leave=False):
            logits = model(row[None].to(model.device), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
            (-logits.log_softmax(-1).gather(1, drawn).sum()).backward()
            tokens += len(row)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)
    return {name: total / tokens for name, total in totals.items()}
