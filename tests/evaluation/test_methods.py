"""Any registered method works here by its name: shown with one that this room has never heard of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import distill
from distill.evaluation import methods
from distill.evaluation.cli import main
from distill.evaluation.generation import Generator
from distill.evaluation.prompting import Encoder, Prompt
from distill.evaluation.report import collect
from distill.evaluation.runs import sweep
from distill.patches import policy as registry
from distill.patches.checks import check_budget
from distill.patches.policy import Policy, budget_tokens
from distill.patches.run import Run

PROMPT = Prompt("the river was quiet. " * 8, "who was quiet?")


@dataclass(frozen=True)
class Newest(Policy):
    """Keeps the newest entries; the second KV head one entry less, so that heads differ."""

    name = "newest"
    budget: int | float = 8

    def __post_init__(self):
        check_budget("budget", self.budget)

    def begin(self, call):
        return NewestRun(self, call) if bool(call.tokens.droppable.any()) else None


class NewestRun(Run):
    def __init__(self, policy, call):
        self.keep = int(budget_tokens(policy.budget, torch.tensor([call.tokens.count]))[0])

    def evict(self, layer_idx, layer):
        if layer.held <= self.keep:
            return None
        newest = torch.arange(layer.held - self.keep, layer.held)
        rows = torch.stack([newest, torch.cat([torch.tensor([-1]), newest[1:]])])
        return rows[None]


@dataclass(frozen=True)
class Wrapped(Policy):
    """Changes another policy, which brings the budget."""

    name = "wrapped"
    policy: Newest
    strength: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "policy", registry.as_policy(self.policy))


@pytest.fixture
def newest(monkeypatch):
    monkeypatch.setitem(registry._REGISTRY, "newest", Newest)
    monkeypatch.setitem(registry._REGISTRY, "wrapped", Wrapped)


def test_it_is_found_swept_and_told_apart(newest):
    assert "newest" in methods.editions()
    assert methods.make("newest", {"budget": 4}).policy == Newest(4)
    assert [m.policy for m in sweep(["newest"], [4, 0.5])] == [None, Newest(4), Newest(0.5)]
    with pytest.raises(ValueError, match="n_topks: got an argument that newest does not have; allowed are budget"):
        methods.make("newest", {"n_topks": [3]})


def test_the_budget_of_a_wrapped_policy(newest):
    method = methods.parse("wrapped:policy=newest,strength=1", 16)
    assert method.policy == Wrapped(Newest(16), 1) and method.label == 'wrapped(policy="newest", strength=1)'
    nested = methods.parse('wrapped:policy={"name":"wrapped","policy":"newest"}', 0.5)
    assert nested.policy == Wrapped(Wrapped(Newest(0.5)))
    assert {methods.parse("wrapped:policy=newest", n).label for n in (4, 8)} == {'wrapped(policy="newest")'}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1,b=[2,3],c=word", {"a": 1, "b": [2, 3], "c": "word"}),
        ('d={"name":"x","y":[1,2]},e=0.5,f=true', {"d": {"name": "x", "y": [1, 2]}, "e": 0.5, "f": True}),
        ("a=1e,b=kv_head", {"a": "1e", "b": "kv_head"}),
    ],
)
def test_arguments(text, expected):
    assert methods.parse_arguments(text) == expected


@pytest.mark.parametrize("text", ["a", "a=", "a=1,,b=2", "a=[1", "=1", "a={b}"])
def test_arguments_that_are_none(text):
    with pytest.raises(ValueError, match="allowed is name=value"):
        methods.parse_arguments(text)


@pytest.mark.parametrize("protocol", ["query-aware", "query-agnostic"])
def test_eviction_by_head_under_both_protocols(tiny, tokenizer, protocol):
    model, encoder = distill.load(tiny, policy=None), Encoder(tokenizer)
    made = Generator(model, encoder, Newest(6), protocol)(PROMPT, 4, keep=True)
    read = made.prompt_tokens if protocol == "query-aware" else len(encoder.encode(PROMPT.context))
    # every layer: both heads hold the newest five tokens that were read, one of them a sixth
    assert made.kept[:read] == pytest.approx([0.0] * (read - 6) + [0.5] + [1.0] * 5)
    assert made.kept[read:] == [1.0] * (made.prompt_tokens - read)
    # 3 layers, keys and values of 8 float32 each; the uneven heads hold no fillers
    after = 6 + 5 + 2 * (made.prompt_tokens - read + made.new_tokens - 1)
    assert made.cache_bytes == 3 * 2 * 8 * 4 * after
    assert made.peak_cache_bytes > made.cache_bytes


def test_a_comparison_over_budgets(newest, tiny, essays, tmp_path):
    arguments = ["compare", "needle", "--model", str(tiny), "--cpu", "--data-path", str(essays), "--needles", "1"]
    arguments += ["--s_len", "600", "--e_len", "600", "--n-lengths", "1", "--n-depths", "2", "--output", str(tmp_path)]
    assert main([*arguments, "--methods", "newest", "--budgets", "16", "0.25", "--protocol", "both"]) == 0
    data = collect(sorted(path.parent for path in tmp_path.rglob("scores.json")))
    found = {(run["label"], run["budget"], run["protocol"]) for run in data["runs"]}
    budgets = {("newest", 16), ("newest", 0.25), ("default", None)}
    assert found == {(*pair, protocol) for pair in budgets for protocol in ("query-aware", "query-agnostic")}
    sizes = {run["budget"]: run["tasks"]["random"]["cost"]["cache_bytes"] for run in data["runs"]}
    assert sizes[16] < sizes[0.25] < sizes[None]
