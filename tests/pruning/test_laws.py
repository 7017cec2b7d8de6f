"""Laws that hold for any text: slices of the original, identity at 1, forced spans verbatim, line breaks,
determinism.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill.pruning import Distill
from distill.pruning.units import MAX_UNIT, join, rebuild, split_units

BREAKS = regex.compile(r"[\n\r\x0b\x0c\x85\u2028\u2029]")
# arbitrary Unicode, and text that looks like prompts
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LATIN = ["word", "the", "v1.5.2", "$1,250.00", "don't", "not", "(", ")", "—", "--", "...", "?", "https://a.b/c?d=e"]
BLANK = [" ", "  ", "\n", "\n\n    ", "\t", "\r\n", "\u2028"]
OTHER = ["日本語", "。", "👩‍👩‍👧", "🇨🇭", "e\u0301", "naïve", "<|endoftext|>", "a" * 150]
PIECES = st.sampled_from([*LATIN, *BLANK, *OTHER])
TEXTS = UNICODE | st.lists(PIECES, max_size=40).map("".join)
LAWS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.data(), st.sampled_from(["keep", "compact"]))
def test_rebuild_keeps_exactly_what_it_is_told(text, data, layout):
    units = split_units(text)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(units), max_size=len(units))), dtype=bool)
    spans = rebuild(units, keep, layout=layout)
    out = join(text, spans)
    assert is_subsequence(out, text)
    assert all(a < b for a, b in spans) and all(b < c for (_, b), (c, _) in itertools.pairwise(spans))
    stays = np.zeros(len(text), dtype=bool)
    for a, b in spans:
        stays[a:b] = True
    for start, end, kept in zip(units.starts, units.ends, keep, strict=True):
        assert stays[start:end].all() if kept else not stays[start:end].any()
    if layout == "keep":
        assert BREAKS.findall(out) == BREAKS.findall(text)
    assert join(text, rebuild(units, np.ones(len(units), dtype=bool), layout=layout)) == text


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_units_partition_what_is_not_white_space(text):
    units = split_units(text)
    owned = "".join(text[a:b] for a, b in zip(units.starts, units.ends, strict=True))
    assert owned == regex.sub(r"\s", "", text)
    graphemes = regex.findall(r"\X", text)
    longest = max(map(len, graphemes), default=0)
    assert all(units.ends - units.starts <= MAX_UNIT + longest)


@LAWS
@example("\x1fA", 0.2)  # white space to str.strip, a unit to us
@given(TEXTS, st.sampled_from([0.2, 0.5, 0.8]))
def test_result_is_slices_within_budget(default, text, rate):
    result = default.compress(text, rate, keep_tags=False)
    result.check()
    assert is_subsequence(result.text, text)
    assert result.over_budget or result.tokens <= result.budget
    assert result.tokens == default.counter.count([result.text])[0]
    assert regex.search(r"\S", result.text) or not regex.search(r"\S", text)
    assert BREAKS.findall(result.text) == BREAKS.findall(text)


@LAWS
@given(TEXTS)
def test_rate_one_is_the_identity(default, text):
    for options in ({"rate": 1.0}, {"reduce_rate": 0.0}, {"threshold": 0.0}, {"target_tokens": 10_000}):
        assert default.compress(text, keep_tags=False, **options).text == text


@LAWS
@given(TEXTS, st.lists(UNICODE.filter(lambda t: 0 < len(t) < 6), min_size=1, max_size=3))
def test_forced_spans_survive_verbatim(default, text, tokens):
    result = default.compress(text, 0.1, force_tokens=tokens, keep_tags=False)
    for anchor in result.anchors:
        assert any(a <= anchor.start and anchor.end <= b for a, b in result.spans)
    for token in tokens:
        # a token that touches a letter inside a longer word is not an occurrence of it
        found = sum(1 for a in result.anchors if a.mask == "user" and text[a.start : a.end] == token)
        assert result.text.count(token) >= (1 if found else 0)


@LAWS
@given(TEXTS)
def test_same_input_same_output(default, text):
    first, second = (default.compress(text, 0.4, keep_tags=False) for _ in range(2))
    assert (first.text, first.spans, first.tokens) == (second.text, second.spans, second.tokens)


def test_indentation_and_separators():
    text = "def f(x):\n\tif x:\n\t\treturn  g(x)\n\nprint(f(2))\n"
    units = split_units(text)
    words = [text[a:b] for a, b in zip(units.starts, units.ends, strict=True)]
    keep = np.array([w not in ("if", "f(x") for w in words])
    assert join(text, rebuild(units, keep)) == "def):\n\t x:\n\t\treturn  g(x)\n\nprint(f(2))\n".replace("\t x", "\tx")


@pytest.mark.parametrize(
    ("text", "gone", "wanted"),
    [
        ("alpha beta gamma", ["beta"], "alpha gamma"),
        ("alpha, beta gamma", [","], "alpha beta gamma"),
        ("alpha beta.", ["beta"], "alpha."),
        ("alpha beta (gamma", ["beta", "("], "alpha gamma"),
        ("  alpha beta", ["alpha"], "  beta"),
        ("alpha\n  beta gamma\ndelta", ["beta", "gamma"], "alpha\n  \ndelta"),
        ("日本語を、読む。", ["日本語を"], "、読む。"),
    ],
)
def test_words_are_neither_glued_nor_spaced_apart(text, gone, wanted):
    units = split_units(text)
    keep = np.array([text[a:b] not in gone for a, b in zip(units.starts, units.ends, strict=True)])
    assert join(text, rebuild(units, keep)) == wanted


def test_compact_layout_drops_emptied_lines():
    text = "one\n\ntwo\nthree\n    four\n"
    units = split_units(text)
    keep = np.array([text[a:b] in ("one", "four") for a, b in zip(units.starts, units.ends, strict=True)])
    assert join(text, rebuild(units, keep, layout="keep")) == "one\n\n\n\n    four\n"
    assert join(text, rebuild(units, keep, layout="compact")) == "one\n\nfour\n"


def test_several_texts_are_each_pruned_as_alone(default, prose):
    texts = [prose, "", "A short one, not long.", prose.upper()]
    together = [r.text for r in default.compress_many(texts, 0.5)]
    assert together == [default.compress(t, 0.5).text for t in texts]


def test_distill_is_at_the_front_door(checkpoints):
    import distill

    assert distill.Distill is Distill
    found = Distill(model_name=checkpoints.llama, device_map="cpu").compress_prompt(
        ["Is it late? No.\nIt is early, and the day is long and bright."], rate=0.7, force_tokens=["\n", "?"]
    )
    assert len(found) == 1 and "\n" in found[0] and "?" in found[0]
