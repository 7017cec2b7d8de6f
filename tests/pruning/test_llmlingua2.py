"""compat="llmlingua2" against the published package, on tiny random models: the same strings, defects included."""

from __future__ import annotations

import pytest

from distill.pruning import Distill

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is needed by the oracle")
llmlingua = pytest.importorskip("llmlingua", reason="the oracle llmlingua is a development dependency")

TEXTS = {
    "code": "def f(x):\n    return x + 1  # 日本語 😀 naïve, v1.5.2\n\n\nprint(f(2))",
    "one word": "bridge",
    "question": "Who asked whether the fields would be flooded? The farmers! Where? In 1998, at 10:45.",
}
OPTIONS = [
    {},
    {"force_tokens": ["\n", "?", "bridge", "."]},
    {"force_tokens": ["\n", "Maria Lopez"], "drop_consecutive": True},
    {"force_reserve_digit": True},
    {"token_to_word": "first", "use_context_level_filter": False},
]


@pytest.fixture(scope="module")
def encoding():
    """A small real tiktoken encoding: bytes and a few merges, so that counting needs no network."""
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b" t": 257, b"in": 258, b" th": 259, b"er": 260}
    return tiktoken.Encoding("tiny", pat_str=r"\s?\w+|\s?[^\s\w]+|\s+", mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module", params=["bert", "xlmr"])
def pair(request, checkpoints, encoding):
    """The published compressor and ours, on the same checkpoint."""
    from distill.pruning.tokenization import TiktokenCounter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "encoding_for_model", lambda name: encoding)
        folder = getattr(checkpoints, request.param)
        theirs = llmlingua.PromptCompressor(folder, device_map="cpu", use_llmlingua2=True)
    return theirs, Distill(folder, compat="llmlingua2", target_tokenizer=TiktokenCounter(encoding))


@pytest.fixture(scope="module")
def texts(prose, long_prose) -> dict[str, str]:
    return {**TEXTS, "prose": prose, "long": long_prose(900)}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "defaults")
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.95, 1.0])
def test_same_strings(pair, texts, rate, options):
    theirs, ours = pair
    contexts = [[texts["code"]], [texts["long"]], [texts["prose"], texts["question"], texts["long"]]]
    for context in contexts:
        wanted = theirs.compress_prompt(list(context), rate=rate, **options)["compressed_prompt_list"]
        assert ours.compress_prompt(context, rate, **options) == wanted
        assert all(wanted)


@pytest.mark.parametrize("target", [20, 150])
def test_same_strings_for_a_target(pair, texts, target):
    theirs, ours = pair
    context = [texts["prose"], texts["question"]]
    wanted = theirs.compress_prompt(list(context), target_token=target)["compressed_prompt_list"]
    assert ours.compress_prompt(context, target_token=target) == wanted
    assert sum(map(len, wanted)) < sum(map(len, context))


def test_one_word_vanishes_there_and_not_here(pair, checkpoints):
    theirs, ours = pair
    gone = theirs.compress_prompt(["bridge"], rate=0.5)["compressed_prompt"]
    assert ours.compress_prompt(["bridge"], 0.5) == [gone]
    assert Distill(checkpoints.bert, ner=None).compress("bridge", 0.5).text == "bridge"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rate": 0}, "rate"),
        ({"force_tokens": ["x"] * 101}, "force_tokens"),
        ({"token_to_word": "max"}, "token_to_word"),
    ],
)
def test_bad_options(pair, options, word):
    with pytest.raises(ValueError, match=word):
        pair[1].compress_prompt(["a text"], **options)


def test_needs_a_checkpoint_of_its_kind(checkpoints):
    with pytest.raises(ValueError, match="model_name"):
        Distill(compat="llmlingua2")
    with pytest.raises(ValueError, match="compat"):
        Distill(checkpoints.bert, compat="llmlingua1")
    with pytest.raises(ValueError, match="only"):
        Distill(checkpoints.bert, compat="llmlingua2", aggregate="max")
