"""What `generate()` offers beyond the matrix, and the ways a model can be loaded and run."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Phi3ForCausalLM, TextIteratorStreamer

import distill
from distill import PromptDistill
from distill.patches.cache import KeptLayer

from .tiny import ARCHITECTURES, greedy, padded, prompt, tiny, tiny_pair

POLICY = PromptDistill([1], [10], cache_truncation_end=1)


def test_inputs_embeds():
    ours = tiny("llama", POLICY)
    ids = prompt(30)
    embeds = ours.get_input_embeddings()(ids)
    out = ours.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False)
    assert torch.equal(out, greedy(ours, ids))


def test_streaming():
    class Collector(TextIteratorStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append(None)

    ours, ids = tiny("llama", POLICY), prompt(30)
    streamer = Collector()
    out = ours.generate(ids, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert streamer.tokens == [*out[0].tolist(), None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_chunked_prefill_on_a_conversation(implementation):
    ours = tiny("llama", POLICY, implementation=implementation)
    first, turn = prompt(30), prompt(25, seed=2)
    results = []
    for size in (None, 8):
        cache = DynamicCache()
        ours(first, past_key_values=cache, logits_to_keep=1)
        out = ours(turn, past_key_values=cache, logits_to_keep=1, prefill_chunk_size=size)
        results.append((out.logits, cache.layers[0].positions))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(results[0][1], results[1][1])


def test_chunks_without_a_policy():
    stock, ours = tiny_pair("llama")
    ids = prompt(30)
    for model in (ours, ours.model):
        out = model(ids, prefill_chunk_size=8, use_cache=True)[0]
        torch.testing.assert_close(out, (stock if model is ours else stock.model)(ids)[0], atol=1e-5, rtol=1e-5)


def test_the_peak_falls_while_the_prompt_is_read():
    """With truncation the early layers are short before the later ones are filled."""
    ours, held = tiny("llama", POLICY), []
    handle = ours.model.layers[2].register_forward_pre_hook(
        lambda module, args, kwargs: held.append([layer.held for layer in kwargs["past_key_values"].layers]),
        with_kwargs=True,
    )
    ours(prompt(30), use_cache=True, logits_to_keep=1)
    handle.remove()
    assert held == [[11, 11, 0, 0]]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled(dynamic, fresh_compiler):
    ours, ids = tiny("llama", POLICY), prompt(30)
    expected = greedy(ours, ids)
    off = greedy(ours, ids, policy=None)
    ours.forward = torch.compile(ours.forward, backend="eager", dynamic=dynamic)
    assert torch.equal(greedy(ours, ids), expected)
    with ours.using(None):
        assert torch.equal(greedy(ours, ids), off)
    assert torch.equal(greedy(ours, ids), expected)


def test_stock_forward_compiles_in_one_piece(fresh_compiler):
    stock, ours = tiny_pair("llama")
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    ids = prompt(30)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, stock(ids, use_cache=False).logits)


def test_static_cache_without_a_policy():
    stock, ours = tiny_pair("llama")
    kwargs = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(greedy(ours, prompt(30), **kwargs), greedy(stock, prompt(30), **kwargs))


def test_weights_on_several_devices(tmp_path):
    """Layers behind accelerate's hooks: half of the model lies on disk and visits the CPU when it runs."""
    ours = tiny("llama", POLICY)
    ours.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" if i % 2 else "disk" for i in range(4)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert spread.hf_device_map["model.layers.0"] == "disk"
    assert torch.equal(greedy(spread, prompt(30)), greedy(ours, prompt(30)))


def longrope(**changes):
    """A Phi3 whose rotary factors switch once the sequence is longer than 32."""
    factors = {"short_factor": [1.0] * 6, "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 12.0]}
    return {
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope", **factors},
    } | changes


def test_phi3_switches_its_rotary_factors_while_generating():
    """Off: as stock. On: the whole sequence is read again, and the prompt's last token asks again which goes on."""
    stock, ours = tiny_pair("phi3", **longrope())
    ids = prompt(28)
    assert torch.equal(greedy(ours, ids, new=12), greedy(stock, ids, new=12))
    policy = PromptDistill([1], [10], cache_truncation_end=1)
    if "next_sequence_length" not in inspect.getsource(Phi3ForCausalLM.prepare_inputs_for_generation):
        # before 5.20 Transformers drops the cache at the switch but feeds the last token only: refused, not continued
        with pytest.raises(ValueError, match="attention_mask"):
            greedy(ours, ids, new=12, policy=policy)
        return
    out = ours.generate(ids, policy=policy, max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    before = ours.generate(ids, policy=policy, max_new_tokens=5, do_sample=False)
    assert torch.equal(out.sequences[:, :33], before)
    again = ours.generate(
        out.sequences[:, :33], policy=policy, prompt_ends=27, max_new_tokens=7, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(out.sequences, again.sequences)
    for layer, expected in zip(out.past_key_values.layers, again.past_key_values.layers, strict=True):
        assert torch.equal(layer.positions, expected.positions)
        assert layer.positions[0, -12:].tolist() == list(range(27, 39)) and layer.held == 10 + 12
    assert torch.equal(greedy(ours, ids, new=12, policy=PromptDistill([1], [100])), greedy(stock, ids, new=12))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["mistral", "phi3"])
@torch.no_grad()
def test_a_sliding_window_follows_the_original_positions(arch, implementation):
    """A window that binds: kept tokens see one another only if their original positions are close."""
    window = 12
    stock, ours = tiny_pair(arch, implementation=implementation, sliding_window=window)
    ids = prompt(40)
    torch.testing.assert_close(
        ours(ids, policy=PromptDistill([1], [50]), logits_to_keep=1).logits, stock(ids, logits_to_keep=1).logits
    )
    wide, narrow = greedy(ours, ids, policy=PromptDistill([1], [50])), greedy(stock, ids)
    assert torch.equal(wide, narrow)
    # only one token of the window survives besides the last: the last layers must not see the earlier ones
    policy = PromptDistill([1], [8], sinks=7, recent=1)
    out = ours(ids, policy=policy, use_cache=True, logits_to_keep=1)
    assert out.selections[0].positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 38, 39]
    assert out.past_key_values.layers[3].positions[0].tolist() == [38, 39]  # the next token sees no others
    changed = ids.clone()
    changed[0, :5] = prompt(5, seed=9)
    # tokens 0 to 4 reach token 39 through two full layers at most 22 positions back: not at all
    torch.testing.assert_close(ours(changed, policy=policy, logits_to_keep=1).logits, out.logits, atol=1e-6, rtol=1e-6)


def test_a_share_too_small_for_what_is_always_kept_goes_to_the_last_of_it():
    """Row by row: 6 tokens of 24 hold all three and one sink, 2 of 10 hold the last two only."""
    ids, mask = padded([prompt(25), prompt(11)], "left")
    policy = PromptDistill([1], [0.25], sinks=3, recent=5)
    out = tiny("llama", policy)(ids, attention_mask=mask, logits_to_keep=1)
    held = [row[row >= 0].tolist() for row in out.past_key_values.layers[-1].positions]
    assert held == [[2, 19, 20, 21, 22, 23, 24], [22, 23, 24]]


def test_a_sliding_window_that_cannot_follow_is_refused():
    from distill.patches.masks import Masks

    class Config:
        sliding_window, _attn_implementation = 8, "flash_attention_2"

    with pytest.raises(ValueError, match="sliding_window: flash_attention_2 counts a window of 8 tokens by index"):
        Masks(Config())._window(torch.zeros(1, 12), torch.zeros(1, 4), 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_batch_longer_and_shorter_than_the_budget(arch):
    ours = tiny(arch, PromptDistill([0, 1], [20, 10], cache_truncation_end=-1))
    rows = [prompt(n, seed=n) for n in (3, 9, 11, 12, 30)]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        together = greedy(ours, ids, mask)
        for index, row in enumerate(rows):
            assert torch.equal(together[index : index + 1], greedy(ours, row))


def test_cache_is_ours_and_inspectable():
    ours = tiny("llama", POLICY)
    out = ours.generate(prompt(30), max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    for layer in out.past_key_values.layers:
        assert isinstance(layer, KeptLayer)
        assert layer.positions.shape == (1, 11 + 2) and layer.positions[0, -3:].tolist() == [29, 30, 31]


TENSOR_PARALLEL = """
import os, sys, torch, torch.distributed as dist
from transformers.distributed import DistributedConfig
import distill
policy = distill.PromptDistill([1], [10], cache_truncation_end=1)
softmax = distill.PromptDistill([1], [10], scoring="softmax", observation_window=3)
model = distill.load(sys.argv[1], policy=policy, distributed_config=DistributedConfig(tp_size=2, tp_plan="auto"))
ids = torch.load(sys.argv[2])
for chosen in (policy, softmax):
    with model.using(chosen):
        out = model(ids, logits_to_keep=1)
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False)
    mine = torch.cat([out.selections[0].positions.flatten(), tokens.flatten()])
    others = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(others, mine)
    assert torch.equal(others[0], others[1]), "the ranks chose different tokens"
    if dist.get_rank() == 0:
        print("RESULT", mine.tolist(), flush=True)
dist.barrier()
os._exit(0)  # the teardown of gloo's threads may abort the process, which is not what is tested here
"""


def test_tensor_parallel_ranks_choose_the_same_tokens(tmp_path):
    stock, ours = tiny_pair("llama", POLICY, vocab_size=98)
    stock.save_pretrained(tmp_path / "model")
    ids = prompt(30)
    torch.save(ids, tmp_path / "ids.pt")
    (tmp_path / "ranks.py").write_text(TENSOR_PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "ranks.py"]
    done = subprocess.run(
        [*command, "model", "ids.pt"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    softmax = PromptDistill([1], [10], scoring="softmax", observation_window=3)
    for line, policy in zip(lines, (POLICY, softmax), strict=True):
        out = ours(ids, policy=policy, logits_to_keep=1)
        single = [*out.selections[0].positions.flatten().tolist(), *ours.generate(
            ids, policy=policy, max_new_tokens=4, do_sample=False).flatten().tolist()]  # fmt: skip
        assert line == str(single)


def test_path_from_loading_to_a_dropped_token_is_short(tmp_path, monkeypatch):
    """What runs of ours between `from_pretrained` and the dropped tokens is at most 451 lines."""
    monkeypatch.delitem(sys.modules, "peft", raising=False)  # another test may have imported it; it is told of configs
    tiny_pair("llama")[0].save_pretrained(tmp_path)
    root, lines = Path(distill.__file__).resolve().parents[1], set()
    rooms = tuple(str(root / room) for room in ("distill", "models", "patches"))

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(rooms):
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        config = distill.DistillLlamaConfig.from_pretrained(tmp_path, policy=POLICY)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
        out = model(prompt(30), use_cache=True, logits_to_keep=1)
    finally:
        sys.settrace(None)
    assert [layer.held for layer in out.past_key_values.layers] == [11] * 4
    assert 100 < len(lines) <= 451
    for arch in ("llama", "mistral", "phi3", "qwen2", "qwen3"):  # the others are made by one call each
        assert len((root / "models" / f"{arch}.py").read_text().splitlines()) <= 25
