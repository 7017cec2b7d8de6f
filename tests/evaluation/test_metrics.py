"""Scorers against outputs of the official scorers, and laws that hold for any text.

golden_metrics.json was made by running the scorers of THUDM/LongBench @2e00731 and OpenBMB/InfiniteBench @88b3daa
(later rules: kvpress 8bb29b9) on inputs written for it, with rouge 1.0.1, jieba 0.42.1, fuzzywuzzy 0.18.0 and
rapidfuzz 3.14.6.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation.metrics import infinitebench, longbench, retrieval, text

GOLDEN = json.loads((Path(__file__).parent / "golden_metrics.json").read_text(encoding="utf-8"))
BACKENDS = {"score": "difflib", "score_with_python_levenshtein": "indel"}
RULES = {"score_88b3daa": "2024-06", "score_later_rules": "2024-08"}


def columns(cases, names):
    return [pytest.param(case, key, id=f"{i}-{key}") for i, case in enumerate(cases) for key in names if key in case]


@pytest.mark.parametrize(("case", "key"), columns(GOLDEN["longbench"], BACKENDS))
def test_longbench_equals_the_official_scorer(case, key):
    name = case["metric"].removesuffix("_score")
    extra = {"classes": case["all_classes"]} if "all_classes" in case else {}
    if name == "code_sim":
        extra["backend"] = BACKENDS[key]
    assert longbench.SCORERS[name](case["pred"], case["gt"], **extra) == case[key]


@pytest.mark.parametrize(("case", "key"), columns(GOLDEN["infinitebench"], RULES))
def test_infinitebench_equals_the_official_scorer(case, key):
    if case[key] == "ValueError":
        with pytest.raises(ValueError, match="crash"):
            infinitebench.score(case["task"], case["pred"], case["label"], RULES[key])
    else:
        assert infinitebench.score(case["task"], case["pred"], case["label"], RULES[key]) == case[key]


@pytest.mark.parametrize("case", GOLDEN["ruler"])
def test_ruler_equals_the_official_scorer(case):
    scorer = getattr(retrieval, case["metric"])
    scores = [scorer(pred, refs) for pred, refs in zip(case["preds"], case["refs"], strict=True)]
    assert round(100 * sum(scores) / len(scores), 2) == case["score"]


def test_the_golden_cases_here_are_those_of_the_specification(shared):
    assert json.loads(shared("eval", "golden_metrics.json").read_text(encoding="utf-8")) == GOLDEN


def test_promptdistill_rules_are_the_earlier_scorer():
    def score(task, prediction, label):
        return infinitebench.score(task, prediction, label, "promptdistill")

    assert score("code_debug", "correct option is: run", ["run", "C"]) == 1.0  # through the cue "is:"
    assert score("code_debug", " C. run", ["run", "C"]) == 0.0  # not stripped before the first test
    assert infinitebench.score("code_debug", "A or C", ["run", "C"], "2024-06") == 0.0
    assert score("math_find", "88.7", 88) == 1.0
    assert score("longbook_sum_eng", "one two three four", "four three two one") == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "later", "earlier"),
    [
        ("cmd_gen", 1, 0),
        ("cmd_gen is wrong, B", 1, 0),
        ("C or A", 1, 0),
        ("A or C", 1, 0),
        ("C) cmd_gen, not A", 1, 0),
        ("C, but A is close", 1, 0),
        ("C", 1, 0),
        ("  C\nA", 1, 0),
        ("Cannot say, A", 1, 0),  # the official rules look at the first letter only
        ("C: cmd_gen or A", 1, 1),
        ("A: cmd_gen", 0, 0),
        ("A) not cmd_gen", 0, 0),
        ("`cmd_gen`", 0, 0),  # the quote becomes a blank, and blanks are cut off before that
        ("The answer is: C, not A", 1, 1),
        ("The answer is: A", 0, 0),
        ("A. The correct option is: cmd_gen", 1, 1),
        ("", 0, 0),
    ],
)
def test_code_debug_under_both_rules(prediction, later, earlier):
    label = ["cmd_gen", "C"]
    assert infinitebench.score("code_debug", prediction, label, "2024-08") == later
    assert infinitebench.score("code_debug", prediction, label, "2024-06") == earlier


def test_rouge_libraries_differ():
    pair = ("one two three four", "four three two one")
    assert text.rouge_l(*pair) != text.rouge_lsum(*pair)


def test_multiple_references_take_the_best():
    assert infinitebench.score("longbook_qa_eng", "the old hebrides", ["nowhere", "old hebrides"]) == 1.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("**The correct answer is C**", "C"),
        ("The correct answer is (insert answer here) (D)", None),
        ("the correct answer is (A)", None),
        ("", None),
    ],
)
def test_longbench2_extraction(answer, letter):
    assert longbench.choice(answer) == letter


def test_babilong_wants_exactly_the_target():
    question = "Where is Mary? "
    assert retrieval.babilong("The most recent location of Mary is kitchen.", "kitchen", question, "qa1") == 1.0
    assert retrieval.babilong("kitchen or garden", "kitchen", question, "qa1") == 0.0
    assert retrieval.babilong("garden. kitchen", "kitchen", question, "qa1") == 0.0
    assert retrieval.babilong("Kitchen", "kitchen", "What is north of the garden?", "qa4") == 1.0
    assert retrieval.babilong("garden kitchen", "kitchen", "What is north of the garden?", "qa4") == 1.0
    assert retrieval.babilong("milk, apple", "apple,milk", "What is Daniel carrying?", "qa8") == 1.0
    assert retrieval.babilong("apple", "apple,milk", "What is Daniel carrying?", "qa8") == 0.0
    with pytest.raises(ValueError, match="qa11"):
        retrieval.babilong("x", "x", "x", "qa11")


def test_classic_needle_scores():
    gold = "eat a sandwich and sit in dolores park on a sunny day."
    assert retrieval.needle_overlap(gold, gold) == pytest.approx(11 / 12)
    assert retrieval.needle_overlap("sunny day", gold) == pytest.approx(1 / 12)
    phrase = "eat a sandwich and sit in Dolores Park on a sunny day"
    assert retrieval.needle_phrase(f"It is to {gold}", phrase) == 1.0
    assert retrieval.needle_phrase("to eat a sandwich and sit in Dolores Park", phrase) == 0.0
    assert retrieval.needle_rouge(gold, gold) == pytest.approx(10)


def test_longchat_and_key_value():
    assert retrieval.last_integer("line 7: the number is 2416", 2416) == 1.0
    assert retrieval.last_integer("2416 in line 7", 2416) == 0.0
    assert retrieval.last_integer("none", 2416) == 0.0
    assert retrieval.contains('It is "BB3BA2A5".', "bb3ba2a5") == 1.0


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="2023"):
        infinitebench.score("passkey", "1", "1", "2023")
    with pytest.raises(ValueError, match="nothing"):
        infinitebench.score("nothing", "1", "1")
    with pytest.raises(ValueError, match="levenshtein"):
        text.similarity("a", "b", "levenshtein")
    with pytest.raises(ValueError, match="Abschnitt"):
        longbench.retrieval("3", "Abschnitt 3")


words = st.text(alphabet="ab the.,αБ中 \n", max_size=30)


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_f1_is_symmetric_bounded_and_one_only_for_equal_bags(a, b):
    score = longbench.qa_f1(a, b)
    assert score == longbench.qa_f1(b, a)
    assert 0 <= score <= 1
    bag = sorted(text.normalize_english(a).split())
    assert (score == 1) == (bool(bag) and bag == sorted(text.normalize_english(b).split()))


@settings(max_examples=60, deadline=None)
@given(words, words, st.sampled_from(text.FUZZ_BACKENDS))
def test_similarity_is_a_whole_percentage_and_one_for_equal_text(a, b, backend):
    score = text.similarity(a, b, backend)
    assert 0 <= score <= 1 and score == round(score, 2)
    assert text.similarity(a, a, backend) == 1


@settings(max_examples=60, deadline=None)
@given(words, st.integers(0, 10**6), words)
def test_retrieval_scores_do_not_change_with_text_without_digits(before, number, after):
    assert longbench.retrieval(f"{before} {number} {after}", f"Paragraph {number}") == 1
    assert infinitebench.first_integer(f"{before} {number} {after}", str(number)) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["red", "reddish", "blue", "green"]), min_size=1, max_size=4, unique=True))
def test_classification_never_rewards_a_wrong_label(classes):
    for gold in classes:
        assert longbench.classification("", gold, classes) == 0
        assert longbench.classification(gold, gold, classes) > 0


def fuzzywuzzy_ratio(a, b):
    """fuzzywuzzy's own ratio as LongBench's requirements install it: with difflib, not with python-Levenshtein."""
    import difflib
    import warnings

    pytest.importorskip("fuzzywuzzy", reason="fuzzywuzzy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        from fuzzywuzzy import fuzz
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz, "SequenceMatcher", difflib.SequenceMatcher)
        return fuzz.ratio(a, b) / 100


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_fuzzywuzzys_on_any_text(a, b):
    assert text.similarity(a, b) == fuzzywuzzy_ratio(a, b)
    assert text.similarity(a, a) == fuzzywuzzy_ratio(a, a)


def test_code_similarity_is_fuzzywuzzys_on_real_lines():
    """Lines of this package, each against itself changed and against the next one. Long lines too: difflib's rule for
    popular characters begins at 200."""
    source = Path(text.__file__).read_text(encoding="utf-8").splitlines()
    source += [" ".join(source[i : i + 6]) for i in range(0, len(source), 6)]
    found = [line for line in source if line and not any(mark in line for mark in ("`", "#", "//"))]
    changed = [line.replace("self", "this").replace("_", "")[: len(line) - i % 5] for i, line in enumerate(found)]
    assert len(found) > 80 and max(map(len, found)) > 200
    for line, other, following in zip(found, changed, found[1:], strict=False):
        for reference in (line, other, following):
            if line.strip("\n"):
                assert longbench.code_sim(f"\n# a comment\n{line}\nmore", reference) == fuzzywuzzy_ratio(
                    line, reference
                )
