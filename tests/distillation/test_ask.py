"""Questions about a cache: one, a batch, several caches, beams; the cache stays as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import distill
from distill import AttentionMatching, KVzip, SnapKV
from distill.distillation.document import copied, joined
from distill.models.asking import generate_behind, lengths_of

from ..matrix.caches import assert_same, contents
from ..tiny import KV_HEADS, lasting_pair, padded, prefill, prompt, tiny
from .test_keep import POLICIES, filled
from .words import text_of, tokenizer_of

QUESTIONS = [[11, 12, 13], [21], [31, 32, 33, 34, 35, 36]]
NEW = 6


@torch.no_grad()
def by_hand(model, cache, question, new=NEW):
    """Greedy decoding by single calls of `forward`, on a cache of one row."""
    cache, ids, found = copied(cache), torch.tensor([question]), []
    for _ in range(new):
        out = model(ids, past_key_values=cache, policy=None, logits_to_keep=1)
        ids = out.logits[:, -1:].argmax(-1)
        found.append(int(ids))
    return text_of(found)


def cases(*names):
    return pytest.mark.parametrize("policy", [POLICIES[name] for name in names or POLICIES])


@cases()
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_an_answer_is_what_decoding_by_hand_gives(policy, arch):
    model, tokenizer = lasting_pair(arch)[1], tokenizer_of()
    cache = filled(model, policy)
    was = contents(copied(cache))
    expected = [by_hand(model, cache, question) for question in QUESTIONS]
    assert len(set(expected)) > 1
    texts = [text_of(question) for question in QUESTIONS]
    assert [distill.ask(model, tokenizer, cache, text, NEW) for text in texts] == expected
    # the second question as if it were asked first, and as a batch
    assert [distill.ask(model, tokenizer, cache, text, NEW) for text in reversed(texts)] == expected[::-1]
    assert distill.ask(model, tokenizer, cache, texts, NEW) == expected
    assert_same(contents(cache), was)


@cases()
def test_a_question_in_two_calls_is_one(policy):
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    cache = filled(model, policy)
    first, second = QUESTIONS[2][:2], QUESTIONS[2][2:]
    half = copied(cache)
    with torch.no_grad():
        model(torch.tensor([first]), past_key_values=half, policy=None)
    whole = distill.ask(model, tokenizer, cache, text_of(first + second), NEW)
    assert distill.ask(model, tokenizer, half, text_of(second), NEW) == whole
    with pytest.raises(ValueError, match="prefill_chunk_size: got 2; allowed behind a filled cache is None"):
        distill.ask(model, tokenizer, cache, text_of(first + second), NEW, prefill_chunk_size=2)


@cases()
def test_beams_on_a_filled_cache(policy):
    """As beam search on a prompt whose every token is read anew, where nothing is dropped; else as for one row."""
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    cache = filled(model, policy)
    texts = [text_of(question) for question in QUESTIONS]
    alone = [distill.ask(model, tokenizer, cache, text, NEW, num_beams=3) for text in texts]
    assert distill.ask(model, tokenizer, cache, texts, NEW, num_beams=3) == alone
    greedy = [distill.ask(model, tokenizer, cache, text, NEW) for text in texts]
    assert alone != greedy
    if policy is None:
        ids = torch.cat([prompt(40), torch.tensor([QUESTIONS[0]])], dim=1)
        out = model.generate(ids, num_beams=3, max_new_tokens=NEW, do_sample=False, policy=None)
        assert text_of(out[0, ids.shape[1] :].tolist()) == alone[0]


@cases()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_batch_is_the_row_alone(policy, side):
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    rows = [prompt(40), prompt(29, seed=2)]
    ids, mask = padded(rows, side)
    batch = filled(model, policy, ids, mask)
    texts = [text_of(question) for question in QUESTIONS[:2]]
    expected = [
        distill.ask(model, tokenizer, filled(model, policy, row), text, NEW)
        for row, text in zip(rows, texts, strict=True)
    ]
    extra = {"attention_mask": mask} if policy is None else {}
    assert distill.ask(model, tokenizer, batch, texts, NEW, **extra) == expected


@cases()
def test_caches_of_unequal_length_are_one_batch(policy):
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    caches = [filled(model, policy, prompt(length, seed=length)) for length in (40, 23, 31)]
    was = [contents(copied(cache)) for cache in caches]
    texts = [text_of(question) for question in QUESTIONS]
    alone = [distill.ask(model, tokenizer, cache, text, NEW) for cache, text in zip(caches, texts, strict=True)]
    assert distill.ask(model, tokenizer, caches, texts, NEW) == alone
    assert distill.ask(model, tokenizer, caches, texts[0], NEW) == [
        distill.ask(model, tokenizer, cache, texts[0], NEW) for cache in caches
    ]
    for cache, before in zip(caches, was, strict=True):
        assert_same(contents(cache), before)


LENGTHS = st.lists(st.integers(5, 30), min_size=2, max_size=3)


@given(LENGTHS, st.lists(st.sampled_from(sorted(POLICIES)), min_size=3, max_size=3), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_joined_caches_have_the_logits_of_each(lengths, names, new):
    """Any lengths, and any policies side by side; afterwards the rows go on, and can be joined again."""
    model, ids = lasting_pair("llama")[1], prompt(new, seed=5)
    caches = [filled(model, POLICIES[name], prompt(n, seed=n)) for n, name in zip(lengths, names, strict=False)]
    both = joined(caches)
    assert lengths_of(both).tolist() == lengths and both.get_seq_length() == max(lengths)
    again = joined([joined(caches[:1]), joined(caches[1:])])
    places = torch.tensor(lengths)[:, None] + torch.arange(new)
    with torch.no_grad():
        expected = torch.cat([model(ids, past_key_values=copied(cache), policy=None).logits for cache in caches])
        for batch in (both, again):
            rows = ids.expand(len(lengths), -1)
            found = model(rows, past_key_values=batch, position_ids=places, policy=None).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_joined_caches_hold_what_each_held():
    model = lasting_pair("llama")[1]
    caches = [filled(model, KVzip(12, 16, 2), prompt(n)) for n in (40, 25)]
    both = joined(caches)
    assert distill.show_cache(both).bytes == sum(distill.show_cache(cache).bytes for cache in caches)
    both.batch_select_indices(torch.tensor([1]))
    for layer, alone in zip(both.layers, caches[1].layers, strict=True):
        assert [row[row >= 0].tolist() for row in layer.layout[0]] == [
            row[row >= 0].tolist() for row in alone.layout[0]
        ]


def test_joined_caches_must_be_of_one_model(tmp_path):
    model = lasting_pair("llama")[1]
    cache = filled(model, SnapKV(12, 4))
    for other, match in (
        (filled(lasting_pair("llama", num_hidden_layers=2)[1], None), "some of 2 and 4 layers"),
        (filled(lasting_pair("llama", num_key_value_heads=4)[1], None), "some with heads, sizes"),
        (filled(lasting_pair("llama", dtype=torch.bfloat16)[1], None), "some with dtype"),
        (filled(model, SnapKV(12, 4, 3, "max", "query_head")), "some with repeats"),
        (DynamicCache(), "cache: got"),
    ):
        with pytest.raises(ValueError, match=f"{match}.*allowed are"):
            joined([cache, other])
    windowed = lasting_pair("mistral", sliding_window=16)[1]
    with pytest.raises(ValueError, match="some with restarts"):
        joined([filled(windowed, POLICIES["shift"], prompt(14)), filled(windowed, POLICIES["even"])])
    with pytest.raises(ValueError, match="caches: got none"):
        joined([])


@cases("whole", "even", "ragged", "bias")
def test_sliding_windows(policy):
    model, tokenizer = lasting_pair("mistral", sliding_window=16)[1], tokenizer_of()
    caches = [filled(model, policy, prompt(n)) for n in (40, 30)]
    texts = [text_of(question) for question in QUESTIONS]
    expected = [by_hand(model, caches[0], question) for question in QUESTIONS]
    assert distill.ask(model, tokenizer, caches[0], texts, NEW) == expected
    assert distill.ask(model, tokenizer, caches, texts[0], NEW) == [by_hand(model, c, QUESTIONS[0]) for c in caches]


def test_sliding_windows_of_a_stock_cache():
    """Its windows count columns, padding included, so questions of unequal length are no batch."""
    stock, model = lasting_pair("mistral", sliding_window=16)
    tokenizer, texts = tokenizer_of(), [text_of(question) for question in QUESTIONS]
    cache = filled(model, None, stock=True)
    expected = [by_hand(model, cache, question) for question in QUESTIONS]
    for one in (stock, model):
        assert distill.ask(one, tokenizer, cache, texts, NEW) == expected
        assert distill.ask(one, tokenizer, cache, texts, NEW, ids=prompt(40)) == expected
    batch = filled(model, None, prompt(40, 2), stock=True)
    rows = [filled(model, None, row[None], stock=True) for row in prompt(40, 2)]
    expected = [by_hand(model, row, question) for row, question in zip(rows, QUESTIONS[:2], strict=True)]
    assert distill.ask(model, tokenizer, batch, texts[:2], NEW) == expected
    with pytest.raises(ValueError, match="question: got 3 questions; allowed for this cache are 2"):
        distill.ask(model, tokenizer, batch, texts)
    with pytest.raises(ValueError, match="got a DynamicSlidingWindowLayer that holds 40 tokens"):
        joined(rows)


def test_the_end_of_the_chat_template_stands_behind_the_question():
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of(chat=True)
    document = text_of(range(40, 70))
    cache = distill.read_document(model, tokenizer, document, SnapKV(12, 4))
    assert cache.origin.ids.tolist() == [[1, 2, *range(40, 70)]] and cache.origin.chat
    question = text_of(QUESTIONS[0])
    expected = by_hand(model, cache, [*QUESTIONS[0], 3, 4])
    assert distill.ask(model, tokenizer, cache, " " + question, NEW) == expected
    plain = distill.ask(model, tokenizer, cache, question, NEW, in_chat=False)
    assert plain == by_hand(model, cache, QUESTIONS[0]) != expected
    # a cache of which nobody has said so: the tokenizer has a template
    bare = prefill(model, torch.tensor([[1, 2, *range(40, 70)]]), policy=SnapKV(12, 4)).past_key_values
    assert distill.ask(model, tokenizer, bare, " " + question, NEW) == expected
    outside = distill.read_document(model, tokenizer, document, None, in_chat=False)
    assert outside.origin.ids.tolist() == [[*range(40, 70)]]
    assert distill.ask(model, tokenizer, outside, question, NEW) == by_hand(model, outside, QUESTIONS[0])


def test_a_document_is_read_under_the_policy_that_holds():
    model, tokenizer, text = lasting_pair("llama", SnapKV(12, 4))[1], tokenizer_of(), text_of(range(1, 41))

    def held(*args, **kwargs):
        return distill.read_document(model, tokenizer, text, *args, **kwargs).layers[0].keys.shape[2]

    assert (held(), held(None), held(SnapKV(9, 4)), held("streamingllm")) == (12, 40, 9, 40)
    with model.using(SnapKV(7, 4)):
        assert held() == 7 and held(prefill_chunk_size=8) == 7
    for bad, match in ((" ", "document: got ' '"), ("", "document: got ''")):
        with pytest.raises(ValueError, match=match):
            distill.read_document(model, tokenizer, bad)
    with pytest.raises(ValueError, match="model: got a LlamaForCausalLM; allowed are models"):
        distill.read_document(lasting_pair("llama")[0], tokenizer, text)


def test_known_ids_are_seen_by_the_rules_of_generate():
    """A penalty on what was read: as when everything is read anew. Unknown ids are not mistaken for a token."""
    model, tokenizer, ids = lasting_pair("llama")[1], tokenizer_of(), prompt(40)
    cache, question = filled(model, None), text_of(QUESTIONS[0])
    whole = torch.cat([ids, torch.tensor([QUESTIONS[0]])], dim=1)

    def expected(**rule):
        out = model.generate(whole, max_new_tokens=NEW, do_sample=False, policy=None, **rule)
        return text_of(out[0, whole.shape[1] :].tolist())

    rule = {"repetition_penalty": 3.0}
    assert expected(**rule) != expected()
    assert distill.ask(model, tokenizer, cache, question, NEW, ids=ids, **rule) == expected(**rule)
    read = distill.read_document(model, tokenizer, text_of(ids[0].tolist()), None)
    assert distill.ask(model, tokenizer, read, question, NEW, **rule) == expected(**rule)
    seen = generate_behind(model, copied(cache), [QUESTIONS[0]], max_new_tokens=1, do_sample=False).sequences
    assert set(seen[0, :40].tolist()) == {QUESTIONS[0][0]}


def test_a_stock_model_asks_its_own_cache():
    stock, ours = lasting_pair("llama")
    tokenizer, question = tokenizer_of(), text_of(QUESTIONS[0])
    with torch.no_grad():
        cache = stock(prompt(40), use_cache=True).past_key_values
    assert distill.ask(stock, tokenizer, cache, question, NEW) == by_hand(ours, cache, QUESTIONS[0])
    with pytest.raises(ValueError, match="model: got a LlamaForCausalLM; allowed with a policy"):
        distill.ask(stock, tokenizer, filled(ours, SnapKV(12, 4)), question, NEW)


def test_a_policy_can_be_told_to_cut_on():
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    cache = filled(model, SnapKV(12, 4))
    long = [n + 1 for n in range(40)]
    cut, whole = copied(cache), copied(cache)
    generate_behind(model, cut, [long], policy=SnapKV(9, 4), max_new_tokens=1, do_sample=False)
    generate_behind(model, whole, [long], max_new_tokens=1, do_sample=False)
    assert (cut.layers[0].held, whole.layers[0].held) == (12 + 9, 12 + 40)
    assert distill.ask(model, tokenizer, cache, text_of(long), NEW, policy=SnapKV(9, 4))


def test_what_cannot_be_asked_is_refused():
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    cache, batch = filled(model, SnapKV(12, 4)), filled(model, SnapKV(12, 4), prompt(40, 2))
    read = distill.read_document(model, tokenizer, text_of(range(1, 30)), None)
    other = tokenizer_of()
    other.add_tokens(["new"])
    for asked, kwargs, match in (
        ((cache, ""), {}, "question: got ''; allowed are texts"),
        ((cache, []), {}, r"question: got \[\]"),
        ((cache, ["w1", ""]), {}, "question: got"),
        ((cache, [3]), {}, r"question: got \[3\]"),
        ((cache, " "), {}, "question: got one without tokens"),
        ((batch, ["w1"]), {}, "question: got 1 questions; allowed for this cache are 2, one a row"),
        ((batch, ["w1"] * 3), {}, "question: got 3 questions"),
        ((cache, "w1", 0), {}, "max_new_tokens: got 0"),
        ((cache, "w1"), {"num_return_sequences": 2}, "num_return_sequences: got 2; allowed is 1"),
        ((cache, "w1"), {"ids": prompt(3)}, r"ids: got shape \(1, 3\); allowed for this cache is \(1, 40\)"),
        ((filled(model, None), "w1"), {"attention_mask": prompt(3)}, r"attention_mask: got shape \(1, 3\)"),
        (("cache", "w1"), {}, "cache: got 'cache'; allowed are caches"),
        ((DynamicCache(), "w1"), {}, "cache: got"),
    ):
        with pytest.raises(ValueError, match=match):
            distill.ask(model, tokenizer, *asked, **kwargs)
    with pytest.raises(ValueError, match=r"tokenizer: got .*, whose tokens are not those"):
        distill.ask(model, other, read, "w1")
    with pytest.raises(ValueError, match="model: got 'one', whose weights are not those"):
        distill.ask(tiny("llama", seed=1), tokenizer, read, "w1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_cache_answers_as_the_saved_one(dtype, tmp_path):
    model, tokenizer = lasting_pair("llama", dtype=dtype)[1], tokenizer_of()
    policy = AttentionMatching(KVzip(12, 16, 2), 0.25)
    caches = [distill.read_document(model, tokenizer, text_of(range(1, n)), policy) for n in (30, 50)]
    places = [distill.save_cache(cache, tmp_path / str(n)) for n, cache in enumerate(caches)]
    loaded = [distill.load_cache(place, model, tokenizer) for place in places]
    texts = [text_of(question) for question in QUESTIONS]
    for cache, again in zip(caches, loaded, strict=True):
        expected = distill.ask(model, tokenizer, cache, texts, NEW)
        assert distill.ask(model, tokenizer, again, texts, NEW) == expected
    assert distill.ask(model, tokenizer, loaded, texts[:2], NEW) == distill.ask(
        model, tokenizer, caches, texts[:2], NEW
    )
    # what was joined can be kept too
    both = distill.load_cache(distill.save_cache(joined(caches), tmp_path / "both"), model, tokenizer)
    assert both.layers[0].layout.shape[:2] == (2, KV_HEADS)
    assert distill.ask(model, tokenizer, both, texts[:2], NEW) == distill.ask(model, tokenizer, caches, texts[:2], NEW)


@pytest.fixture(scope="module")
def mini():
    return distill.mini("llama")


def test_two_stories_are_asked_in_one_batch(mini):
    """The model that ships finds each story's own pass key, which nobody knew of when the story was read."""
    from distill.mini.passkey import FACT, QUESTION, story

    model, tokenizer = mini
    keys = ("48213", "90177")
    pieces = [story()[start : start + 700] for start in (2000, 9000, 14000, 20000)]
    texts = [f"{pieces[i]}\n{FACT.format(key=key)}\n{pieces[i + 2]}" for i, key in enumerate(keys)]
    caches = [distill.read_document(model, tokenizer, text, KVzip(0.25)) for text in texts]
    found = distill.ask(model, tokenizer, caches, f"\n{QUESTION}", 6)
    assert [answer.strip()[:5] for answer in found] == list(keys)
    whole = distill.read_document(model, tokenizer, texts[0], None)
    assert distill.show_cache(caches[0]).bytes < 0.3 * distill.show_cache(whole).bytes
