"""Chats: messages in, messages out, over HTTP too."""

from __future__ import annotations

import asyncio
import copy

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.pruning import Distill
from distill.serving import Settings, create_app


@pytest.fixture(scope="module")
def quick() -> Distill:
    return Distill(scorer="baseline", ner="capitals")


@pytest.fixture
def chat(long_prose):
    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
    return [
        {"role": "system", "content": "Answer in one sentence and never guess."},
        {"role": "user", "content": long_prose(60, 1)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": long_prose(120, 2)},
        {"role": "assistant", "content": long_prose(60, 3)},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Which of these ways is the cheapest, and who said so?"},
                {"type": "image_url", "image_url": {"url": "data:,x"}},
            ],
        },
    ]


def test_system_and_last_turn_stay_and_all_else_is_shortened(quick, chat):
    before = copy.deepcopy(chat)
    result = quick.compress(messages=chat, rate=0.6)
    assert chat == before  # the caller's messages are not touched
    assert [m["role"] for m in result.messages] == [m["role"] for m in chat]
    for i in (0, 2, 5):
        assert result.messages[i] == chat[i]
    for i in (1, 3, 4):
        assert 0 < len(result.messages[i]["content"]) < len(chat[i]["content"])
        assert {k: v for k, v in result.messages[i].items() if k != "content"} == {
            k: v for k, v in chat[i].items() if k != "content"
        }
    assert [row[:2] for row in result.results] == [(1, 0), (3, 0), (4, 0)]
    assert result.tokens < result.original_tokens and 0 < result.rate < 1


def test_shares_by_role(quick, chat):
    result = quick.compress(messages=chat, rate=0.9, roles={"tool": 0.5, "assistant": 1})
    assert result.messages[4] == chat[4]
    rates = {i: r.tokens / r.original_tokens for i, _, r in result.results}
    assert rates[3] <= 0.5 < rates[1] <= 0.9
    assert quick.compress(messages=chat, rate=0.5, keep_last=2).messages[1] == chat[1]


def test_keep_spans_stay_and_their_tags_go(quick, long_prose):
    text = f"{long_prose(60)} <keep>the children played there all day long</keep> {long_prose(60)}"
    messages = [{"role": "tool", "content": text}, {"role": "user", "content": "What did <keep>they</keep> do?"}]
    out = quick.compress(messages=messages, rate=0.5).messages
    assert "the children played there all day long" in out[0]["content"] and "<keep>" not in out[0]["content"]
    assert out[1]["content"] == "What did they do?"


def test_the_last_turn_can_be_the_question(long_prose):
    pruner = Distill(scorer="lexical", ner="capitals")
    messages = [{"role": "tool", "content": long_prose(300)}, {"role": "user", "content": "Who drafted the report?"}]
    out = pruner.compress(messages=messages, rate=0.3, query_aware=True)
    assert "Maria Lopez, who had drafted the report" in out.messages[0]["content"].replace("\n", " ")


@pytest.mark.parametrize(
    ("messages", "options", "name"),
    [
        ("hello", {}, "messages"),
        ([1], {}, r"messages\[0\]"),
        ([{"role": 1, "content": "a"}], {}, r"messages\[0\]"),
        ([{"role": "user", "content": 5}], {}, r"messages\[0\]\['content'\]"),
        ([{"role": "user", "content": ["a"]}], {}, r"messages\[0\]\['content'\]"),
        ([{"role": "user", "content": "\ud800"}], {}, r"messages\[0\]\['content'\]"),
        ([], {"roles": {"tool": 2}}, r"roles\['tool'\]"),
        ([], {"roles": 3}, "roles"),
        ([], {"keep_last": -1}, "keep_last"),
        ([], {"scope": "all"}, "scope"),
        ([], {"rate": 2}, "rate"),
        ([], {"nonsense": 2}, "nonsense"),
    ],
)
def test_bad_chats(quick, messages, options, name):
    with pytest.raises(ValueError, match=rf"^{name}: got .*; allowed are"):
        quick.compress(messages=messages, **options)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda t: "keep>" not in t)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": TEXT | st.none() | st.lists(PART, max_size=3),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGE, max_size=6), st.sampled_from([0.2, 0.6, 1.0]))
def test_laws_of_chats(messages, rate):
    result = Distill(scorer="baseline", ner=None).compress(messages=messages, rate=rate)
    assert len(result.messages) == len(messages)
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    for i, (before, after) in enumerate(zip(messages, result.messages, strict=True)):
        assert before["role"] == after["role"]
        if rate == 1 or before["role"] == "system" or i in users[-1:]:
            assert before == after
    for *_, one in result.results:
        one.check()
        assert one.over_budget or one.tokens <= one.budget


def test_chats_over_http(quick, chat):
    async def ask(body):
        app = create_app(lambda: quick, Settings(api_key=None))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.post("/compress_chat", json=body)

    found = asyncio.run(ask({"messages": chat, "rate": 0.6, "roles": {"tool": 0.5}}))
    assert found.status_code == 200
    wanted = quick.compress(messages=chat, rate=0.6, roles={"tool": 0.5})
    assert found.json()["messages"] == wanted.messages and found.json()["tokens"] == wanted.tokens
    bad = asyncio.run(ask({"messages": [{"role": "user", "content": 5}]}))
    assert bad.status_code == 422 and bad.json()["detail"][0]["loc"][:2] == ["body", "messages"]
    assert asyncio.run(ask({"messages": [], "nonsense": 1})).status_code == 422
