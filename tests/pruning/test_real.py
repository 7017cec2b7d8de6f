"""With the trained small model and real texts, where the reference data is: budgets, and the question's sentence."""

from __future__ import annotations

import gzip
import json
import random
import shutil

import pytest
import torch

from distill.pruning import Distill, RandomScorer
from distill.pruning.loading import shipped_model
from distill.pruning.recipe.ner import NerTraining, entities, evaluate, read_conll, train
from distill.pruning.sentences import sentence_spans
from distill.training import RunFolder


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


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    pytest.importorskip("matplotlib")
    words = random.Random(0)
    sentences = [([f"w{words.randrange(9)}" for _ in range(5)], ["B-ENT", "I-ENT", "O", "B-ENT", "O"])] * 40
    whole, tokenizer = train(sentences, epochs=3, hidden=16, out=tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(tmp_path / "whole" / "tokenizer.json", cut)  # its own would break ties in another way
    shutil.copy(tmp_path / "whole" / "options.json", cut)
    with torch.random.fork_rng():
        folder = RunFolder(cut, json.loads((cut / "options.json").read_text()))
        run = NerTraining(folder, sentences, epochs=3, hidden=16, rate=1e-3, seed=0)
        for _ in range(3):
            run.step()
        run.save()
        run.step()
        folder.close()
    again, _ = train(sentences, epochs=3, hidden=16, out=cut)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    assert (cut / "curves.png").exists() and tokenizer("w1").input_ids
    with pytest.raises(ValueError, match=r"epochs: got 4; .* holds a run with 3"):
        train(sentences, epochs=4, hidden=16, out=cut)
    with pytest.raises(ValueError, match="sentences: got"):
        train(sentences[1:], epochs=3, hidden=16, out=cut)


def test_the_tiny_ner_model_knows_its_names(ner_model):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(ner_model).eval()
    sentences = [
        (["Ada", "Byron", "met", "the", "members", "of", "Porto"], ["B-ENT", "I-ENT", "O", "O", "O", "O", "B-ENT"])
    ] * 3
    scores = evaluate(model, AutoTokenizer.from_pretrained(ner_model), sentences)
    assert scores["f1"] == pytest.approx(1.0) and scores["entities"] == 6
