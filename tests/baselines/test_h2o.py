"""H2O as its paper has it, against a plain program."""

from __future__ import annotations

import torch

from distill import H2O
from distill.patches.meter import cache_bytes

from ..tiny import prompt, tiny


@torch.no_grad()
def test_dynamic_h2o_is_the_plain_algorithm():
    """Against a loop with whole attention matrices, sums and sorting in plain Python: positions and tokens."""
    budget, recent, steps, ids = 14, 5, 8, prompt(30)
    model = tiny("llama", H2O(budget, recent, form="dynamic"))
    out = model(ids, use_cache=True, logits_to_keep=1)
    got = [[layer.positions[0].tolist() for layer in out.past_key_values.layers]]
    tokens = []
    for step in range(steps):
        tokens.append(out.logits[0, -1].argmax().view(1, 1))
        where = torch.tensor([[30 + step]])
        out = model(tokens[-1], past_key_values=out.past_key_values, position_ids=where, logits_to_keep=1)
        got.append([layer.positions[0].tolist() for layer in out.past_key_values.layers])
    assert got == plain_h2o(tiny("llama"), ids, tokens, budget, recent)


def plain_h2o(model, ids, tokens, budget, recent):
    """Kept positions `[step][layer][head]`; the cache is a full one, what is dropped is masked."""
    everything = torch.cat([ids, *tokens], dim=1)
    length, total = ids.shape[1], everything.shape[1]
    alive = torch.ones(4, 2, total, dtype=torch.bool)  # layer, KV head, position
    sums = torch.zeros(4, 2, total)
    history = []
    spans = [(0, length)] + [(length + i, length + i + 1) for i in range(len(tokens))]
    keys, values = [None] * 4, [None] * 4
    for start, stop in spans:
        hidden = model.model.embed_tokens(everything[:, start:stop])
        cos, sin = model.model.rotary_emb(hidden, position_ids=torch.arange(start, stop)[None])
        for index, layer in enumerate(model.model.layers):
            normed, attention = layer.input_layernorm(hidden), layer.self_attn
            q, k, v = (
                getattr(attention, f"{n}_proj")(normed).view(1, stop - start, -1, 12).transpose(1, 2) for n in "qkv"
            )
            q, k = (t * cos + torch.cat([-t[..., 6:], t[..., :6]], -1) * sin for t in (q, k))
            keys[index] = k if keys[index] is None else torch.cat([keys[index], k], 2)
            values[index] = v if values[index] is None else torch.cat([values[index], v], 2)
            logits = q @ keys[index].repeat_interleave(2, 1).transpose(2, 3) / 12**0.5
            seen = torch.arange(stop) <= torch.arange(start, stop)[:, None]
            seen = seen & alive[index, :, None, :stop].repeat_interleave(2, 0)
            weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            mixed = (weights @ values[index].repeat_interleave(2, 1)).transpose(1, 2).reshape(1, stop - start, -1)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            sums[index, :, :stop] += weights[0].view(2, 2, -1, stop).sum((1, 2))
            for head in range(2):
                held = [p for p in range(stop) if alive[index, head, p]]
                older = sorted(held[:-recent], key=lambda p: -sums[index, head, p])
                keep = sorted(older[: budget - recent] + held[-recent:]) if len(held) > budget else held
                alive[index, head, :stop] = False
                alive[index, head, keep] = True
        history.append([[alive[i, h, :stop].nonzero()[:, 0].tolist() for h in range(2)] for i in range(4)])
    return history


def test_dynamic_h2o_holds_its_budget_whatever_is_generated():
    model = tiny("llama", H2O(12, 4, form="dynamic"))
    for new in (1, 9):
        cache = model.generate(prompt(30), max_new_tokens=new, do_sample=False, return_dict_in_generate=True)
        assert cache_bytes(cache.past_key_values) == 4 * 2 * 2 * 12 * 12 * 4
    short = model.generate(prompt(5), max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    assert {layer.held for layer in short.past_key_values.layers} == {12}
