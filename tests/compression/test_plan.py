"""The planner: within its bytes, never above break-even, and no other choice of ranks is better."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.compression.calibration import linears_of
from distill.compression.low_rank import embedding_factorization, low_rank
from distill.compression.measure import measured, planner
from distill.compression.plan import Infeasible, Limits, Matrix, Planner
from distill.compression.settings import CONFIGS, Settings, presets, read_config, size

from ..tiny import prompt, tiny


def matrices(seed, shapes):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, (rows, columns) in enumerate(shapes):
        errors = torch.rand(min(rows, columns), generator=generator).pow(3).sort(descending=True).values
        made.append(Matrix(f"layers.{number}.m", rows, columns, tuple(errors.double().tolist())))
    return made


SHAPES = st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=5)


@given(
    shapes=SHAPES, share=st.floats(0.2, 1.0), seed=st.integers(0, 999), kind=st.sampled_from(["uniform", "adaptive"])
)
@settings(deadline=None, max_examples=150)
def test_plans_keep_within_the_bytes_and_below_break_even(shapes, share, seed, kind):
    made = Planner(matrices(seed, shapes), 100, 2, ["a", "b"], Limits(1, 1.0, 1))
    target = int(share * made.plan({}).bytes)
    try:
        plan = getattr(made, kind)(target)
    except Infeasible as error:
        assert error.best == made.smallest() and error.best.bytes > target
        return
    assert plan.bytes <= target
    for matrix in made.matrices:
        rank = plan.ranks.get(matrix.name)
        assert rank is None or (1 <= rank <= matrix.most and matrix.factors(rank) < matrix.weights)
    assert plan.loss == pytest.approx(sum(m.loss(plan.ranks.get(m.name)) for m in made.matrices))


@given(seed=st.integers(0, 300), share=st.floats(0.3, 0.95))
@settings(deadline=None, max_examples=40)
def test_no_other_ranks_are_better_by_more_than_one_step(seed, share):
    """Against all choices there are: the greedy one on convex hulls lies within one step of the best."""
    made = Planner(matrices(seed, [(12, 12), (16, 10)]), 0, 1, [], Limits(1, 1.0, 1))
    target = int(share * made.plan({}).bytes)
    options = [[None, *made.limits.ranks(matrix)] for matrix in made.matrices]
    plans = [
        made.plan({m.name: rank for m, rank in zip(made.matrices, chosen, strict=True) if rank is not None})
        for chosen in itertools.product(*options)
    ]
    within = [plan.loss for plan in plans if plan.bytes <= target]
    if not within:
        return
    try:
        loss = made.adaptive(target).loss
    except Infeasible:
        return  # the lowest ranks of all; leaving one whole may still fit, never be below it
    step = max(abs(b[1] - a[1]) for m in made.matrices for a, b in itertools.pairwise(made._hull(m)))
    assert min(within) - 1e-12 <= loss <= min(within) + step


def test_what_is_planned_is_what_is_stored(tmp_path):
    ids = prompt(40, 3)
    for kind, embedding in itertools.product(("uniform", "adaptive"), (False, True)):
        model = tiny("llama", tie_word_embeddings=True)
        made = planner(model, 4, measured(model, ids, embedding), embedding, Limits(2, 1.0, 1))
        model.save_pretrained(tmp_path / "whole")
        whole = (tmp_path / "whole" / "model.safetensors").stat().st_size
        assert whole <= made.plan({}).bytes <= whole * 1.05
        plan = getattr(made, kind)(int(0.7 * made.plan({}).bytes))
        ranks = dict(plan.ranks)
        rank = ranks.pop("embedding", None)
        assert (rank is not None) <= embedding
        if rank is not None:
            embedding_factorization(model, rank)
        low_rank(model, ranks, ids)
        model.save_pretrained(tmp_path / "small")
        small = (tmp_path / "small" / "model.safetensors").stat().st_size
        assert 0.93 * plan.bytes <= small <= plan.bytes
        assert "q_proj" in plan.table() and f"{plan.bytes:,} bytes" in plan.table()


def test_adaptive_ranks_follow_what_is_worth_most():
    """A matrix whose output hardly matters gets the low ranks."""
    steep = tuple(0.5**i for i in range(32))
    flat = tuple(1e-6 for _ in range(32))
    made = Planner([Matrix("a", 32, 32, steep), Matrix("b", 32, 32, flat)], 0, 1, [], Limits(1, 1.0, 1))
    plan = made.adaptive(int(0.6 * made.plan({}).bytes))
    assert plan.ranks.get("a", 32) > plan.ranks["b"]
    uniform = made.uniform(int(0.6 * made.plan({}).bytes))
    assert plan.loss < uniform.loss and uniform.ranks["a"] == uniform.ranks["b"]


def test_sensitivity_is_the_curvature_of_the_loss():
    """The predicted growth of a small, random error's loss is what is measured."""
    from distill.compression.calibration import sensitivities

    torch.manual_seed(0)
    model, ids = tiny("llama"), prompt(60, 8)
    name = "model.layers.2.mlp.down_proj"
    weight = sensitivities(model, ids, [name])[name]
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        growths = []
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            noise = {}

            def add(module, args, out, generator=generator, noise=noise):
                noise["e"] = 1e-2 * torch.randn(out.shape, generator=generator)
                return out + noise["e"]

            handle = model.get_submodule(name).register_forward_hook(add)
            after = model(ids).logits.log_softmax(-1)
            handle.remove()
            kl = (before.exp() * (before - after)).sum(-1).mean()
            growths.append(float(kl / noise["e"].square().sum(-1).mean()))
    assert weight == pytest.approx(sum(growths) / len(growths), rel=0.2)


def test_impossible_targets_say_the_best_there_is():
    model = tiny("llama")
    made = planner(model, 4, measured(model, prompt(30, 2)), limits=Limits(2, 1.0, 1))
    for kind in ("uniform", "adaptive"):
        with pytest.raises(Infeasible, match=r"bytes: got 1,000; allowed here are [\d,]+ and more") as error:
            getattr(made, kind)(1000)
        assert error.value.best.bytes == made.smallest().bytes
    with pytest.raises(ValueError, match="ranks: got 'adaptive' without measured errors"):
        planner(model, 4).adaptive(10**9)
    assert planner(model, 4).uniform(10**9).ranks == {}
    assert len(linears_of(model)) == 28


def test_settings_are_checked():
    assert size("200MB") == 200_000_000 and size("190MiB") == 190 * 2**20 and size(7) == 7 and size("1.5 kb") == 1500
    for bad in ("", "MB", "-1", "2 XB", "0"):
        with pytest.raises(ValueError, match="bytes: got"):
            size(bad)
    for values, message in [
        ({}, "bytes, ratio: got both or neither"),
        ({"bytes": 5, "ratio": 2.0}, "bytes, ratio: got both or neither"),
        ({"ratio": 1.0}, "ratio: got 1.0; allowed are numbers above 1"),
        ({"ratio": 2, "transforms": ["recover", "low_rank"]}, "allowed is recover at the end only"),
        ({"ratio": 2, "transforms": ["prune"]}, "transforms: got"),
        ({"ratio": 2, "cap": 1.5}, "cap: got 1.5"),
        ({"ratio": 2, "kv_share": 1, "transforms": ["kv_low_rank", "low_rank"]}, "kv_share: got 1; allowed"),
        ({"ratio": 2, "kv_share": 0.25}, "kv_share: got 0.25 without kv_low_rank"),
        ({"ratio": 2, "lora": 4}, "lora: got 4 without recover"),
        ({"ratio": 2, "bits": 8, "transforms": ["kv_low_rank", "low_rank"]}, "bits: got 8 with kv_low_rank"),
        ({"ratio": 2, "bits": 4}, "bits: got 4 with a target"),
        ({"bits": 3}, "bits: got 3; allowed are 8 and 4"),
        ({"ratio": 2, "transforms": ["low_rank", "kv_low_rank"]}, "allowed is kv_low_rank before low_rank"),
        ({"ratio": 2, "method": "magic"}, "method: got 'magic'; allowed are whitened, plain"),
        ({"ratio": 2, "quality": 0.5}, "quality: got 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Settings(**values)


def test_presets_and_configurations_of_other_programs_are_read(tmp_path):
    assert presets() == sorted(path.stem for path in CONFIGS.iterdir()) and "hybrid" in presets()
    for name in presets():
        values, notes = read_config(name)
        target = {} if "bits" in values else {"ratio": 2.0}
        assert not notes and Settings(**target, **values).transforms
    assert read_config("configs/hybrid.yaml")[0]["transforms"] == ["embedding_factorization", "low_rank"]
    file = tmp_path / "theirs.yaml"
    file.write_text(
        "branches:\n  lra: {rank: 64}\n  kv: true\n  blt: {enabled: true}\n  sparsity: 0.99\nratio: 1000\nlr: 1"
    )
    values, notes = read_config(file)
    assert values == {"transforms": ["embedding_factorization", "kv_low_rank", "low_rank"], "ratio": 1000}
    text = "\n".join(notes)
    for said in (
        "not multiplied",
        "sparsity: left out",
        "LatentCache(model)",
        "lr: not used",
        "lra: its rank not used",
    ):
        assert said in text
    file.write_text("branches: [sparsity]")
    with pytest.raises(ValueError, match="branches: got sparsity; allowed are lists with lra or kv"):
        read_config(file)
    file.write_text("branches: [magic, lra]")
    with pytest.raises(ValueError, match="branches: got magic"):
        read_config(file)
    file.write_text("rnk: 3")
    with pytest.raises(ValueError, match="config: got rnk; allowed are bits, bytes"):
        read_config(file)
    with pytest.raises(ValueError, match="allowed are YAML files, and adaptive, cache"):
        read_config("nothing.yaml")
