"""Mistakes that were made once: each stays mended."""

from __future__ import annotations

import pytest
import torch

import distill
from distill import PromptDistill

from .tiny import greedy, padded, prompt, tiny, tiny_pair


@pytest.mark.parametrize("name", ["knorm", "keydiff", "gemfilter"])
def test_a_dropped_last_token_cannot_be_taken_back(name):
    extra = {"layer": 1} if name == "gemfilter" else {}
    ours = tiny("llama", distill.policy(name, budget=8, **extra))
    ids = prompt(30, seed=3)
    cache = ours(ids, use_cache=True, logits_to_keep=1).past_key_values
    gone = [layer for layer in cache.layers if bool((layer.layout[..., -1] != 29).any())]
    assert gone, "the prompt's last token is in every layer: choose another prompt"
    for layer in gone:
        with pytest.raises(ValueError, match="tokens_to_remove: got -1; allowed are tokens that are still held"):
            layer.crop(-1)


def test_a_restart_continues_behind_the_last_position():
    """Left padding without position_ids, and positions that do not begin at 0: rotary positions are relative."""
    ours = tiny("llama", distill.policy("gemfilter", budget=12, layer=1))
    ids, mask = padded([prompt(20), prompt(30, seed=2)], "left")
    token = torch.tensor([[5], [6]])

    @torch.no_grad()
    def two_calls(ids, token, mask=None, offset=None):
        positions = {} if offset is None else {"position_ids": torch.arange(ids.shape[1])[None] + offset}
        cache = ours(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **positions).past_key_values
        if offset is not None:
            positions = {"position_ids": torch.tensor([[ids.shape[1] + offset]])}
        longer = None if mask is None else torch.cat([mask, torch.ones_like(token)], dim=1)
        return ours(token, attention_mask=longer, past_key_values=cache, logits_to_keep=1, **positions).logits

    together = two_calls(ids, token, mask)
    for row, alone in enumerate([prompt(20), prompt(30, seed=2)]):
        torch.testing.assert_close(
            together[row : row + 1], two_calls(alone, token[row : row + 1]), atol=1e-4, rtol=1e-4
        )
    shifted = two_calls(prompt(30), token[:1], offset=100)
    torch.testing.assert_close(shifted, two_calls(prompt(30), token[:1], offset=0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_without_a_cache_the_question_stays_that_of_the_prompt(side):
    ours = tiny("llama", PromptDistill([1], [6]))
    ids, mask = padded([prompt(40), prompt(25, seed=2)], side)
    out = ours.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    # by hand: the whole sequence again, with the prompt's own end
    ends = (torch.arange(40) * mask).amax(1)
    whole = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], dim=1)
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    last = ours(
        out.sequences[:, :-1], attention_mask=whole, position_ids=positions, prompt_ends=ends, logits_to_keep=1,
        use_cache=False,
    )  # fmt: skip
    torch.testing.assert_close(last.logits[:, -1], out.logits[-1], atol=1e-4, rtol=1e-4)
    kept = last.selections[0].positions
    assert (kept >= 0).sum(1).tolist() == [6 + 1 + 3] * 2


@pytest.mark.parametrize("embedded", [False, True])
def test_a_cache_changes_nothing_but_the_work(embedded):
    """Dropped tokens are those of the prompt, whether what follows is read with a cache or everything again."""
    ours, ids = tiny("llama"), prompt(40)
    policy = PromptDistill([2], [6])
    given = {"inputs_embeds": ours.get_input_embeddings()(ids)} if embedded else {"input_ids": ids}
    out = ours.generate(
        **given, policy=policy, max_new_tokens=3, do_sample=False, use_cache=embedded, return_dict_in_generate=True
    )
    again = ours.generate(
        **given, policy=policy, prompt_ends=39, max_new_tokens=3, do_sample=False, use_cache=embedded
    )
    assert torch.equal(out.sequences, again)
    seen = ours(torch.cat([ids, out.sequences[:, -3:]], 1), policy=policy, prompt_ends=39, logits_to_keep=1)
    first = ours(ids, policy=policy, logits_to_keep=1)
    kept, before = (o.selections[0].positions[0].tolist() for o in (seen, first))
    assert kept[:7] == before


def test_an_all_padding_row_harms_nobody():
    ours = tiny("llama", PromptDistill([0, 1], [12, 5], cache_truncation_end=-1))
    ids, mask = prompt(40, batch=2), torch.ones(2, 40, dtype=torch.long)
    mask[1] = 0
    together = ours(ids, attention_mask=mask, logits_to_keep=1)
    torch.testing.assert_close(together.logits[:1], ours(ids[:1], logits_to_keep=1).logits, atol=1e-4, rtol=1e-4)


def test_an_assistant_runs_under_its_own_policy():
    ours, policy = tiny("llama"), PromptDistill([2], [8], cache_truncation_end=1)
    ids = prompt(40)
    expected = greedy(ours, ids, policy=policy, new=10)
    stock, short = tiny_pair("llama", num_hidden_layers=2, seed=5)
    for assistant in (stock, short, tiny("llama", PromptDistill([0], [6]), num_hidden_layers=2, seed=5)):
        assert torch.equal(greedy(ours, ids, policy=policy, assistant_model=assistant, new=10), expected)


def test_recording_is_refused_where_layers_run_more_than_once():
    ours, ids = tiny("llama"), prompt(30)
    for arguments in (
        {"policy": distill.policy("gemfilter", budget=8, layer=1)},
        {"policy": PromptDistill([1], [8]), "prefill_chunk_size": 7},
    ):
        with pytest.raises(ValueError, match="output_hidden_states: got True"):
            ours(ids, use_cache=True, logits_to_keep=1, output_hidden_states=True, **arguments)


def test_a_refused_call_leaves_an_empty_cache_empty():
    from transformers import DynamicCache

    ours, ids, cache = tiny("llama", PromptDistill([1], [8])), prompt(30), DynamicCache()
    with pytest.raises(ValueError, match="labels"):
        ours(ids, labels=ids, past_key_values=cache)
    assert cache.get_seq_length() == 0
    stock = tiny_pair("llama")[0]
    assert torch.equal(ours(ids, past_key_values=cache, policy=None).logits, stock(ids).logits)


def test_hooks_on_the_base_model_run():
    ours, calls = tiny("llama", PromptDistill([1], [8])), []
    ours.model.register_forward_hook(lambda module, args, output: calls.append(output.last_hidden_state.shape[1]))
    ours(prompt(30), logits_to_keep=1)
    assert calls == [9]


def test_a_step_waits_for_the_device_no_more_often_than_a_layer_needs():
    """Reading a value of a tensor makes the host wait: a decode step may do so, a layer may not."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.waits += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def waits(policy, layers):
        ours = tiny("llama", policy, num_hidden_layers=layers)
        cache = ours(prompt(40), use_cache=True, logits_to_keep=1).past_key_values
        counter = Count()
        counter.waits = 0
        with counter:
            ours(torch.tensor([[3]]), past_key_values=cache, attention_mask=torch.ones(1, 41), logits_to_keep=1)
        return counter.waits

    for policy in (
        PromptDistill([1], [8], cache_truncation_end=1),
        distill.policy("snapkv", budget=12, window_size=4),
    ):
        assert waits(policy, 8) == waits(policy, 4) <= 2
