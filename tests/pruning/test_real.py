"""With the trained small model and real texts, where the reference data is: budgets, and the question's sentence."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from distill.pruning import Distill, RandomScorer
from distill.pruning.loading import shipped_model
from distill.pruning.recipe.ner import entities, evaluate, read_conll
from distill.pruning.sentences import sentence_spans


@pytest.fixture
def small_model(shared) -> str:
    """The shipped small model, or its first version in the reference data."""
    try:
        return str(shipped_model())
    except ValueError:
        return str(shared("data", "models", "first-mini-llama"))


@pytest.fixture
def questions(shared):
    """30 of XQuAD's questions: paragraph, question, where the answer starts."""
    data = json.loads(gzip.decompress(shared("data", "xquad", "xquad.en.json.gz").read_bytes()))["data"]
    found = [
        (paragraph["context"], qa["question"], qa["answers"][0]["answer_start"])
        for article in data
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    return random.Random(1).sample(found, 30)


def test_budgets_on_real_texts(small_model, questions):
    pruner = Distill(small_model, ner=None, rules=False, target_tokenizer=small_model)
    missing = 0.0
    for text, *_ in questions[:10]:
        for rate in (0.2, 0.5, 0.8):
            result = pruner.compress(text, rate)
            assert result.tokens <= result.budget and not result.over_budget
            missing += (result.budget - result.tokens) / result.budget
    assert missing / 30 < 0.01


def test_the_sentence_with_the_answer_survives(small_model, questions):
    options = {"ner": None, "rules": False, "target_tokenizer": small_model}
    asked, blind = Distill(small_model, **options), Distill(scorer=RandomScorer(0, "sentence"), **options)
    hits = [0, 0]
    for text, question, answer in questions:
        start, end = next(s for s in sentence_spans(text) if s[0] <= answer < s[1])
        for i, result in enumerate((asked.compress(text, 0.5, question=question), blind.compress(text, 0.5))):
            hits[i] += any(a <= start and end <= b for a, b in result.spans)
    assert hits[0] >= 1.3 * hits[1] > 0


def test_conll_files(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "The O\nMad I-ORG\nMarkets I-ORG\n\n-DOCSTART- O\n\nEmpire\tB-location\nState\tI-location\n=\tO\nESB\tB-x\n"
    )
    found = read_conll(path)
    assert found == [
        (["The", "Mad", "Markets"], ["O", "B-ENT", "I-ENT"]),
        (["Empire", "State", "=", "ESB"], ["B-ENT", "I-ENT", "O", "B-ENT"]),
    ]
    assert entities(found[1][1]) == {(0, 2), (3, 4)}


def test_the_tiny_ner_model_knows_its_names(ner_model):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(ner_model).eval()
    sentences = [
        (["Ada", "Byron", "met", "the", "members", "of", "Porto"], ["B-ENT", "I-ENT", "O", "O", "O", "O", "B-ENT"])
    ] * 3
    scores = evaluate(model, AutoTokenizer.from_pretrained(ner_model), sentences)
    assert scores["f1"] == pytest.approx(1.0) and scores["entities"] == 6
