"""Truncation, the one BOS, chat templates: equal to the rules, for any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import distill.mini
from distill.evaluation import prompts
from distill.evaluation.prompting import Encoder, Prompt, chat, fill, truncate, truncate_prompt

TEXTS = [
    "plain words, and more of them. ",
    "中文和表情😀混在一起。",
    "naïve café ß – “quoted” ",
    "<s>struck out</s> text ",
]


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def reference_cut(tokenizer, text, limit, rule):
    """The published rules, word for word, with the tokenizer's own encode and decode."""
    ids = tokenizer(text).input_ids
    half = int(limit / 2)
    if rule == "longbench":
        return tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
            ids[-half:], skip_special_tokens=True
        )
    if rule == "infinitebench":
        return tokenizer.decode(ids[:half] + ids[-half:], skip_special_tokens=True)
    return tokenizer.decode(ids[: limit // 2] + ids[-limit // 2 :], skip_special_tokens=True)


@pytest.mark.parametrize("rule", ["longbench", "infinitebench", "longbench2"])
@pytest.mark.parametrize("limit", [2, 3, 10, 11, 64, 65])
@pytest.mark.parametrize("text", TEXTS[:3])
def test_truncation_is_the_published_rule(tokenizer, encoder, rule, limit, text):
    text = text * 20
    cut, was = truncate(encoder, text, limit, rule)
    assert was
    assert cut == reference_cut(tokenizer, text, limit, rule)


@pytest.mark.parametrize("rule", ["longbench", "infinitebench", "longbench2"])
@pytest.mark.parametrize("limit", [16, 17, 100, 101])
@pytest.mark.parametrize("name", ["mini-llama", "qwen2.5"])
def test_truncation_with_trained_tokenizers(shared, name, rule, limit):
    """With merges, cutting and encoding again is not the identity."""
    folder = shared("data", "tokenizers", name) if name == "qwen2.5" else distill.mini.path("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = Encoder(tokenizer)
    text = "".join(TEXTS[:3]) * 12
    assert encoder.encode(text) == tokenizer(text).input_ids
    cut, was = truncate(encoder, text, limit, rule)
    assert was and cut == reference_cut(tokenizer, text, limit, rule)
    assert abs(len(encoder.encode(cut)) - limit) <= 8


def test_halves_inside_a_character_are_decoded_apart_or_together(encoder):
    """One CJK character is three byte tokens: the LongBench rule breaks both halves, the others the join only."""
    text = "中" * 10
    apart, _ = truncate(encoder, text, 6, "longbench")
    together, _ = truncate(encoder, text, 6, "infinitebench")
    # BOS and two bytes | three bytes
    assert apart == "�中"
    assert together == "�中"
    apart, _ = truncate(encoder, text, 8, "longbench")
    assert apart == "中�中"


@pytest.mark.parametrize(("rule", "kept"), [("longbench", 20), ("infinitebench", 20), ("longbench2", 21)])
def test_an_odd_limit_keeps_one_token_less_except_in_longbench2(encoder, rule, kept):
    cut, _ = truncate(encoder, "abcdefghij" * 10, 21, rule)
    # the BOS counts and is put back when the text is encoded again
    assert len(encoder.encode(cut)) == kept


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(2, 60), st.sampled_from(["longbench", "infinitebench", "longbench2"]))
def test_text_within_the_limit_is_untouched_and_longer_text_gets_shorter(tokenizer, text, limit, rule):
    encoder = Encoder(tokenizer)
    cut, was = truncate(encoder, text, limit, rule)
    assert was == (len(encoder.encode(text)) > limit)
    assert cut == text or was


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<s>", "</s>", "a", " ", "中", "\n"]), max_size=20).map("".join))
def test_exactly_one_bos_whatever_the_text_says(tokenizer, text):
    encoder = Encoder(tokenizer)
    ids = encoder.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert encoder.plain(text).count(tokenizer.bos_token_id) == 0


def test_a_template_that_writes_the_bos_does_not_double_it(tokenizer, encoder):
    made = chat(tokenizer, Prompt("a document with <s> in it ", "and a question"))
    assert made.text.startswith("<s><|user|>")
    assert encoder.encode(made.text).count(tokenizer.bos_token_id) == 1


def test_spelled_out_bos_stays_text(encoder):
    assert "<s>" in encoder.decode(encoder.encode("one <s> two"))


def test_several_opening_tokens_are_not_doubled_either():
    """GLM opens with two special tokens and has no BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    opening = [("[gMASK]", 0), ("<sop>", 1)]
    letters = {char: i + 2 for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=dict(opening) | letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=opening)
    special = [name for name, _ in opening]
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special))
    assert encoder.encode("hi") == encoder.encode("[gMASK]<sop>hi") == [0, 1, *encoder.plain("hi")]


def test_no_bos_where_the_tokenizer_adds_none(shared):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shared("data", "tokenizers", "gpt2")
    backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>"))
    assert encoder.prefix == []
    assert encoder.encode("hello") == encoder.plain("hello")


@pytest.mark.parametrize("content", ["  text  ", "a\n\nb", "中文"])
def test_chat_splits_where_the_context_ends(tokenizer, content):
    made = chat(tokenizer, Prompt(content, "\nQuestion: who?  "))
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": content + "\nQuestion: who?  "}], tokenize=False, add_generation_prompt=True
    )
    assert made.text == whole
    assert made.context.endswith(content.lstrip())
    assert made.question.startswith("\nQuestion: who?")


def test_chat_without_a_template_is_refused(tokenizer):
    from copy import copy

    bare = copy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="allowed are tokenizers with a chat template"):
        chat(bare, Prompt("a", "b"))


def test_the_question_survives_truncation_or_an_error_says_so(encoder):
    prompt = Prompt("word " * 100, "\nQuestion: where is the key?\nAnswer:")
    cut, was = truncate_prompt(encoder, prompt, 120, "longbench")
    assert was and cut.question == prompt.question and len(cut.context) < len(prompt.context)
    short, _ = truncate_prompt(encoder, prompt, 20, "longbench")
    assert short == Prompt(truncate(encoder, prompt.text, 20, "longbench")[0], "")
    with pytest.raises(ValueError, match="not to cut the question"):
        truncate_prompt(encoder, prompt, 20, "longbench", split=True)


@pytest.mark.parametrize(
    ("limit", "rule", "word"), [(1, "longbench", "limit: got 1; allowed are"), (5, "left", "rule")]
)
def test_bad_limits_and_rules_are_refused(encoder, limit, rule, word):
    with pytest.raises(ValueError, match=word):
        truncate(encoder, "text", limit, rule)


def test_a_missing_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer"):
        Encoder(None)


def test_fill_does_not_read_braces_in_values():
    made = fill("A {context} B {input}", {"context": "{input} {x}", "input": "{y}"}, "context")
    assert made == Prompt("A {input} {x}", " B {y}")
    with pytest.raises(ValueError, match="context"):
        fill("no field", {}, "context")


PROMPT_FILES = {
    "longbench.json": "longbench_v1_prompts.json",
    "longbench_max_new_tokens.json": "longbench_v1_maxlen.json",
    "longbench2_0shot.txt": "longbench_v2_0shot.txt",
    "longbench2_0shot_cot.txt": "longbench_v2_0shot_cot.txt",
    "longbench2_0shot_cot_ans.txt": "longbench_v2_0shot_cot_ans.txt",
    "longbench2_0shot_no_context.txt": "longbench_v2_0shot_no_context.txt",
    "infinitebench.json": "infinitebench_prompts.json",
    "ruler.json": "ruler_templates.json",
}


@pytest.mark.parametrize(("ours", "theirs"), PROMPT_FILES.items())
def test_prompt_files_are_byte_copies(shared, ours, theirs):
    import importlib.resources

    ours_bytes = importlib.resources.files("distill.evaluation.prompts").joinpath(ours).read_bytes()
    assert ours_bytes == shared("eval", theirs).read_bytes()


def test_an_unknown_prompt_file_is_refused():
    with pytest.raises(ValueError, match=r"nothing\.json"):
        prompts.load("nothing.json")
