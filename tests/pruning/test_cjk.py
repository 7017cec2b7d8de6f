"""Chinese, Japanese, Korean: words are not cut, negations and names stay, budgets count what the tokenizer counts."""

from __future__ import annotations

import itertools

import pytest

from distill.pruning import Distill
from distill.pruning.masks.rules import rule_anchors
from distill.pruning.units import split_units

WHO = ["委员会", "这家公司", "老师", "他们的邻居", "张伟"]
NEGATED = [
    "不同意修改原来的合同",
    "没有收到任何付款",
    "从未去过那个城市",
    "不会在冬天之前开工",
    "并非这件事的责任人",
    "不能打开那扇旧门",
    "无法按时完成报告",
    "别再给他写信",
    "不喜欢新的计划",
    "没参加昨天的会议",
    "不是工程师",
    "勿在夜间使用机器",
    "毫无准备",
    "未经许可离开",
    "不得公开这份文件",
    "没告诉任何人",
    "不再相信这个说法",
    "不愿意承担费用",
    "绝不接受这个条件",
    "尚未决定日期",
]
SENTENCES = [f"{who}{what}，因为今年的天气一直很好而且大家都很高兴。" for who, what in itertools.product(WHO, NEGATED)]


@pytest.fixture(scope="module")
def quick() -> Distill:
    return Distill(scorer="baseline")


def negations(text: str) -> list[str]:
    return [c for c in text if c in "不没未非无别勿"]


def test_every_chinese_negation_of_100_sentences_survives(quick):
    assert len(SENTENCES) == 100
    for sentence in SENTENCES:
        for rate in (0.5, 0.3):
            assert negations(quick.compress(sentence, rate).text) == negations(sentence), sentence
    together = quick.compress("".join(SENTENCES), 0.5)
    assert negations(together.text) == negations("".join(SENTENCES))


@pytest.mark.parametrize("text", ["非常好的未来", "特别的别人", "无论如何"])
def test_words_that_only_look_like_negations(text):
    assert not [a for a in rule_anchors(text, ("negation",)) if text[a.start : a.end] != "如何"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("彼は昨日の会議に参加しなかったと言った。", "参加しなかった"),
        ("この機械は夜に使わないでください。", "使わない"),
        ("窓は開きません。", "開きません"),
        ("그는 어제 회의에 참석하지 않았다.", "않았다"),
        ("우리는 안 갔다.", "안 갔다"),
        ("돈이 없습니다.", "없습니다"),
    ],
)
def test_japanese_and_korean_negations(quick, text, wanted):
    assert any(wanted in text[a.start : a.end] for a in rule_anchors(text, ("negation",)))
    assert wanted in quick.compress(text * 2, 0.5).text


def test_words_are_not_cut(quick):
    pytest.importorskip("jieba")
    text = "中华人民共和国的经济发展情况在过去十年发生了巨大变化，北京大学的研究人员认为基础设施建设是重要原因。"
    words = {
        text[a:b] for a, b in zip(*(getattr(split_units(text), name) for name in ("starts", "ends")), strict=True)
    }
    assert {"中华人民共和国", "北京大学", "研究", "人员"} <= words
    result = quick.compress(text, 0.5)
    edges = {0, len(text)} | set(split_units(text).starts.tolist()) | set(split_units(text).ends.tolist())
    assert {edge for span in result.spans for edge in span} <= edges
    japanese = split_units("東京タワーを見ました。")
    assert [japanese.text[a:b] for a, b in zip(japanese.starts, japanese.ends, strict=True)] == [
        "東京", "タワー", "を", "見ました", "。"
    ]  # fmt: skip


def test_names_and_numbers_stay(quick):
    pytest.importorskip("jieba")
    text = "昨天下午王小明和李华在上海参观了华为公司，花了350元，从2019年5月3日开始，一共有十二个人参加了这次活动。"
    out = quick.compress(text, 0.5)
    for wanted in ("上海", "350元", "2019年5月3日", "十二个人"):
        assert wanted in out.text, out.text
    assert "田中さん" in quick.compress("昨日、田中さんはとても長い手紙をゆっくりと書きました。" * 2, 0.5).text


def test_budgets_count_what_the_tokenizer_counts(checkpoints):
    pruner = Distill(scorer="baseline", target_tokenizer=checkpoints.llama)
    text = "".join(SENTENCES[:12])
    for rate in (0.9, 0.7, 0.5):
        result = pruner.compress(text, rate)
        assert result.exact and (result.over_budget or result.tokens <= result.budget)
        assert result.tokens == pruner.counter.count([result.text])[0]
