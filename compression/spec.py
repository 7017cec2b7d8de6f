"""What the field `compression` of a config says, and the modules that are made from it before weights are loaded.

    {"version": 1, "low_rank": {"model.layers.0.mlp.up_proj": 96, ...}, "embedding": 128}

`low_rank` holds, by the name of a linear layer in the causal LM, the rank of the two factors that stand for it;
`embedding`, if present, the rank of the input embedding, and of the head where the two are tied.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from distill.compression.modules import LowRankEmbedding, LowRankLinear

VERSION = 1


def check_spec(spec: Any) -> dict[str, Any]:
    """`spec`, if it is one.

    Raises:
        ValueError: it is none, or of a later version of distill.
    """
    if not isinstance(spec, dict) or spec.get("version") != VERSION:
        raise ValueError(f"compression: got {str(spec)[:80]}; allowed are specs of version {VERSION}")
    if unknown := set(spec) - {"version", "low_rank", "embedding"}:
        raise ValueError(f"compression: got {sorted(unknown)}; allowed are version, low_rank, embedding")
    ranks = spec.get("low_rank", {})
    for name, rank in [*ranks.items(), ("embedding", spec.get("embedding", 1))]:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"compression: got rank {rank!r} for {name}; allowed are integers >= 1")
    return spec


def sizes(module: nn.Module) -> tuple[int, int]:
    """`(in, out)` of a linear layer, a Conv1D, or the two factors of one."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def empty_like(module: Any, rank: int) -> LowRankLinear:
    """Two factors of the sizes, dtype and device of a linear layer, with a bias if it has one."""
    weight, (given, out) = module.weight, sizes(module)
    return LowRankLinear(given, out, rank, module.bias is not None, dtype=weight.dtype, device=weight.device)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` where `name` is."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.training))


def tied(model: Any) -> bool:
    """Whether the head of a causal LM is its input embedding."""
    head = model.get_output_embeddings()
    return head is not None and bool(getattr(model.config, "tie_word_embeddings", False))


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """The name of a module in a model."""
    return next(name for name, module in model.named_modules() if module is wanted)


def factorize_embedding_modules(model: Any, rank: int) -> None:
    """Puts factors in place of the input embedding, and of the head if the two are tied: then they share them."""
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        raise ValueError(f"embedding: got a {type(table).__name__}; allowed is nn.Embedding, without a scale inside")
    head = model.get_output_embeddings()
    if tied(model) and type(head) is not nn.Linear:
        raise ValueError(f"embedding: got a tied head of type {type(head).__name__}; allowed is nn.Linear")
    size = {"dtype": table.weight.dtype, "device": table.weight.device}
    factors = LowRankEmbedding(table.num_embeddings, table.embedding_dim, rank, table.padding_idx, **size)
    place = name_of(model, table)
    replace_module(model, place, factors)
    if not tied(model):
        return
    where = name_of(model, head)
    replace_module(model, where, empty_like(head, rank))
    # which tensors are one: Transformers ties them after loading, and saves them once
    model._tied_weights_keys = {
        f"{where}.up.weight": f"{place}.codes.weight",
        f"{where}.down.weight": f"{place}.basis.weight",
    }
    model.all_tied_weights_keys = dict(model._tied_weights_keys)
    model.tie_weights(recompute_mapping=False)


def rebuilt(model: Any) -> Any:
    """Makes in place, in a new model, the modules that its config's `compression` names; their weights come later.

    Args:
        model: a causal LM, or its base model.
    Raises:
        ValueError: the field is no spec, or names modules that the model does not have.
    """
    spec = check_spec(model.config.compression)
    prefix = "" if hasattr(model, "lm_head") else f"{model.base_model_prefix}."
    for name, rank in spec.get("low_rank", {}).items():
        if name == "lm_head" and prefix:
            continue  # a base model has no head
        place = name.removeprefix(prefix)
        try:
            module = model.get_submodule(place)
        except AttributeError:
            module = None
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise ValueError(f"compression: got {name!r}; allowed for this model are the names of its linear layers")
        replace_module(model, place, empty_like(module, rank))
    if "embedding" in spec:
        factorize_embedding_modules(model, spec["embedding"])
    return model


def spec_of(model: Any) -> dict[str, Any] | None:
    """The spec from which `rebuilt` would make the modules of this model; `None` if it has no factors."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = head if tied(model) else None
    ranks = {
        name: module.rank
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear) and module is not shared
    }
    spec: dict[str, Any] = {"version": VERSION, "low_rank": ranks}
    if isinstance(table, LowRankEmbedding):
        spec["embedding"] = table.rank
    return spec if ranks or "embedding" in spec else None
