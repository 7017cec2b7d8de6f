"""Kinds of text, a ratio for each, repetition, and routing by complexity."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.pruning import KINDS, Distill, RandomScorer, Route, suggest
from distill.pruning.segments import split_segments, with_redundancy
from distill.pruning.units import split_units

PARTS = {
    "instruction": "Summarize the following report in three sentences.\n\n",
    "heading": "# The old bridge\n\n",
    "prose": "The committee met in the old town and agreed that nothing should be done before the winter came.\n\n",
    "list": "- the first way follows the railway\n- the second way is longer\n\n",
    "code": "```python\ndef f(x):\n\n    return x + 1\n```\n\n",
    "table": "| way | length |\n| --- | --- |\n| rail | 2.4 km |\n\n",
    "json": '{"way": [1, 2,\n 3], "open": true}\n\n',
    "log": "2024-05-17 10:45:01 INFO started\n2024-05-17 10:45:09 ERROR stopped\n\n",
    "question": "Which way is the shortest?\n",
}


def test_kinds_are_told_apart():
    text = "".join(PARTS.values())
    assert [s.kind for s in split_segments(text)] == list(PARTS)
    assert set(PARTS) == set(KINDS)


def test_code_without_fences():
    text = "import os\n\ndef main():\n    path = os.getcwd()\n    return path\n\nThis is what it does.\n"
    found = split_segments(text)
    assert {s.kind for s in found} == {"code", "prose"} and found[-1].kind == "prose"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*PARTS.values(), "\n", "{", "[1,", "```\n", "   x", "a\tb\tc\n", "日本語？"]), max_size=12
    )
)
def test_segments_partition_the_text(parts):
    text = "".join(parts)
    found = split_segments(text)
    assert "".join(text[s.start : s.end] for s in found) == text
    assert all(s.kind in KINDS for s in found)


def test_protected_kinds_pass_through(plain):
    text = PARTS["instruction"] + PARTS["prose"] * 6 + PARTS["code"] + PARTS["json"] + PARTS["question"]
    result = plain.compress(text, 0.6, segments=True)
    for kind in ("instruction", "code", "json", "question"):
        assert PARTS[kind].strip() in result.text
    assert not result.over_budget and result.tokens <= result.budget
    assert result.masks["protected"].anchors == 4 and result.masks["protected"].tokens > 0
    assert {s.kind for s in result.segments} == {"instruction", "prose", "code", "json", "question"}


def test_a_ratio_for_each_kind(plain, long_prose):
    prose, log = long_prose(200), PARTS["log"].replace("ERROR", "INFO") * 20  # errors would all stay
    text = f"{prose}\n\n{log}"
    result = plain.compress(text, segments={"prose": 0.8, "log": 0.3})
    share = {}
    for kind in ("prose", "log"):
        mine = [(s.start, s.end) for s in result.segments if s.kind == kind]
        inside = sum(max(0, min(b, e) - max(a, s)) for a, b in result.spans for s, e in mine)
        share[kind] = inside / sum(e - s for s, e in mine)
    assert share["prose"] > 0.55 > 0.45 > share["log"]
    assert not result.over_budget


def test_repetition_lowers_the_ratio(plain, long_prose):
    text = long_prose(150) + "\n\n" + PARTS["prose"] * 8
    found = with_redundancy(split_segments(text), split_units(text))
    assert found[0].redundancy < 0.6 and found[-1].redundancy > 0.9
    result = plain.compress(text, 0.5, segments=True)
    once, last = text.index(PARTS["prose"]), text.rindex(PARTS["prose"])
    kept = [sum(max(0, min(b, p + 95) - max(a, p)) for a, b in result.spans) for p in (once, last)]
    assert kept[1] < kept[0]


def test_a_budget_of_no_tokens(plain):
    assert plain.compress("a", 0.1, segments=True).over_budget
    assert plain.compress("", 0.1, segments=True).text == ""


@pytest.mark.parametrize("segments", [{"poem": 0.5}, {"prose": 0}, {"prose": 1.5}, {"prose": True}])
def test_bad_ratios(plain, segments):
    with pytest.raises(ValueError, match="segments"):
        plain.compress("a text", segments=segments)


def test_threshold_and_segments_contradict_each_other(plain):
    with pytest.raises(ValueError, match="threshold"):
        plain.compress("a text", threshold=0.5, segments=True)


ROUTES = [Route("small", up_to=0.3, max_tokens=2000), Route("medium", up_to=0.55), Route("large")]


def test_routing_suggests_with_reasons():
    easy = suggest("Hello there, nice day.", ROUTES)
    hard = suggest(
        "Prove step by step why the plan must never exceed 100 units, compare 3 designs, and explain each trade-off. "
        "The answer must be JSON, at most 200 words, without adjectives. Why? How many? What if not? Which one?\n"
        "```python\ndef f(x):\n    return x\n```\n" * 6,
        ROUTES,
    )
    assert easy.model == "small" and hard.model == "large" and easy.score < hard.score
    assert 0 <= easy.score <= hard.score <= 1 and set(easy.features) == set(hard.features)
    assert any("question marks" in r for r in hard.reasons) and "large" in hard.reasons[-1]
    assert hard == suggest(
        "Prove step by step why the plan must never exceed 100 units, compare 3 designs, and explain each trade-off. "
        "The answer must be JSON, at most 200 words, without adjectives. Why? How many? What if not? Which one?\n"
        "```python\ndef f(x):\n    return x\n```\n" * 6,
        ROUTES,
    )


def test_routing_respects_token_limits():
    found = suggest("plain words and nothing else " * 3000, ROUTES, weights={"code": 1.0})
    assert found.score < 0.3 and found.model == "medium" and any("at most 2000 tokens" in r for r in found.reasons)


@pytest.mark.parametrize(
    ("routes", "weights", "word"),
    [
        ([], None, "routes: got"),
        ([Route("a", up_to=0.5)], None, "takes everything"),
        (5, None, "routes: got 5"),
        (["a"], None, "routes: got"),
        (ROUTES, {"mood": 1.0}, "weights"),
        (ROUTES, {"code": 0.0}, "weights"),
        (ROUTES, {"code": -1.0}, "weights"),
        (ROUTES, {"code": float("nan")}, "weights"),
        (ROUTES, {"code": 10**400}, "weights"),
        (ROUTES, 3, "weights: got 3"),
    ],
)
def test_bad_routes(routes, weights, word):
    with pytest.raises(ValueError, match=word):
        suggest("text", routes, weights=weights)


@pytest.mark.parametrize(
    ("bounds", "word"),
    [
        ({"up_to": 1.5}, "up_to: got 1.5; allowed are numbers above 0 and up to 1"),
        ({"up_to": float("nan")}, "up_to"),
        ({"max_tokens": 0}, "max_tokens: got 0; allowed are whole numbers from 1"),
        ({"max_tokens": True}, "max_tokens"),
        ({"model": 3}, "model: got 3; allowed are strings"),
    ],
)
def test_bad_bounds_of_a_route(bounds, word):
    with pytest.raises(ValueError, match=word):
        Route(**{"model": "a", **bounds})


def test_layout_is_an_option(long_prose):
    text = "\n".join(long_prose(120).split(". "))
    kept, compact = (
        Distill(scorer=RandomScorer(0, "sentence"), ner=None, rules=False, layout=layout).compress(text, 0.3)
        for layout in ("keep", "compact")
    )
    assert compact.text.count("\n") < kept.text.count("\n") == text.count("\n")
