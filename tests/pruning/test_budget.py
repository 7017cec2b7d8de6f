"""Budgets: exact, never over, and every wrong one an error that names the argument."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.pruning import BudgetError, BudgetWarning, Distill
from distill.pruning.budget import Draft, make_budget, price, solve
from distill.pruning.tokenization import EstimateCounter, TiktokenCounter, make_counter
from distill.pruning.units import split_units


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"rate": 1.5}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"rate": -0.1}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"rate": float("nan")}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"rate": True}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"rate": "0.5"}, "rate: got .*; allowed are numbers above 0 and up to 1"),
        ({"reduce_rate": 1.0}, "reduce_rate: got"),
        ({"target_tokens": 0}, "target_tokens: got .*; allowed are whole numbers from 1"),
        ({"target_tokens": 2.5}, "target_tokens: got .*; allowed are whole numbers from 1"),
        ({"threshold": 1.1}, "threshold: got"),
        ({"rate": 0.5, "reduce_rate": 0.5}, "rate: got a value beside reduce_rate; allowed are only one of rate"),
        ({"rate": 0.5, "target_tokens": 5}, "only one"),
        *(({name: 10**400}, f"{name}: got an integer of 1329 bits") for name in ("rate", "reduce_rate", "threshold")),
        *(({"target_tokens": value}, "target_tokens: got") for value in (10**400, float("inf"), float("nan"), True)),
        ({"keep_tags": 1}, "keep_tags: got 1; allowed are True and False"),
        ({"check": 1}, "check: got 1"),
        ({"scope": "some"}, "scope"),
        ({"on_over_budget": "ignore"}, "on_over_budget"),
    ],
)
def test_wrong_budgets(default, options, words):
    with pytest.raises(ValueError, match=words):
        default.compress("some text to shorten", **options)


def test_ways_to_say_the_same(default, prose):
    half = default.compress(prose, 0.5)
    assert default.compress(prose).text == half.text
    assert default.compress(prose, reduce_rate=0.5).text == half.text
    assert default.compress(prose, target_tokens=half.budget).text == half.text
    assert make_budget(reduce_rate=0.3).rate == pytest.approx(0.7)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_budget_is_met_to_the_token(plain, prose, long_prose, rate):
    for text in (prose, prose.replace("\n", " "), long_prose(400), prose * 3):
        result = plain.compress(text, rate)
        assert result.tokens == plain.counter.count([result.text])[0] <= result.budget
        assert not result.over_budget
        # the units here cost a few tokens each, and filling takes cheaper ones
        assert result.budget - result.tokens <= 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_solver_is_within_one_unit_of_the_budget(checkpoints, data):
    """For any ranking, any forced units and any budget."""
    words = data.draw(
        st.lists(st.sampled_from(["a", "bridge", "Geneva", "the", "\n", "1998", "日", "..."]), max_size=40)
    )
    units = split_units(" ".join(words))
    counter = make_counter(EstimateCounter())
    cost, _, total = price(counter, units)
    n = len(units)
    forced = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    ranking = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    ranking = ranking[~forced[ranking]]
    budget = data.draw(st.integers(0, total + 2))
    draft = Draft(units, forced, np.zeros(n + 1, dtype=bool), cost)
    found = solve([draft], ranking, budget, counter, total)
    keep = found.keep[0]
    assert keep[forced].all()
    assert found.tokens == counter.count([draft.text(keep)])[0]
    assert found.over == (found.tokens > budget)
    if found.over:
        # only what must stay, or the one unit that is always left
        assert keep.sum() == max(forced.sum(), min(n, 1))
    elif not keep.all():
        left = [u for u in ranking if not keep[u]]
        best = keep.copy()
        best[left[0]] = True
        assert counter.count([draft.text(best)])[0] > budget


def test_threshold(prose):
    plain = Distill(scorer="baseline", ner=None, rules=False)
    some, fewer = plain.compress(prose, threshold=0.3), plain.compress(prose, threshold=0.6)
    assert 0 < fewer.tokens < some.tokens < some.original_tokens
    assert some.budget is None and not some.over_budget
    assert plain.compress(prose, threshold=0.0).text == prose


def test_anchors_over_the_budget_are_never_silent(default):
    text = "v1.5.2 $1,250.00 10:45 AB12CD"
    result = default.compress(text, 0.2)
    assert result.over_budget and result.text == text and any("over the budget" in n for n in result.notes)
    with pytest.warns(BudgetWarning, match="1 of 1 texts"):
        assert default.compress_prompt([text], rate=0.2) == [text]
    with pytest.raises(BudgetError, match="rules"):
        default.compress(text, 0.2, on_over_budget="error")


def test_the_last_unit_stays_and_says_so(plain):
    result = plain.compress("incomprehensibilities", 0.1)
    assert result.text == "incomprehensibilities" and result.over_budget
    assert any("the one unit that is always left" in n for n in result.notes)


def test_shared_budget(plain, prose, long_prose):
    texts = [prose, long_prose(300), "One short line."]
    each, shared = plain.compress_many(texts, 0.4), plain.compress_many(texts, 0.4, scope="all")
    assert sum(r.tokens for r in shared) <= shared[0].budget == sum(r.budget for r in each)
    assert shared[0].budget - sum(r.tokens for r in shared) <= 2
    assert [r.tokens for r in shared] != [r.tokens for r in each]
    total = plain.compress_many(texts, target_tokens=100, scope="all")
    assert sum(r.tokens for r in total) <= 100
    assert plain.compress_many([], 0.5, scope="all") == []


def test_counts_are_the_targets(checkpoints, prose):
    pruner = Distill(checkpoints.llama, ner=None, target_tokenizer=checkpoints.bert)
    result = pruner.compress(prose, 0.5)
    assert result.exact and result.counter == "bert-base-multilingual-cased"
    assert result.tokens == make_counter(checkpoints.bert).count([result.text])[0]


def test_estimates_say_so(checkpoints, prose):
    own = Distill(checkpoints.llama, ner=None).compress(prose, 0.5)
    assert not own.exact and "estimate" in own.counter
    bare = Distill(scorer="baseline", ner=None).compress(prose, 0.5)
    assert not bare.exact and "estimate" in bare.counter and bare.tokens <= bare.budget


def test_tiktoken_counter(prose):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b" t": 257, "日".encode(): 258}
    counter = TiktokenCounter(
        tiktoken.Encoding(
            "tiny", pat_str=r"\s?\w+|\s?[^\s\w]+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 300}
        )
    )
    text = "the 日本 <|endoftext|> 😀"
    starts, ends = counter.offsets(text)
    assert len(starts) == counter.count([text])[0] and all(starts < ends) and ends[-1] == len(text)
    assert counter.offsets("")[0].size == 0
    result = Distill(scorer="baseline", ner=None, target_tokenizer=counter).compress(prose + text, 0.5)
    assert result.exact and result.tokens <= result.budget and result.counter == "tiktoken:tiny"


@pytest.mark.parametrize("target", [3, "/no/such/folder", "tiktoken:no-such-encoding"])
def test_bad_target_tokenizers(checkpoints, target):
    with pytest.raises(ValueError, match="target_tokenizer"):
        Distill(checkpoints.llama, target_tokenizer=target)


def test_the_counter_ignores_state_left_on_the_tokenizer(checkpoints, prose):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoints.bert)
    whole = make_counter(tokenizer).count([prose])
    tokenizer(prose, truncation=True, max_length=8, padding="max_length")
    assert make_counter(tokenizer).count([prose]) == whole
    assert whole[0] > 100
