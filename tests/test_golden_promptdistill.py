"""PromptDistill against the outputs of its authors' code, through the public surface, under eager and sdpa."""

from __future__ import annotations

import pytest
import torch

from distill import PromptDistill

from .golden import MODELS, cases, close, continue_greedily, model_of, read

pytestmark = [
    pytest.mark.golden("promptdistill"),
    pytest.mark.parametrize("file", cases(MODELS, "promptdistill-")),
]


def policy_of(case):
    """The policy of a case. What the authors' code ignores silently is an error here, and left out then."""
    arguments, last = dict(case["args"]), case["config"]["num_hidden_layers"] - 1
    if arguments["selection_layers"][-1] == last:
        with pytest.raises(ValueError, match="selection_layers"):
            model_of(case, "sdpa", PromptDistill(**arguments))
        for name in ("selection_layers", "n_topks"):
            arguments[name] = arguments[name][:-1]
    return PromptDistill(**arguments)


def rows(tensor, valid):
    """The valid entries of each row, `(entries, ...)`."""
    return [row[mask] for row, mask in zip(tensor, valid, strict=True)]


@torch.no_grad()
def check_prefill(model, case, tensors):
    out = model(tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=True, partial_logits=True)
    lengths = torch.tensor(case["prompt_lengths"])
    for level, selection in enumerate(out.selections):
        if level == 0:
            before = [torch.arange(n) for n in lengths]
        kept = rows(tensors[f"level{level}.truncation_idx"], tensors[f"level{level}.valid"])
        for row, expected in enumerate(kept):
            positions = selection.positions[row]
            assert torch.equal(positions[positions >= 0], expected)
            # scores of padding are undefined; ours stand right-aligned after the first selection, theirs left-aligned
            reference = tensors[f"level{level}.selection_logits"][row, : len(before[row])]
            scores = selection.scores[row]
            own = scores[: len(reference)] if level == 0 else scores[len(scores) - len(reference) :]
            close(own, reference)
        before = kept
    if out.selections:
        valid = tensors[f"level{len(out.selections) - 1}.valid"]
    else:
        valid = tensors["attention_mask"].bool()
    for row, expected in enumerate(rows(tensors["prefill_logits"], valid)):
        close(out.logits[row][out.positions[row] >= 0], expected)
    layers = out.past_key_values.layers
    assert [layer.keys.shape[-2] for layer in layers] == case["kv_lengths_after_prefill"]
    for index in case["kv_layers_stored"]:
        check_layer(layers[index], tensors, index, lengths, valid)


def check_layer(layer, tensors, index, lengths, valid):
    for row in range(len(lengths)):
        held = layer.positions[row] >= 0
        for name in ("key", "value"):
            reference = tensors[f"cache.{index}.{name}"][row]
            count = int(held.sum())
            close(getattr(layer, name + "s")[row][:, held], reference[:, :count])


@torch.no_grad()
def test_case(file):
    case, tensors = read(file)
    policy = policy_of(case)
    for implementation in ("eager", "sdpa"):
        model = model_of(case, implementation, policy)
        check_prefill(model, case, tensors)
        out = continue_greedily(model, tensors, case["n_new_tokens"])
        assert torch.equal(out.sequences[:, tensors["input_ids"].shape[1] :], tensors["greedy_tokens"])
        close(torch.stack(out.logits, dim=1), tensors["step_logits"])
        if not case["prefill_only_batch"]:
            held = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
            assert held == case["kv_lengths_after_decode"]
        with model.using(None):
            check_full(model, tensors, case)


def check_full(model, tensors, case):
    """With the policy off: the unmodified model, each row unpadded."""
    for row, length in enumerate(case["prompt_lengths"]):
        ids = tensors["input_ids"][row : row + 1, :length]
        alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out = continue_greedily(model, alone, case["n_new_tokens"])
        assert torch.equal(out.sequences[0, length:], tensors["full.greedy_tokens"][row])
        close(torch.stack(out.logits, dim=1)[0], tensors["full.step_logits"][row])
