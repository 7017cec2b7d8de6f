"""Students cut out of their teacher: fewer layers, or narrower MLPs, those that matter least left out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from distill.patches.checks import check_integer


@torch.no_grad()
def layer_influence(model: Any, blocks: Tensor) -> Tensor:
    """How much each layer changes what goes through it: 1 - mean cosine between its input and its output.

    That is the Block Influence of Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
    Expect", https://arxiv.org/abs/2403.03853, eq. 1.

    Args:
        blocks: `(blocks, tokens)` ids of any text.
    Returns:
        `(layers,)`.
    """
    layers = model.get_decoder().layers
    totals = torch.zeros(len(layers))

    def measure(number: int, given: Tensor, came: Any) -> None:
        out = came if isinstance(came, Tensor) else came[0]
        totals[number] += float(1 - torch.cosine_similarity(given.float(), out.float(), dim=-1).mean())

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, number=number: measure(number, inputs[0], output))
        for number, layer in enumerate(layers)
    ]
    _read(model, blocks, hooks)
    return totals / len(blocks)


def _read(model: Any, blocks: Tensor, hooks: Sequence[Any]) -> None:
    """Reads the blocks, and takes the hooks away, whatever happens."""
    try:
        for ids in blocks:
            model(ids[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def shallower(model: Any, keep: Sequence[int]) -> Any:
    """A model of the layers `keep`, in their order, with copies of all weights. The model stays as it is.

    Raises:
        ValueError: layers that the model does not have, or that do not ascend.
    """
    depth = model.config.num_hidden_layers
    if not keep or sorted(set(keep)) != list(keep) or not 0 <= keep[0] <= keep[-1] < depth:
        raise ValueError(f"keep: got {list(keep)}; allowed are ascending layers of 0 to {depth - 1}")
    config = deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in keep]
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder.layers) + "."
    place = {str(layer): str(number) for number, layer in enumerate(keep)}
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            layer, rest = name.removeprefix(prefix).split(".", 1)
            if layer not in place:
                continue
            name = f"{prefix}{place[layer]}.{rest}"
        state[name] = tensor
    return _made(model, config, state)


@torch.no_grad()
def thinner(model: Any, intermediate: int, blocks: Tensor) -> Any:
    """A model whose MLPs have `intermediate` neurons, those with the largest mean |activation|. The model stays.

    The measure is that of Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation"
    (Minitron), https://arxiv.org/abs/2407.14679, section 2.

    Args:
        blocks: `(blocks, tokens)` ids of any text, by which neurons are measured.
    Raises:
        ValueError: a size that is not smaller, or MLPs that are not `gate_proj`, `up_proj` and `down_proj`.
    """
    check_integer("intermediate", intermediate, 1, model.config.intermediate_size)
    layers = model.get_decoder().layers
    parts = ("gate_proj", "up_proj", "down_proj")
    if not all(isinstance(getattr(layer.mlp, part, None), nn.Linear) for layer in layers for part in parts):
        raise ValueError(f"model: got MLPs without {', '.join(parts)}; allowed are those with all three")
    totals = [torch.zeros(layer.mlp.down_proj.in_features, device=model.device) for layer in layers]
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs, total=total: total.add_(inputs[0].float().abs().sum((0, 1)))
        )
        for layer, total in zip(layers, totals, strict=True)
    ]
    _read(model, blocks, hooks)
    config = deepcopy(model.config)
    config.intermediate_size = intermediate
    state = model.state_dict()
    names = {id(module): name for name, module in model.named_modules()}
    for layer, total in zip(layers, totals, strict=True):
        best = total.topk(intermediate).indices.sort().values
        for part in parts:
            linear = getattr(layer.mlp, part)
            for kind, tensor in linear.named_parameters():
                rows = part != "down_proj"
                cut = tensor[best] if rows else tensor[:, best] if kind == "weight" else tensor
                state[f"{names[id(linear)]}.{kind}"] = cut
    return _made(model, config, state)


def _made(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    with torch.random.fork_rng(devices=[]):
        student = type(model)(config)
    student = student.to(model.device, model.dtype)
    student.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    student.generation_config = deepcopy(model.generation_config)
    return student.eval()
