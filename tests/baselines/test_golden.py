"""Every method against the outputs of its original program: what is kept, scores, caches, logits, tokens."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from distill import Decoding, FastKV, StreamingLLM

from ..conftest import SHARED
from ..golden import MODELS, cases, close, continue_greedily, model_of, read
from .methods import KVPRESS, PUBLISHED

GOLDEN = SHARED / "golden"


def parameters():
    """One parameter a case, marked with the method in whose count it goes."""
    for folder, makers in ((MODELS, PUBLISHED), (GOLDEN / "kvpress", KVPRESS)):
        for method, make in makers.items():
            for case in cases(folder, f"{method}-"):
                yield pytest.param(
                    *case.values, make, id=f"{folder.name}-{case.id}", marks=(*case.marks, pytest.mark.golden(method))
                )


@lru_cache(maxsize=8)
def _model(file, implementation):
    return model_of(read(file)[0], implementation)


def watch(policy, monkeypatch):
    """Records what a policy chooses by: `layer: [(scores, protected, positions), ...]`."""
    found = {}
    cls = type(policy.policy if isinstance(policy, Decoding) else policy)
    select = getattr(cls, "select", None)

    def spy(self, entries, scores):
        protected = self.protected(entries)
        protected = torch.zeros_like(entries.real) if protected is None else protected
        found.setdefault(entries.layer_idx, []).append((scores, protected.expand(scores.shape), entries.positions))
        return select(self, entries, scores)

    if select is not None:
        monkeypatch.setattr(cls, "select", spy)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("file", "make"), list(parameters()))
def test_case(file, make, monkeypatch):
    case, tensors = read(file)
    policy = make(case["args"])
    scored = watch(policy, monkeypatch)
    model = _model(file, "eager" if case["reference"]["attn_implementation"] == "eager" else "sdpa")
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    out = model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, policy=policy)
    assert [layer.held for layer in out.past_key_values.layers] == after_prefill(case)
    if "prefill_logits" in tensors:
        close(out.logits[:, -1], tensors["prefill_logits"])
    check_scores(policy, out, scored, case, tensors)
    for index, layer in enumerate(out.past_key_values.layers):
        check_kept(layer, index, case, tensors)
        if f"event0.layer{index}.positions" not in tensors:
            check_entries(layer, index, tensors)
    scored.clear()
    final = continue_under(model, policy, out, case, tensors)
    assert [layer.held for layer in final.past_key_values.layers] == after_decoding(case)
    check_events(scored, final.past_key_values, case, tensors)


def continue_under(model, policy, out, case, tensors):
    """Tokens and logits by `generate()`; a question is read on the compressed cache and not compressed itself."""
    steps = case["n_new_tokens"]
    with model.using(None if "question_ids" in tensors else policy):
        if "question_ids" in tensors:
            ids = torch.cat([tensors["input_ids"], tensors["question_ids"]], dim=1)
            final = model.generate(
                ids, past_key_values=out.past_key_values, max_new_tokens=steps, do_sample=False, eos_token_id=None,
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        else:
            ids = tensors["input_ids"]
            final = continue_greedily(model, tensors, steps)
    assert torch.equal(final.sequences[:, ids.shape[1] :], tensors["greedy_tokens"])
    close(torch.stack(final.logits, dim=1), tensors["step_logits"])
    return final


def after_prefill(case):
    """Lengths of the layers; where heads hold unequal numbers, which the reference only masks, of the longest."""
    if "kept_counts" in case:
        return [max(max(row) for row in rows) for rows in case["kept_counts"]]
    return case["kv_lengths_after_prefill"]


def after_decoding(case):
    """Lengths after the question and the 15 tokens that are fed back."""
    if "kept_counts" in case:
        return [length + case["question_length"] + case["n_new_tokens"] - 1 for length in after_prefill(case)]
    if "kv_lengths_after_decode" in case:
        return case["kv_lengths_after_decode"]
    return [length + case["n_new_tokens"] - 1 for length in case["kv_lengths_after_prefill"]]


def sets(positions):
    """Sorted positions of each row and head, without fillers."""
    return [[sorted(p for p in head if p >= 0) for head in row] for row in positions.tolist()]


def check_kept(layer, index, case, tensors):
    """The positions in a layer's cache, per head."""
    heads = case.get("kv_heads_in_cache", case["config"]["num_key_value_heads"])
    held = sets(layer.layout.expand(-1, heads, -1))
    length = tensors["input_ids"].shape[1]
    if f"layer{index}.kept_mask" in tensors:
        marks = tensors[f"layer{index}.kept_mask"]
        assert held == [[head.nonzero()[:, 0].tolist() for head in row] for row in marks]
    elif f"layer{index}.kept_indices" in tensors:
        expected = tensors[f"layer{index}.kept_indices"]
        assert held == sets(expected if expected.dim() == 3 else expected[None])
    elif f"layer{index}.prefix_indices" in tensors:
        window = torch.arange(length - case["args"]["window_size"], length).expand(heads, -1)
        prefix = tensors[f"layer{index}.prefix_indices"]
        assert held == [[sorted(row) for row in torch.cat([prefix, window], dim=1).tolist()]]
    elif "selected_indices" in tensors:
        assert held == [[tensors["selected_indices"][0].tolist()] * heads]
    else:
        assert held == [[list(range(length))] * heads] * len(held)


def check_entries(layer, index, tensors):
    """Keys and values of the layers that a case stores, in the order of positions."""
    for ours, theirs in ((layer.keys, "key"), (layer.values, "value")):
        for name in (f"cache.{index}.{theirs}", f"layer{index}.{theirs}"):
            if name not in tensors:
                continue
            expected = tensors[name]
            if f"layer{index}.prefix_indices" in tensors:  # stored in the order of scores
                order = tensors[f"layer{index}.prefix_indices"].argsort(-1)
                rest = torch.arange(order.shape[1], expected.shape[2]).expand(len(order), -1)
                where = torch.cat([order, rest], dim=1)[None, :, :, None].expand(*expected.shape)
                expected = expected.gather(2, where)
            if f"layer{index}.kept_mask" in tensors:  # stored in full, dropped entries and all
                close(ours[layer.real], expected[tensors[f"layer{index}.kept_mask"]])
            else:  # where all is kept, the cache need not hold one set per query head
                close(ours, expected[:, :: expected.shape[1] // ours.shape[1]])


def check_scores(policy, out, scored, case, tensors):
    """Scores of the entries that are not kept in any case; FastKV's, SnapKV's own are sums where ours are means."""
    if isinstance(policy, StreamingLLM):
        return  # theirs are 0 and 1, ours say how recent a token is: the same choice
    for index, [(scores, protected, _), *_] in scored.items():
        names = [f"layer{index}.{kind}" for kind in ("scores", "hh_scores", "pooled_scores")]
        name = next((name for name in names if name in tensors), None)
        if name is None:
            continue
        expected = tensors[name] if tensors[name].dim() == 3 else tensors[name][None]
        if name.endswith("pooled_scores"):
            scores = scores * case["args"]["window_size"]
        if isinstance(policy, FastKV):
            groups = case["config"]["num_attention_heads"] // case["config"]["num_key_value_heads"]
            scores = scores * case["args"]["window_size"] * groups
        scored_tokens = expected.shape[-1]  # of some methods only those before the window
        free = ~protected[..., :scored_tokens].expand(expected.shape)
        close(scores[..., :scored_tokens].expand(expected.shape)[free], expected[free])
    if "selected_indices" in tensors and out.selections:
        close(out.selections[0].scores, tensors["pooled_scores"])
    if "tsp_indices" in tensors:
        assert torch.equal(out.selections[0].positions, tensors["tsp_indices"])


def check_events(scored, cache, case, tensors):
    """Eviction while decoding: what stood in the cache at each event, its scores, and what is left at the end."""
    for index, events in scored.items():
        cuts = [n for n in range(len(case.get("events", []))) if f"event{n}.layer{index}.scores" in tensors]
        for number, (scores, _, positions) in zip(cuts, events if cuts else [], strict=True):
            expected = tensors[f"event{number}.layer{index}.positions"]
            assert torch.equal(positions.expand(expected.shape), expected)
            close(scores, tensors[f"event{number}.layer{index}.scores"])
    for index, layer in enumerate(cache.layers):
        if f"cache.{index}.positions" in tensors:
            expected = tensors[f"cache.{index}.positions"]
            assert sets(layer.layout.expand(-1, expected.shape[1], -1)) == sets(expected)
            check_entries(layer, index, tensors)
