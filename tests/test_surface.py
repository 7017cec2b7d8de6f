"""The public surface: configs, loading, `using`, outputs, errors."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import threading
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, pipeline

import distill
from distill import DistillLlamaConfig, PromptDistill

from .tiny import ARCHITECTURES, greedy, padded, prompt, tiny, tiny_pair

POLICY = PromptDistill([1], [10], cache_truncation_end=1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_stock_checkpoint_loads_in_silence(arch, tmp_path, caplog, capfd):
    stock, _ = tiny_pair(arch)
    stock.save_pretrained(tmp_path)
    capfd.readouterr()
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        config = AutoConfig.for_model(f"distill_{arch}").__class__.from_pretrained(tmp_path, policy=POLICY)
        by_config = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
        by_load = distill.load(tmp_path, policy=POLICY)
    # stock says so too where default token ids lie outside of a tiny vocabulary, and where it has no fused activation
    known = ("within the vocabulary", "transformers.activations")
    said = [r for r in caplog.records if not any(part in f"{r.name} {r.getMessage()}" for part in known)]
    assert not said and "model of type" not in capfd.readouterr().err
    assert type(by_config) is type(by_load) and by_load.config.policy == POLICY
    ids = prompt(30)
    assert torch.equal(greedy(by_config, ids), greedy(by_load, ids))
    assert torch.equal(greedy(distill.load(tmp_path), ids), greedy(stock, ids))


def test_the_policy_is_saved_as_json(tmp_path):
    tiny("llama", POLICY).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "distill_llama"
    assert saved["policy"] == POLICY.to_dict() and saved["policy"]["selection_layers"] == [1]
    assert distill.load(tmp_path).config.policy == POLICY
    assert distill.load(tmp_path, policy=None).config.policy is None
    assert distill.load(tmp_path, policy=PromptDistill([2], [5])).config.policy.n_topks == (5,)
    assert AutoModel.from_pretrained(tmp_path).config.policy == POLICY
    off = DistillLlamaConfig.from_pretrained(tmp_path, policy=None)
    assert json.loads(off.to_json_string())["policy"] is None


def test_base_model_under_a_policy():
    model = AutoModel.from_config(tiny("llama", POLICY).config).eval()
    out = model(prompt(30), use_cache=True)
    assert out.last_hidden_state.shape[1] == 11 == out.positions.shape[1] == out.past_key_values.layers[0].held
    with model.using(None):
        assert model(prompt(30)).last_hidden_state.shape[1] == 30


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_base_model_inside_obeys_too(arch):
    stock, ours = tiny_pair(arch, POLICY)
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    out = ours.model(ids, attention_mask=mask, output_hidden_states=True)
    assert [h.shape[1] for h in out.hidden_states] == [30, 30, 30, 11, 11] and out.last_hidden_state.shape[1] == 11
    with ours.using(None):
        expected = stock.model(ids, attention_mask=mask).last_hidden_state
        assert torch.equal(ours.model(ids, attention_mask=mask).last_hidden_state, expected)
    assert torch.equal(ours.model(ids, attention_mask=mask, policy=None).last_hidden_state, expected)


def test_pipeline(tmp_path, shared):
    from transformers import AutoTokenizer

    path = shared("data", "models", "stories260K-hf")
    distill.load(path, policy=PromptDistill([1], [6])).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path))
    assert generate.model.config.policy.n_topks == (6,)
    text = generate("Once upon a time there was a little dog", max_new_tokens=5, do_sample=False)
    assert text[0]["generated_text"].startswith("Once upon a time there was a little dog")


def test_stories_prints_its_expected_text(shared):
    """The checkpoint's own reference text, with no policy and with one whose budget exceeds the prompt."""
    from transformers import AutoTokenizer

    path = shared("data", "models", "stories260K-hf")
    expected = (path / "expected_greedy_200.txt").read_text()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for policy in (None, PromptDistill([2], [1000], cache_truncation_end=1)):
        model = distill.load(path, policy=policy)
        ids = torch.tensor([[tokenizer.bos_token_id]])
        out = model.generate(ids, max_new_tokens=200, do_sample=False, eos_token_id=None)
        assert tokenizer.decode(out[0], skip_special_tokens=True).strip() == expected.strip()


def test_using_nests_and_restores():
    stock, ours = tiny_pair("llama", POLICY)
    ids = prompt(30)
    on, off = greedy(ours, ids), greedy(stock, ids)
    with ours.using(None):
        assert torch.equal(greedy(ours, ids), off)
        with ours.using(PromptDistill([1], [10], cache_truncation_end=1)):
            assert torch.equal(greedy(ours, ids), on)
        assert torch.equal(greedy(ours, ids), off)
        assert torch.equal(greedy(ours, ids, policy=POLICY), on)
    assert torch.equal(greedy(ours, ids), on)
    assert torch.equal(greedy(ours, ids, policy=None), off)
    with pytest.raises(RuntimeError), ours.using(None):
        raise RuntimeError
    assert torch.equal(greedy(ours, ids), on)


def test_two_threads_two_policies():
    ours = tiny("llama")
    ids, results = prompt(60), {}
    policies = {k: PromptDistill([1], [k], cache_truncation_end=1) for k in (5, 20)}
    expected = {k: greedy(ours, ids, policy=p, new=20) for k, p in policies.items()}

    def work(k):
        with ours.using(policies[k]):
            results[k] = [greedy(ours, ids, new=20) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in policies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in policies:
        assert all(torch.equal(tokens, expected[k]) for tokens in results[k])


def test_copies_and_pickles():
    ours = tiny("llama", POLICY)
    ids = prompt(30)
    expected = greedy(ours, ids)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(greedy(again, ids), expected)
        assert again.model.layers[0].self_attn.config.stock is again.config


def test_set_attn_implementation():
    ours = tiny("llama", POLICY, implementation="sdpa")
    assert ours.config._attn_implementation == "sdpa"
    ids = prompt(30)
    expected = greedy(ours, ids)
    ours.set_attn_implementation("eager")
    out = ours(ids, output_attentions=True, logits_to_keep=1)
    assert [a.shape[-1] for a in out.attentions] == [30, 30, 11, 11]
    assert torch.equal(greedy(ours, ids), expected)


def test_hidden_states_of_each_stage():
    out = tiny("llama", POLICY)(prompt(30), output_hidden_states=True, logits_to_keep=1)
    assert [h.shape[1] for h in out.hidden_states] == [30, 30, 30, 11, 11]


def test_forward_tells_which_tokens_have_logits():
    ours = tiny("llama", POLICY)
    ids = prompt(30)
    with pytest.raises(ValueError, match="logits_to_keep: got a value that needs the logits of all 30 tokens"):
        ours(ids)
    out = ours(ids, partial_logits=True)
    assert out.logits.shape[:2] == out.positions.shape == (1, 11)
    assert out.selections[0].layer == 1 and torch.equal(out.selections[0].positions, out.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours(ids, logits_to_keep=1).positions.tolist() == [[29]]
        assert ours(ids[:, :9]).logits.shape[1] == 9
        greedy(ours, ids)


def test_kept_are_the_highest_scores():
    out = tiny("llama", PromptDistill([1], [10]))(prompt(40), logits_to_keep=1)
    scores, kept = out.selections[0].scores[0, :-1], out.selections[0].positions[0, :-1]
    others = torch.tensor(sorted(set(range(39)) - set(kept.tolist())))
    assert scores[kept].min() >= scores[others].max()
    assert out.selections[0].positions[0, -1] == 39


def test_sinks_and_recent_are_kept_within_the_budget():
    out = tiny("llama", PromptDistill([1], [10], sinks=3, recent=4))(prompt(40), logits_to_keep=1)
    kept = out.selections[0].positions[0].tolist()
    assert len(kept) == 11 and {0, 1, 2, 35, 36, 37, 38, 39} <= set(kept)


def test_a_fraction_is_of_each_row():
    ours = tiny("llama", PromptDistill([1], [0.25]))
    ids = prompt(41, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    kept = ours(ids, attention_mask=mask, logits_to_keep=1).selections[0].positions
    assert (kept >= 0).sum(1).tolist() == [10 + 1, 5 + 1]


def test_several_logits_are_kept_alive():
    ours = tiny("llama", PromptDistill([1], [5]))
    out = ours(prompt(40), logits_to_keep=6)
    assert out.positions.tolist() == [list(range(34, 40))]
    # the question is asked by the last token before the six that follow it
    alone = ours(prompt(40)[:, :35], logits_to_keep=1)
    assert out.selections[0].positions[0, :6].tolist() == alone.selections[0].positions[0].tolist()


def test_prompt_ends():
    ours = tiny("llama", PromptDistill([1], [5]))
    ids = prompt(40, batch=2)
    out = ours(ids, prompt_ends=torch.tensor([29, 34]), logits_to_keep=1)
    kept = out.selections[0].positions
    assert {*range(29, 40)} <= set(kept[0].tolist()) and {*range(34, 40)} <= set(kept[1].tolist())
    assert (kept >= 0).sum(1).tolist() == [5 + 11, 5 + 6]
    assert ours.generate(ids, prompt_ends=torch.tensor([29, 34]), max_new_tokens=3, do_sample=False).shape == (2, 43)
    for wrong in (40, -1):
        with pytest.raises(ValueError, match="prompt_ends"):
            ours(ids, prompt_ends=wrong)


def test_without_a_cache():
    ours = tiny("llama", POLICY)
    ids = prompt(30)
    assert torch.equal(greedy(ours, ids, new=1), greedy(ours, ids, new=1, use_cache=False))
    out = ours(ids, use_cache=False, logits_to_keep=1)
    assert out.past_key_values is None and out.selections[0].positions.shape == (1, 11)


def test_gradients_flow():
    ours = tiny("llama", POLICY).train()
    ours(prompt(30), logits_to_keep=1, use_cache=False).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.model.layers.parameters())


def test_return_tuple():
    out = tiny("llama", POLICY)(prompt(30), logits_to_keep=1, return_dict=False)
    assert isinstance(out, tuple) and out[0].shape[1] == 1


def test_registered_without_side_effects():
    assert isinstance(tiny("llama"), LlamaForCausalLM)
    assert {"promptdistill"} <= set(distill.policies())
    assert distill.policy("promptdistill", selection_layers=[1], n_topks=[10], cache_truncation_end=1) == POLICY


BAD_POLICIES = {
    "selection_layers: got \\[3, 1\\]": {"selection_layers": [3, 1], "n_topks": [1, 1]},
    "selection_layers: got \\[1, 1\\]": {"selection_layers": [1, 1], "n_topks": [1, 1]},
    "selection_layers: got \\[\\]": {"selection_layers": [], "n_topks": []},
    "selection_layers: got -1": {"selection_layers": [-1], "n_topks": [1]},
    "selection_layers: got 1": {"selection_layers": 1, "n_topks": [1]},
    "n_topks: got 1 entries": {"selection_layers": [1, 2], "n_topks": [1]},
    "n_topks: got 0": {"selection_layers": [1], "n_topks": [0]},
    "n_topks: got 1.5": {"selection_layers": [1], "n_topks": [1.5]},
    "n_topks: got True": {"selection_layers": [1], "n_topks": [True]},
    "cache_truncation_end: got -2": {"selection_layers": [1], "n_topks": [1], "cache_truncation_end": -2},
    "pooling_kernel: got 4": {"selection_layers": [1], "n_topks": [1], "pooling_kernel": 4},
    "observation_window: got 0": {"selection_layers": [1], "n_topks": [1], "observation_window": 0},
    "scoring: got 'x'": {"selection_layers": [1], "n_topks": [1], "scoring": "x"},
    "pooling: got 'x'": {"selection_layers": [1], "n_topks": [1], "pooling": "x"},
    "sinks, recent": {"selection_layers": [1], "n_topks": [4], "sinks": 3, "recent": 2},
    "budget: got an argument that promptdistill does not have": {"selection_layers": [1], "n_topks": [4], "budget": 3},
    "n_topks: got nothing": {"selection_layers": [1]},
}


@pytest.mark.parametrize("message", BAD_POLICIES)
def test_bad_settings(message):
    with pytest.raises(ValueError, match=message):
        distill.policy("promptdistill", **BAD_POLICIES[message])


def test_bad_calls(tmp_path):
    ours, ids = tiny("llama", POLICY), prompt(30)
    with pytest.raises(ValueError, match=r"policy: got 'nosuch'; allowed are .*promptdistill"):
        distill.policy("nosuch")
    with pytest.raises(ValueError, match="allowed are a Policy"):
        ours(ids, policy=3)
    for place in (lambda p: tiny("llama", p), lambda p: ours(ids, policy=p), lambda p: ours.using(p).__enter__()):
        with pytest.raises(ValueError, match="selection_layers: got 3; allowed are layers 0 to 2"):
            place(PromptDistill([3], [10]))
    with pytest.raises(ValueError, match="labels"):
        ours(ids, labels=ids)
    with pytest.raises(ValueError, match="logits_to_keep"):
        ours(ids, logits_to_keep=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="attention_mask: got shape"):
        ours(ids, attention_mask=torch.ones(1, 1, 30, 30))
    with pytest.raises(ValueError, match="prefill_chunk_size: got a size with use_cache=False"):
        ours(ids, prefill_chunk_size=8, use_cache=False)
    with pytest.raises(ValueError, match="prefill_chunk_size: got 0"):
        ours(ids, prefill_chunk_size=0)
    with pytest.raises(ValueError, match="StaticCache"):
        ours.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="exactly one"):
        ours(ids, inputs_embeds=ours.get_input_embeddings()(ids))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"of type .gpt2., whose layers .*allowed are .*llama, .*mistral"):
        distill.load(tmp_path)


def test_labels_are_welcome_where_nothing_is_dropped():
    stock, ours = tiny_pair("llama", POLICY)
    ids = prompt(9)
    assert torch.equal(ours(ids, labels=ids).loss, stock(ids, labels=ids).loss)
    with ours.using(None):
        assert torch.equal(ours(prompt(30), labels=prompt(30)).loss, stock(prompt(30), labels=prompt(30)).loss)


def test_policy_turned_on_for_the_second_turn():
    """A cache filled by the stock model is taken over: nothing of it is dropped."""
    stock, ours = tiny_pair("llama", POLICY)
    ids, turn = prompt(20), prompt(25, seed=2)
    cache = stock(ids, use_cache=True).past_key_values
    out = ours(turn, past_key_values=cache, logits_to_keep=1)
    for index, layer in enumerate(cache.layers):
        assert layer.positions[0, :20].tolist() == list(range(20)), index
        assert layer.held == 20 + 11 and layer.get_seq_length() == 45
    assert out.positions.tolist() == [[44]]
    expected = stock(torch.cat([ids, turn], 1)[:, :45], use_cache=True).past_key_values
    kept = cache.layers[0].positions[0]
    torch.testing.assert_close(cache.layers[0].keys, expected.layers[0].keys[:, :, kept], atol=1e-5, rtol=1e-5)


def test_policy_turned_off_for_the_second_turn():
    _, ours = tiny_pair("llama", POLICY)
    cache = DynamicCache()
    ours(prompt(30), past_key_values=cache, logits_to_keep=1)
    with ours.using(None):
        out = ours(prompt(25, seed=2), past_key_values=cache)
    assert out.logits.shape[1] == 25
    assert [layer.held for layer in cache.layers] == [11 + 25] * 4
