"""Whatever a caller gives: a ValueError that reads NAME: got X; allowed are Y, or it works."""

from __future__ import annotations

import re

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from distill.pruning import Distill, NerMask, PruneThenGenerate, RandomScorer, Scorer, Scores, UserMask, checks, compat
from distill.pruning import options as names
from distill.pruning.scorers import (
    AttentionSaliency,
    GradientSaliency,
    QuestionLikelihood,
    SelfInformation,
    TokenClassifier,
)

NUMBERS = [10**400, -(10**400), 2**70, float("nan"), float("inf"), -float("inf"), -1, True, "5", None, [1], 10**5000]


@pytest.fixture(scope="module")
def llama(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints.llama, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(checkpoints.llama), "tiny"


@pytest.fixture(scope="module")
def bert(checkpoints):
    model = AutoModelForTokenClassification.from_pretrained(checkpoints.bert).eval()
    return model, AutoTokenizer.from_pretrained(checkpoints.bert), "tiny"


def refused(name: str, call) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}(\[.*\])?: got .+; allowed are .+") as raised:
        call()
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
def test_every_number_of_every_scorer(llama, bert, value):
    for scorer in (SelfInformation, AttentionSaliency, GradientSaliency, QuestionLikelihood):
        for name in ("window", "overlap")[: 1 if scorer is QuestionLikelihood else 2]:
            refused(name, lambda s=scorer, n=name: s(*llama, **{n: value}))
    for name in ("window", "overlap", "keep_label"):
        refused(name, lambda n=name: TokenClassifier(*bert, **{n: value}))
    refused("seed", lambda: RandomScorer(value))
    refused("min_score", lambda: NerMask(bert[0], min_score=value))


def test_numbers_of_numpy_are_numbers(prose):
    pruner = Distill(scorer="baseline", ner=None)
    assert pruner.compress(prose, np.float32(0.5)).text == pruner.compress(prose, 0.5).text
    assert pruner.compress(prose, target_tokens=np.int64(90)).text == pruner.compress(prose, target_tokens=90.0).text
    assert pruner.compress(prose, keep_tags=np.bool_(True)).text == pruner.compress(prose).text


@pytest.fixture(scope="module")
def lingua(checkpoints):
    return Distill(checkpoints.bert, compat="llmlingua2", target_tokenizer=checkpoints.llama)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rate", [0, 1.5, float("nan"), 10**400, True, "0.5"]),
        ("target_token", [10**400, -2, 2.5, True, "9", None]),
        ("context_level_rate", [0, 2, float("nan"), 10**400, None]),
        ("force_tokens", ["abc", [1], [""], ["x"] * 101, 5, ["\ud800"]]),
        ("chunk_end_tokens", [".", [1], 5]),
        ("force_context_ids", [5, "1", [-1], [True], [10**400]]),
        ("token_to_word", ["max", ["mean"], 5, None]),
        ("drop_consecutive", [1, "yes", None]),
        ("force_reserve_digit", [1, None]),
        ("use_context_level_filter", [0, None]),
        ("question", ["Why?"]),
        ("nonsense", [1]),
    ],
)
def test_every_option_of_llmlingua(lingua, name, values):
    for value in values:
        refused(name, lambda v=value: lingua.compress_prompt(["a text of words"], **{name: v}))


def test_the_call_shapes_of_llmlingua(lingua):
    text = ["The river rose, and the letters were read by all members of the old council."]
    assert lingua.compress_prompt(context=text, rate=0.5) == lingua.compress_prompt(text, 0.5)
    refused("context", lambda: lingua.compress_prompt(rate=0.5))
    refused("context", lambda: lingua.compress_prompt(5))
    ours = Distill(scorer="baseline", ner=None)
    refused("texts", lambda: ours.compress_prompt(rate=0.5))
    for name in names.LLMLINGUA:
        if name in ("use_llmlingua2", "model_config"):
            refused(name, lambda n=name: Distill(scorer="baseline", **{n: True}))
        refused(name, lambda n=name: ours.compress_prompt(text, **{n: 1}))
        refused(name, lambda n=name: ours.compress_many(text, **{n: 1}))
        refused(name, lambda n=name: ours.compress(text[0], **{n: 1}))
    with pytest.raises(ValueError, match=r"keyword: got an option that does not exist; .*did you mean keywords\?"):
        ours.compress(text[0], keyword=["a"])


def test_the_named_options_are_those_of_the_functions():
    import inspect

    def of(function):
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {n for n, p in inspect.signature(function).parameters.items() if p.kind not in kinds and n != "self"}

    assert of(Distill.__init__) == set(names.CONSTRUCTOR)
    assert of(Distill.compress_many) == {"texts", *names.COMPRESS}
    assert of(compat.LLMLingua2.compress) == {"context", *names.COMPAT}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model_name", [5, "", [], "x" * 5000, "a\x00b", "\ud800", b"x", "/no/such/folder"]),
        ("device_map", [5, "", None, ["cpu"], "x" * 200, "cpu\n"]),
        ("scorer", ["nonsense", 5, ["baseline"], {}, None, b"x"]),
        ("ner", [5, "", [], ["capitals", 5], True, {}, "\ud800", "/no/such/folder", "spacy:no_such", "spacy:\n"]),
        ("rules", ["nonsense", 5, None, [5], [["number"]], {"a": 1}]),
        ("aggregate", ["median", ["mean"], 5, None]),
        ("layout", ["none", ["keep"], 5, None]),
        ("compat", ["llmlingua", 5, ["llmlingua2"]]),
        ("target_tokenizer", [5, "", "/no/such/folder", ["x"], "\ud800", "tiktoken:nonsense"]),
        ("tokenizer", [object()]),
    ],
)
def test_every_argument_of_the_constructor(name, values):
    for value in values:
        settings = {"scorer": "baseline", name: value}
        if name == "model_name":
            settings.pop("scorer")
        refused("model" if name == "tokenizer" else name, lambda s=settings: Distill(**s))


def test_a_damaged_checkpoint_is_named(checkpoints, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoints.llama, folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    refused("model_name", lambda: Distill(str(folder)))
    (folder / "config.json").write_bytes(b"\xff{")
    refused("model_name", lambda: Distill(str(folder)))
    (folder / "tokenizer.json").write_text("{}")
    refused("target_tokenizer", lambda: Distill(scorer="baseline", target_tokenizer=str(folder)))


class _Odd(Scorer):
    name = "odd"

    def __init__(self, found):
        self.found = found

    def score_many(self, texts, question=None, check=None):
        return self.found


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        [1],
        [Scores(np.array([0]), np.array([1]), np.array([float("nan")]))],
        [Scores(np.array([0]), np.array([1, 2]), np.array([0.5]))],
        [Scores(np.array(0), np.array(1), np.array(0.5))],
    ],
    ids=range(6),
)
def test_scores_of_a_wrong_form(found):
    refused("scorer", lambda: Distill(scorer=_Odd(found), ner=None).compress("a text", 0.5))


@pytest.mark.parametrize(
    "template",
    [
        "{question}",
        "{context} {other}",
        "{context",
        "{context:9999999999}",
        "{context.x}",
        "{context[0]}",
        "{0}",
        5,
        "{}",
    ],
)
def test_templates(default, llama, template):
    refused("template", lambda: PruneThenGenerate(default, *llama[:2], template=template))


def test_arguments_of_the_reader(default, llama):
    step = PruneThenGenerate(default, *llama[:2])
    for name, value in (("context", 5), ("question", 5), ("instruction", None), ("query_aware", 1), ("prune", [1])):
        refused(name, lambda n=name, v=value: step(**{"context": "a", n: v}, max_new_tokens=1))
    refused("chat", lambda: PruneThenGenerate(default, *llama[:2], chat=1))


def test_what_is_shown_is_short_and_never_fails():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    for value in (10**10_000, "x" * 10**6, ["x" * 10**6] * 10**4, Bad(), [10**10_000], {1: Bad()}, np.zeros(10**6)):
        assert 0 < len(checks.shown(value)) < 1300


@pytest.mark.parametrize("values", [5, "abc", b"abc", {"a"}, {"a": 1}, ["a", None], [""], ["x" * 10_001], ["\ud800"]])
def test_lists_of_words(values):
    for name in ("force_tokens", "keywords", "patterns"):
        refused(name, lambda n=name: UserMask(**{n: values}))


def test_texts(default):
    for texts in (5, None, b"x", {"a"}, iter(["a"]), {"a": 1}, ["a", 5], [["a"]], ["\ud800"]):
        refused("texts", lambda t=texts: default.compress_many(t))
    for text in (5, None, b"x", ["a"], "\ud800"):
        refused("text", lambda t=text: default.compress(t))
