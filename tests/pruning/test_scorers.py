"""Each scorer against its definition, computed the slow way, and laws that hold for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from distill.pruning import SCORERS, Distill, RandomScorer
from distill.pruning.scorers import (
    AttentionSaliency,
    Baseline,
    CrossEncoder,
    GradientSaliency,
    LexicalRelevance,
    QuestionLikelihood,
    Scores,
    SelfInformation,
    SentenceEncoder,
    TokenClassifier,
    to_units,
)
from distill.pruning.scorers.base import windows
from distill.pruning.sentences import sentence_spans
from distill.pruning.units import split_units

QUESTION = "What did the engineers measure?"


@pytest.fixture(scope="module")
def llama(checkpoints):
    folder = checkpoints.llama
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(folder), "tiny"


@pytest.fixture(scope="module")
def bert(checkpoints):
    folder = checkpoints.bert
    return (
        AutoModelForTokenClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
        "tiny",
    )


class Letters:
    """Encodes a text by how often it has each letter, in place of a sentence encoder."""

    max_seq_length = 64

    def __init__(self):
        self.read = []

    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar):
        self.read += texts
        counts = np.array([[text.lower().count(chr(c)) for c in range(97, 123)] for text in texts], dtype=float)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


class Pairs:
    """Scores a question and a text by a logit, in place of a cross-encoder."""

    def predict(self, pairs, batch_size, show_progress_bar):
        return np.array([4.0 if "river" in text else -4.0 for _, text in pairs])


@pytest.fixture(scope="module")
def every(checkpoints, llama, bert):
    """All scorers by name."""
    from transformers import AutoModelForSequenceClassification

    cross = AutoModelForSequenceClassification.from_pretrained(checkpoints.cross).eval()
    return {
        "self-information": SelfInformation(*llama, window=48, overlap=8),
        "question-likelihood": QuestionLikelihood(*llama),
        "attention": AttentionSaliency(*llama, window=48, overlap=8),
        "gradient": GradientSaliency(*llama, window=48, overlap=8),
        "classifier": TokenClassifier(*bert, window=50, overlap=8),
        "cross-encoder": CrossEncoder(cross, AutoTokenizer.from_pretrained(checkpoints.cross), "tiny"),
        "hybrid": SentenceEncoder(Letters()),
        "lexical": LexicalRelevance(),
        "baseline": Baseline(),
        "random": RandomScorer(),
    }


@pytest.mark.parametrize("name", SCORERS)
def test_protocol(every, prose, name):
    scorer = every[name]
    texts = [prose, "", "One.", "日本語 😀 <|endoftext|>", " \n "]
    scores = scorer.score_many(texts, QUESTION if scorer.uses_question else None)
    again = scorer.score_many(texts, QUESTION if scorer.uses_question else None)
    for text, found, same in zip(texts, scores, again, strict=True):
        assert len(found.starts) == len(found.ends) == len(found.values)
        assert ((found.values >= 0) & (found.values <= 1)).all()
        assert (found.starts <= found.ends).all() and (found.ends <= len(text)).all()
        assert np.array_equal(found.values, same.values)
    assert len(scores[0].values) > 5 and scores[0].values.std() > 0
    if scorer.level == "word":
        assert scores[0].ends.max() >= len(prose.rstrip())


@pytest.mark.parametrize("name", sorted(set(SCORERS) - {"random"}))
def test_work_can_be_stopped(every, prose, name):
    def stop():
        raise InterruptedError

    scorer = every[name]
    with pytest.raises(InterruptedError):
        scorer.score_many([prose], QUESTION if scorer.uses_question else None, stop)


@torch.no_grad()
def test_self_information_is_surprisal(llama, prose):
    model, tokenizer, _ = llama
    text = prose[:400]
    found = SelfInformation(*llama).score(text)
    ids = tokenizer(text, return_tensors="pt").input_ids
    p = model(ids).logits[0].log_softmax(-1)
    bits = -p[torch.arange(ids.shape[1] - 1), ids[0, 1:]].double().numpy() / math.log(2)
    uniform = math.log2(model.config.vocab_size)
    wanted = np.concatenate([[bits.mean()], bits])  # no beginning-of-text token: the first token has no prediction
    assert np.allclose(found.values, wanted / (wanted + uniform), atol=1e-5)


@torch.no_grad()
def test_windows_give_context_and_miss_nothing(llama, prose):
    whole, parts = SelfInformation(*llama, window=900), SelfInformation(*llama, window=128, overlap=64)
    a, b = whole.score(prose[:1500]).values, parts.score(prose[:1500]).values
    assert len(a) > 256 and len(a) == len(b)
    assert np.allclose(a[1:128], b[1:128], atol=1e-5)  # the first token has no score of its own
    assert np.isfinite(b).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(2, 64), st.booleans(), st.data())
def test_windows_score_each_token_once(length, size, causal, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = list(windows(0, length, size, overlap, causal=causal))
    scored = [t for w in found for t in range(w.first, w.last)]
    assert scored == list(range(length))
    assert all(w.begin <= w.first and w.last <= w.end and w.end - w.begin <= size for w in found)
    if causal:
        assert all(w.first - w.begin >= overlap for w in found[1:])


@torch.no_grad()
def test_classifier_is_the_models_probability(bert, prose):
    model, tokenizer, _ = bert
    text = prose[:300]
    found = TokenClassifier(*bert).score(text)
    wanted = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1:-1, 1].numpy()
    assert np.allclose(found.values, wanted, atol=1e-5)
    together = TokenClassifier(*bert).score_many(["One.", text, prose])
    assert np.allclose(together[1].values, wanted, atol=1e-5)


def test_classifier_settings(bert):
    with pytest.raises(ValueError, match="keep_label"):
        TokenClassifier(*bert, keep_label=2)
    with pytest.raises(ValueError, match="overlap"):
        TokenClassifier(*bert, overlap=510)


@torch.no_grad()
def test_question_likelihood_by_hand(llama):
    model, tokenizer, _ = llama
    sentence, question = "The engineers measured the river.", "What was measured?"

    def bits(context: str) -> np.ndarray:
        asked = tokenizer("\n" + question).input_ids
        ids = torch.tensor([tokenizer(context).input_ids + asked])
        p = model(ids).logits[0].log_softmax(-1)
        rows = torch.arange(ids.shape[1] - len(asked), ids.shape[1] - 1)
        return -p[rows, ids[0, rows + 1]].double().numpy() / math.log(2)

    gain = np.maximum(bits("") - bits(sentence), 0).mean()
    found = QuestionLikelihood(*llama).score(sentence, question)
    assert found.values[0] == pytest.approx(gain / (gain + 1), abs=1e-5)


def test_attention_by_hand(llama):
    model, tokenizer, _ = llama
    text = "The river rose by 12 cm"
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        layers = model(ids, output_attentions=True).attentions
    mean = sum(layer[0].mean(0) for layer in layers) / len(layers)
    raw = np.array([mean[j + 1 :, j].mean() if j + 1 < len(mean) else 0.0 for j in range(len(mean))])
    assert np.allclose(AttentionSaliency(*llama).score(text).values, raw / (raw + raw.mean()), atol=1e-5)


def test_gradient_finds_what_the_loss_depends_on(llama):
    found = GradientSaliency(*llama).score("The river rose by 12 cm")
    assert found.values[-1] == pytest.approx(0.0, abs=1e-9)  # nothing is predicted from the last token
    assert (found.values[:-1] > 0).all()


def test_attention_needs_eager(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints.llama, attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        AttentionSaliency(model, AutoTokenizer.from_pretrained(checkpoints.llama), "tiny")


def test_questions_are_used_or_refused(checkpoints, every):
    with pytest.raises(ValueError, match="question: got None; allowed are questions"):
        every["lexical"].score("text")
    with pytest.raises(ValueError, match="does not use one"):
        Distill(checkpoints.llama, scorer="self-information").compress("a b c", 0.5, question="What?")
    with pytest.raises(ValueError, match=r"question: got \d+ tokens; allowed are up to \d+"):
        every["question-likelihood"].score("a text.", "why " * 1000)
    with pytest.raises(ValueError, match=r"question: got \d+ tokens; allowed are up to \d+"):
        every["cross-encoder"].score("a text.", "why " * 1000)


def test_lexical_prefers_the_sentence_that_shares_words(prose):
    flat = prose.replace("\n", " ")
    result = Distill(scorer="lexical", ner=None, rules=False).compress(
        flat, 0.3, question="What did the engineers measure?"
    )
    assert "The engineers measured the river" in result.text
    sentences = [flat[a:b] for a, b in sentence_spans(flat)]
    kept = [s for s in sentences if s in result.text]
    assert 1 <= len(kept) < len(sentences) / 2  # whole sentences, and at most one in parts


@pytest.mark.parametrize(("how", "wanted"), [("mean", [0.5, 0.3]), ("max", [0.9, 0.3]), ("first", [0.1, 0.3])])
def test_aggregation(how, wanted):
    units = split_units("unbelievable bridge ☃")
    scores = Scores(np.array([0, 6, 12]), np.array([6, 12, 19]), np.array([0.1, 0.9, 0.3]))
    values = to_units(scores, units, how)
    assert values[:2] == pytest.approx(wanted)
    assert values[2] == pytest.approx(np.mean(wanted))  # untouched by any sub-token


def test_aggregate_is_an_option(checkpoints, prose):
    texts = {
        how: Distill(checkpoints.bert, ner=None, rules=False, aggregate=how).compress(prose, 0.5).text
        for how in ("mean", "max", "first")
    }
    assert len(set(texts.values())) == 3
    with pytest.raises(ValueError, match="aggregate"):
        Distill(checkpoints.bert, aggregate="median")


def test_sentences():
    text = "Dr. Smith met J. Doe at 3.5 p.m. in Rome. It rained! Did it? Yes.\n- a point\n日本語です。次の文。"
    first = "Dr. Smith met J. Doe at 3.5 p.m. in Rome."
    wanted = [first, "It rained!", "Did it?", "Yes.", "- a point", "日本語です。", "次の文。"]
    assert [text[a:b] for a, b in sentence_spans(text)] == wanted
    assert sentence_spans(" \n ") == []


def test_constructor_refuses_what_does_not_fit(checkpoints, llama):
    for options, word in (
        (
            {"model_name": checkpoints.bert, "scorer": "attention"},
            "scorer: got 'attention' for a token-classification model; allowed are causal-lm",
        ),
        ({"model_name": checkpoints.llama, "scorer": "nonsense"}, "scorer: got"),
        ({"model_name": checkpoints.llama, "scorer": "baseline"}, "uses no model"),
        ({"model_name": "/no/such/folder"}, "model_name: got"),
        ({"model_name": checkpoints.llama, "model": llama[0], "tokenizer": llama[1]}, "None beside a model"),
        ({"model": llama[0]}, "together"),
        ({"model_name": checkpoints.llama, "layout": "none"}, "layout"),
    ):
        with pytest.raises(ValueError, match=word):
            Distill(**options)
    assert Distill(model=llama[0], tokenizer=llama[1], ner=None).compress("some words to prune here", 0.5).tokens > 0


@pytest.mark.parametrize("name", ["attention", "gradient", "question-likelihood"])
def test_saliency_and_likelihood_through_the_front_door(checkpoints, prose, name):
    pruner = Distill(checkpoints.llama, scorer=name, ner=None, target_tokenizer=checkpoints.llama)
    result = pruner.compress(prose, 0.6, question=QUESTION)
    assert result.tokens <= result.budget and name in result.scorer


def test_the_encoder_is_mixed_with_overlap_and_remembers(prose):
    model = Letters()
    spans = sentence_spans(prose)
    encoder, mixed = SentenceEncoder(model, overlap=0), SentenceEncoder(Letters(), overlap=0.25)
    cosines = encoder.score(prose, QUESTION).values
    shared = LexicalRelevance().score(prose, QUESTION).values
    vectors = Letters().encode([QUESTION, *(prose[a:b] for a, b in spans)], 1, True, False)
    assert np.allclose(cosines, vectors[1:] @ vectors[0])
    assert np.allclose(mixed.score(prose, QUESTION).values, 0.75 * cosines + 0.25 * shared)
    before = len(model.read)
    encoder.score(prose, "Who drafted the report?")
    assert model.read[before:] == ["Who drafted the report?"]  # the sentences are known


def test_long_sentences_are_read_in_parts():
    model = Letters()
    text = "z" * 1000 + " " + "river " * 30
    values = SentenceEncoder(model, overlap=0).score(text, "river river river").values
    assert len(values) == 1 and values[0] > 0.9  # the best part counts, not the first
    assert max(map(len, model.read)) <= 3 * model.max_seq_length


def test_a_cross_encoder_of_sentence_transformers(prose):
    found = SentenceEncoder(Pairs(), overlap=0).score(prose, QUESTION)
    with_river = np.array(["river" in prose[a:b] for a, b in sentence_spans(prose)])
    assert (found.values[with_river] > 0.9).all() and (found.values[~with_river] < 0.1).all()
    result = Distill(scorer="hybrid", question_model=Pairs()).compress(prose, 0.4, question="What rose by 12 cm?")
    assert "the\nwater had risen by 12 cm" in result.text and "cross-encoder" in result.scorer
    with pytest.raises(ValueError, match="model: got"):
        SentenceEncoder(object())
    with pytest.raises(ValueError, match="question_model: got"):
        Distill(question_model="/no/such/folder")


def test_sentences_that_fit_come_before_a_better_one_that_does_not():
    """At a small rate a sentence may be too long; a whole one is worth more than a piece of it."""
    long = "The river rose " + "and rose " * 30 + "at noon. "
    text = "The river rose at noon in May. " + long + "The river fell. " + "Nobody was there to see it. " * 3
    result = Distill(scorer="lexical").compress(text, 0.3, question="When did the river rise at noon in May?")
    assert "The river rose at noon in May." in result.text and "The river fell." in result.text
    assert result.tokens <= result.budget


def test_of_the_best_sentence_a_part_stays_where_it_does_not_fit():
    """It most probably answers, and a lesser sentence that is whole does not."""
    text = (
        "The river rose "
        + "and rose " * 30
        + "at noon to 412 cm. The river fell. "
        + "Nobody was there to see it. " * 3
    )
    result = Distill(scorer="lexical").compress(text, 0.3, question="How high did the river rise at noon?")
    assert "412 cm" in result.text and result.tokens <= result.budget


def test_with_a_question_masks_do_not_cut_sentences_up(prose):
    question = "What did the engineers measure?"
    auto, forced = Distill(scorer="lexical"), Distill(scorer="lexical", rules=True)
    asked = auto.compress(prose, 0.3, question=question)
    assert "The engineers measured the river at 10:45 and again at noon" in asked.text
    assert asked.masks["rules"].anchors == 0 and not asked.over_budget
    assert forced.compress(prose, 0.3, question=question).masks["rules"].anchors > 0


def test_a_gguf_file_scores(tmp_path, checkpoints, prose):
    from tests.real import smollm2_gguf

    pruner = Distill(str(smollm2_gguf()), ner=None)
    result = pruner.compress(prose, 0.5)
    assert result.tokens <= result.budget and "gguf" in result.scorer
