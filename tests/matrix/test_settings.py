"""Bad values for every argument of every method: each works, or is a `ValueError` that names the argument."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest
from transformers import DynamicCache

import distill
from distill.patches.policy import as_policy, policy_class

from ..tiny import lasting_pair, prefill, prompt
from .methods import scorer

#: arguments without which a method cannot be made, or runs on no model of four layers
NEEDED = {
    "adakv": {"policy": {"name": "snapkv", "budget": 12, "window_size": 4}},
    "chunkkv": {"policy": {"name": "snapkv", "budget": 12, "window_size": 4}, "chunk_length": 4},
    "compose": {"policies": ["knorm", "tova"]},
    "criticalkv": {"policy": {"name": "snapkv", "budget": 12, "window_size": 4}},
    "decoding": {"policy": "knorm", "budget": 12, "every": 1},
    "fastkv": {"tsp_layer": 1, "budget": 12, "tsp_budget": 20},
    "gemfilter": {"layer": 1, "budget": 12},
    "kvzap": {"budget": 12, "scorer": scorer(), "sinks": 2, "recent": 3},
    "matching": {"policy": {"name": "snapkv", "budget": 12, "window_size": 4}},
    "promptdistill": {"selection_layers": [1], "n_topks": [12]},
}
FITTING = {"budget": 12, "window_size": 4, "recent_size": 4, "lag_size": 2, "sinks": 2}


def nested(depth, inner: Any):
    value = inner
    for _ in range(depth):
        value = [value]
    return value


def policies_nested(depth):
    value: Any = {"name": "knorm"}
    for _ in range(depth):
        value = {"name": "compose", "policies": [value, {"name": "knorm"}]}
    return value


BAD = {
    "10**400": 10**400,
    "-10**400": -(10**400),
    "2**70": 2**70,
    "2**63": 2**63,
    "2**31": 2**31,
    "2**31-1": 2**31 - 1,
    "-1": -1,
    "0": 0,
    "1": 1,
    "3": 3,
    "1.0": 1.0,
    "0.5": 0.5,
    "1e308": 1e308,
    "5e-324": 5e-324,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "True": True,
    "False": False,
    "text": "x",
    "no text": "",
    "long text": "x" * 10**6,
    "bytes": b"x",
    "None": None,
    "[]": [],
    "()": (),
    "{}": {},
    "[None]": [None],
    "[True]": [True],
    "[NaN]": [float("nan")],
    "[2**70]": [2**70],
    "[-1]": [-1],
    "[[1]]": [[1]],
    "['x']": ["x"],
    "a long list": [1] * 10**5,
    "a deep list": nested(2000, 1),
    "deep policies": policies_nested(2000),
    "a policy without a name": {"budget": 1},
    "a policy of a name that is none": {"name": ["snapkv"]},
    "an unknown policy": {"name": "nosuch"},
    "a list of policies": [{"name": "knorm"}, {"name": "tova"}],
    "an object": object(),
    "a class": int,
    "a complex number": 1j,
}


def arguments():
    own = [name for name in distill.policies() if policy_class(name).__module__.startswith("distill.")]
    return [(name, field.name) for name in own for field in fields(policy_class(name))]


@pytest.mark.parametrize(("name", "argument"), arguments())
def test_a_value_works_or_is_refused_by_the_name_of_its_argument(name, argument):
    model = lasting_pair("llama")[1]
    there = {field.name for field in fields(policy_class(name))}
    fitting = {key: value for key, value in FITTING.items() if key in there} | NEEDED.get(name, {})
    works(model, distill.policy(name, **fitting))
    for what, value in BAD.items():
        try:
            chosen = distill.policy(name, **fitting | {argument: value})
            assert as_policy(chosen.to_dict()) == chosen
            works(model, chosen)
        except ValueError as error:
            subject = str(error).split(": got")[0]  # where two contradict each other, either of them
            assert argument in str(error) or any(key in subject for key in fitting), (what, str(error))
            assert len(str(error)) < 2000


def works(model, policy):
    """A prompt and two steps, which a deep copy would not do."""
    cache = DynamicCache()
    policy.check(model.config)
    assert all(0 < count <= 4 * 40 for count in policy.entries_kept(40, model.config))
    for ids in (prompt(40), prompt(1, seed=2), prompt(1, seed=3)):
        prefill(model, ids, past_key_values=cache, policy=policy)


@pytest.mark.parametrize("name", [name for name, _ in dict.fromkeys((name, "") for name, _ in arguments())])
def test_other_names_of_arguments(name):
    for argument in ("nosuch", "module", "__class__", "budgets"):
        with pytest.raises(ValueError, match=f"{argument}: got an argument that {name} does not have"):
            distill.policy(name, **{argument: 1})


def test_policies_that_are_none():
    model = lasting_pair("llama")[1]
    for what, value in BAD.items():
        if value is None:
            continue
        for act in (as_policy, lambda given: setattr(model.config, "policy", given), lambda given: run(model, given)):
            with pytest.raises(ValueError, match=r"polic|name"):
                act(value)
        assert what


def run(model, policy):
    prefill(model, prompt(20), policy=policy)


@pytest.mark.parametrize("budget", BAD)
def test_budgets_given_to_a_policy(budget):
    """`with_budget` and `from_budget`, for every method."""
    for name in dict.fromkeys(name for name, _ in arguments()):
        there = {field.name for field in fields(policy_class(name))}
        fitting = {key: value for key, value in FITTING.items() if key in there} | NEEDED.get(name, {})
        policy = distill.policy(name, **fitting)
        rest = {key: value for key, value in fitting.items() if key != "budget"}
        for make in (policy.with_budget, partial(policy_class(name).from_budget, **rest)):
            try:
                made = make(BAD[budget])
            except ValueError as error:
                subject = str(error).split(": got")[0]
                assert any(word in subject for word in ("budget", "n_topks", "sinks", "chunk_length")), error
            else:
                assert type(made) is type(policy)
