"""What tells one model, and one tokenizer, from another: settings, and a hash of a few weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

#: weights of each parameter that are hashed
SAMPLE = 16
#: tokens of a vocabulary that are hashed
TOKENS = 1024
#: settings that change no key and no value, or are compared by themselves
_ASIDE = (
    "_name_or_path architectures auto_map chunk_size_feed_forward dtype id2label initializer_range is_encoder_decoder "
    "label2id policy problem_type return_dict rope_parameters tie_word_embeddings transformers_version use_cache"
)
_ASIDE_TOO = ("_dropout", "_token_id", "output_")


def model_print(model: Any) -> dict[str, Any]:
    """What decides the keys and values that a model computes, as JSON.

    Returns:
        `name` (where it was loaded from), `dtype`, `config` (settings), `rope` (rotary settings), `weights` (a hash).
    """
    aside = _ASIDE.split()
    values = json.loads(json.dumps(model.config.to_dict(), default=str))
    values["model_type"] = str(values.get("model_type")).removeprefix("distill_")
    kept = {
        name: value
        for name, value in values.items()
        if name not in aside and not any(part in name for part in _ASIDE_TOO)
    }
    return {
        "name": str(model.name_or_path),
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": kept,
        "rope": values.get("rope_parameters"),
        "weights": weights_hash(model),
    }


def weights_hash(model: Any) -> str:
    """A hash of the names and shapes of all parameters, and of `SAMPLE` weights of each, evenly spread."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        if parameter.device.type != "meta":  # weights on disk are not read
            digest.update(_bytes(_sample(parameter.detach())))
    return digest.hexdigest()


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.flatten()
    count = min(SAMPLE, len(flat))
    places = [i * (len(flat) - 1) // max(count - 1, 1) for i in range(count)]
    return flat[torch.tensor(places, dtype=torch.long, device=flat.device)]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def tokenizer_print(tokenizer: Any) -> dict[str, str]:
    """`name`, and `vocabulary`: a hash of the number of tokens, of some, and of how the tokenizer cuts a text."""
    ids = range(0, len(tokenizer), max(len(tokenizer) // TOKENS, 1))
    known = [len(tokenizer), tokenizer.convert_ids_to_tokens(list(ids)), tokenizer.all_special_ids]
    cut = list(tokenizer("The 1st, of 25 words.\n").input_ids)
    digest = hashlib.sha256(json.dumps([*known, cut]).encode())
    return {"name": str(tokenizer.name_or_path), "vocabulary": digest.hexdigest()}


def check_model(saved: dict[str, Any], model: Any) -> None:
    """Raises a `ValueError` unless the model is the one that a fingerprint was taken of."""
    check_print(saved, model_print(model))


def check_print(saved: dict[str, Any], found: dict[str, Any]) -> None:
    """As `check_model`, of a model whose fingerprint is known already."""
    if found["dtype"] != saved["dtype"]:
        raise ValueError(f"dtype: got a model in {found['dtype']}; allowed for this cache is {saved['dtype']}")
    for name, value in saved["config"].items():
        # another version of Transformers may know other settings
        if name in found["config"] and found["config"][name] != value:
            raise ValueError(
                f"model: got one with {name}={found['config'][name]!r}; allowed is {_known(saved)}: {value!r}"
            )
    if found["rope"] != saved["rope"]:
        raise ValueError(f"model: got one with the rotary settings {found['rope']}; allowed are {saved['rope']}")
    if found["weights"] != saved["weights"]:
        raise ValueError(
            f"model: got {found['name'] or 'one'!r}, whose weights are not those of the model that filled this "
            f"cache; allowed is {_known(saved)}"
        )


def check_tokenizer(saved: dict[str, str], tokenizer: Any) -> None:
    """Raises a `ValueError` unless the tokenizer is the one that a fingerprint was taken of."""
    if tokenizer_print(tokenizer)["vocabulary"] != saved["vocabulary"]:
        raise ValueError(
            f"tokenizer: got {tokenizer.name_or_path!r}, whose tokens are not those of the text that this cache "
            f"holds; allowed is that of {saved['name']!r}"
        )


def _known(saved: dict[str, Any]) -> str:
    return (
        f"the model that filled this cache ({saved['name']})" if saved["name"] else "the model that filled this cache"
    )
