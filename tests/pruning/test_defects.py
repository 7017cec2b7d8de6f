"""The defects of LLMLingua-2, one by one, as texts that it spoils: none of them happens in the default mode."""

from __future__ import annotations

import pytest
import regex

from distill.pruning import Distill


@pytest.fixture(scope="module", params=["bert", "xlmr"])
def pruner(request, checkpoints) -> Distill:
    """The same kind of checkpoint that LLMLingua-2 uses."""
    return Distill(getattr(checkpoints, request.param), ner=None, target_tokenizer=checkpoints.llama)


@pytest.fixture(scope="module")
def unruled(pruner, checkpoints) -> Distill:
    """Without masks: what the scores alone do."""
    return Distill(
        model=pruner._source.loaded.model, tokenizer=pruner._source.loaded.tokenizer, ner=None, rules=False,
        target_tokenizer=checkpoints.llama,
    )  # fmt: skip


PYTHON = "def f(x):\n    if x:\n\t\treturn g(x)\n\n    return 0\n"


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9, 1.0])
def test_e1_line_breaks_and_indentation_stay(unruled, prose, rate):
    for text in (prose, PYTHON, "line one\n  indented\tline two"):
        out = unruled.compress(text, rate).text
        assert out.count("\n") == text.count("\n")
        assert regex.findall(r"(?<=\n)[ \t]+", out) == regex.findall(r"(?<=\n)[ \t]+", text)
    assert unruled.compress("line one\n  indented\tline two", 1.0).text == "line one\n  indented\tline two"


def test_e2_no_space_is_lost_where_windows_meet(unruled, long_prose):
    text = long_prose(900).replace("\n\n", " ")
    result = unruled.compress(text, 0.9)
    glued = regex.compile(r"[a-z]\.[A-Z]")
    assert len(result.text) > 3000 and not glued.search(text) and not glued.search(result.text)


def test_e3_nothing_is_truncated(unruled, long_prose):
    text = long_prose(900).replace(".", "") + " final"
    scorer = unruled._source.scorer(None)
    scores = scorer.score(text)
    assert scores.ends.max() == len(text) and len(scores.values) == len(scorer.encoder.encode([text])[0].ids)
    chinese = "这是一个很长的句子。" * 300
    assert scorer.score(chinese).ends.max() == len(chinese)


def test_e4_code_and_links_are_not_respaced(pruner):
    text = "call f(x): https://example.com/a_b?c=d&e and x_y[0] += {1: 'a'};"
    for rate in (0.5, 0.8, 0.99):
        result = pruner.compress(text, rate)
        assert "https://example.com/a_b?c=d&e" in result.text
        assert len(result.text) <= len(text)


def test_e5_versions_numbers_and_codes_are_kept_whole(pruner, prose):
    filler = "the children played there all day long and nobody asked them to stop at all " * 12
    out = pruner.compress(filler + "use v1.5.2 at 10:45 for AB12CD and $1,250.00. " + filler, 0.3).text
    for wanted in ("v1.5.2", "10:45", "AB12CD", "$1,250.00"):
        assert wanted in out


def test_e6_forced_words_are_words(unruled):
    text = "The cat will concatenate the category of every catalogue that was ever made there. " * 3
    result = unruled.compress(text, 0.3, force_tokens=["cat"])
    assert len(regex.findall(r"\bcat\b", result.text)) == 3 and "catcat" not in result.text
    assert sum(text[a.start : a.end] == "cat" for a in result.anchors) == 3 == len(result.anchors)
    assert result.tokens <= result.budget
    greedy = unruled.compress(text, 0.1, force_tokens=["The", "the", "of", "that", "will", "was", "every", "ever"])
    assert greedy.over_budget and greedy.tokens > greedy.budget  # said, not hidden


def test_e7_what_the_vocabulary_lacks_can_stay(unruled, pruner):
    token = "8f3a9c" * 17
    text = f"key {token} 😀 ☃ Ω ѣ ＡＢＣ１２３ end"
    assert unruled.compress(text, 1.0).text == text
    for symbol in ("😀", "Ω", "ＡＢＣ１２３"):
        assert symbol in unruled.compress(text, 0.5, force_tokens=[symbol]).text
    assert token in pruner.compress(f"{text} and many more words that may all go away now", 0.9).text
    emoji = unruled.compress("😀 😃 😄 😁 😆 😅 😂 🤣", 0.5)
    assert 0 < len(emoji.text) < 15 and set(emoji.text) <= set("😀 😃 😄 😁 😆 😅 😂 🤣")


DEGENERATE = [
    "",
    " ",
    "\n\n",
    "word",
    "😀",
    "😀😀😀😀😀😀",
    "☃" * 40,
    "<|endoftext|>",
    "a\x00b",
    "<s></s>[CLS][NEW0]",
    "?",
    "。。。",
]


@pytest.mark.parametrize("text", DEGENERATE)
@pytest.mark.parametrize("options", [{"rate": 0.5}, {"rate": 0.01}, {"target_tokens": 3}, {"threshold": 1.0}])
def test_e8_degenerate_texts(unruled, text, options):
    result = unruled.compress(text, **options)
    result.check()
    assert bool(result.text.strip()) == bool(text.strip())
    assert result.over_budget or result.budget is None or result.tokens <= result.budget


def test_e8_rate_zero_and_equal_scores(unruled):
    with pytest.raises(ValueError, match="rate: got 0;"):
        unruled.compress("a text", 0)
    same = unruled.compress("word " * 40, 0.5)
    assert same.tokens > 0 and same.budget - same.tokens <= 2


def test_e9_no_context_vanishes(unruled, long_prose):
    contexts = [long_prose(60, seed) for seed in range(8)]
    results = unruled.compress_many(contexts, 0.5)
    kept = sum(r.tokens for r in results) / sum(r.original_tokens for r in results)
    assert len(results) == 8 and all(r.text.strip() for r in results)
    assert 0.48 < kept <= 0.5


def test_e10_line_breaks_over_the_budget_are_said(unruled):
    # without segments, because code is kept by default
    result = unruled.compress(PYTHON * 8, 0.2, segments=False)
    assert result.over_budget and any("layout" in note for note in result.notes)


@pytest.mark.parametrize("rate", [0.99, 0.95, 0.8, 0.5, 0.2])
def test_e10_the_rate_is_met(unruled, prose, long_prose, rate):
    # at 0.2 the line breaks of code alone need more than the budget: test_e10_line_breaks_over_the_budget_are_said
    for text in (prose, long_prose(300), *([PYTHON * 8] if rate > 0.4 else [])):
        result = unruled.compress(text, rate, segments=False)  # code is kept by default
        assert result.tokens <= result.budget and result.budget - result.tokens <= 2


def test_e11_short_prompts_are_not_padded(pruner, monkeypatch):
    widths = []
    model = pruner._source.loaded.model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: widths.append(k["input_ids"].shape) or forward(*a, **k))
    pruner.compress("three short words", 0.5)
    assert len(widths) == 1 and widths[0][0] == 1 and widths[0][1] < 40


def test_e12_no_remote_code_and_any_folder_name(checkpoints, tmp_path, prose):
    import shutil

    renamed = tmp_path / "my-model"
    shutil.copytree(checkpoints.xlmr, renamed)
    assert Distill(str(renamed), ner=None).compress(prose, 0.5).text
    assert Distill(str(renamed), compat="llmlingua2", target_tokenizer=checkpoints.llama).compress_prompt([prose], 0.5)
    with pytest.raises(ValueError, match=r"trust_remote_code: got .*remote code is never run"):
        Distill(str(renamed), trust_remote_code=True)
