"""What the small models are taught: books, wordings, facts, questions, and where their answers lie."""

from __future__ import annotations

import random

import pytest

from distill.mini.passkey import right
from distill.mini.recipe import books, tasks, wording
from distill.mini.recipe.episodes import Maker, TooLong, tokenise
from distill.mini.recipe.skills import SKILLS, Draw, Episode, Question
from distill.mini.recipe.unseen import TEST, VALIDATION

from .conftest import NAMES, WORDS


def test_no_held_out_book_is_learnt_from():
    parts = [part for split in books.SPLITS.values() for part in split]
    assert len(set(parts)) == len(parts) == 23
    assert not [a for a in parts for b in parts if a != b and a in b]  # or one pattern would find two books


def test_books_lose_their_licence(shelf):
    split = {name: set(books.read(name)) for name in books.SPLITS}
    assert split["train"] == {"One_1", "Two_1"}
    assert not any(split["train"] & split[name] for name in books.SPLITS if name != "train")
    for text in books.read("train").values():
        assert "licence" not in text and "\n\n" in text
    with pytest.raises(ValueError, match="split: got 'all'; allowed are train, validation"):
        books.read("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(books.SPLITS, "train", ("One", "Three"))
        with pytest.raises(FileNotFoundError, match=r"no book \*Three\*"):
            books.read("train")


@pytest.mark.parametrize(
    "text", ["é漢字 \u200b\t\r\n 12345678 's", "  two  spaces\n\n", "REGISTER_CONTENT is <24169>"]
)
def test_the_tokenizer_loses_nothing_and_keeps_threes_of_digits(words, text):
    assert words.decode(words(text, add_special_tokens=False).input_ids) == text
    assert words("x").input_ids[0] == words.bos_token_id == 0
    assert [len(words.tokenize(str(n))) for n in (7, 42, 123, 1234, 123456)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_in_the_text_and_guides_point_at_them(maker, words, skill):
    seen = 0
    for _ in range(6):
        made = maker.sequence(400, SKILLS[skill](maker.draw, 4), asked=3)
        assert len(made.ids) == len(made.weights) <= 400 and made.ids[0] == words.bos_token_id
        for begin, end in made.answers:
            assert made.weights[begin] > 1 < made.weights[end - 1]
        for hint in made.guides:
            assert hint.start < hint.stop <= hint.query < len(made.ids) - 1
            if hint.fetch >= 0:
                assert hint.start <= hint.fetch < hint.stop and made.ids[hint.fetch] == made.ids[hint.query + 1]
                seen += 1
    assert seen or skill == "absent"


def test_too_few_words_are_an_error():
    with pytest.raises(ValueError, match="count: got 3; only 2 different ones"):
        Draw(random.Random(0), [], []).several(iter("ab" * 150).__next__, 3)


def test_a_value_costs_nothing_where_it_is_stated(maker, words):
    made = maker.sequence(300, Episode(["The code of Ann is [[4711]]."], []), asked=0)
    free = [token for token, weight in zip(made.ids, made.weights, strict=True) if weight == 0]
    assert words.decode(free) == "4711"


def test_of_a_question_only_the_answer_costs_anything(maker, words):
    episode = Episode(["The code of Ann is [[4711]]."], [Question("What is Ann's code? It is[[ 4711]].\n", (0,))])
    made = maker.sequence(300, episode, asked=1)
    start, stop = made.answers[0]
    assert words.decode(made.ids[start:stop]) == " 4711"
    asked = start - len(words("What is Ann's code? It is", add_special_tokens=False).input_ids)
    assert made.weights[asked:start] == [0.0] * (start - asked) and made.weights[asked - 1] == 1.0
    assert min(made.weights[start : stop + 1]) > 1.0


@pytest.mark.parametrize(("apart", "glued"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_questions_stand_apart_and_are_announced_as_often_as_wanted(words, apart, glued):
    maker = Maker(words, books.encode(words, "train"), Draw(random.Random(0), WORDS, NAMES), apart=apart, glued=glued)
    episode = Episode([], [Question(f"What is {n}?\nAnswer:[[ 4711]]\n", ()) for n in ("one", "two", "three")])
    for _ in range(10):
        made = maker.sequence(600, episode, asked=3)
        between = words.decode(made.ids[made.answers[0][1] : made.answers[1][0]])
        before, asked = between.removeprefix("\n").split("What is")
        assert len(made.answers) == 3 and asked.endswith("?\nAnswer:")
        assert bool(before) == bool(apart)
        assert not before or glued or before.endswith(wording.LEADS)
        first = words.decode(made.ids[1 : made.answers[0][0]])
        assert glued or first[: first.rindex("What is")].endswith(wording.LEADS)
    assert glued == 0 or maker._lead(first=True) == []


def test_what_is_held_out_is_never_taught(maker):
    unseen = Draw(random.Random(1), WORDS, NAMES, unseen=True)
    assert not {*unseen.words, *unseen.names} & {*maker.draw.words, *maker.draw.names}
    assert {*unseen.words, *maker.draw.words} == {*WORDS} and min(len(unseen.words), len(unseen.names)) > 5
    for draw in ("number", "value", "word", "name"):
        taught = {getattr(maker.draw, draw)() for _ in range(300)}
        asked = {getattr(unseen, draw)() for _ in range(300)}
        assert not taught & asked
    assert not any(books.held_out(maker.draw.number(5)) for _ in range(300))
    draw, kept = maker.draw, set()
    for wordings in (VALIDATION, TEST):
        kept |= {*wordings.passkey_facts, *wordings.passkey_questions}
        kept |= {*wordings.needle_facts, *wordings.needle_questions}
        assert not {*wordings.kinds} & {draw.kind(wordings.kinds[:1] + wording.KINDS) for _ in range(500)}
    whole, its = wording.PASSKEY_FACTS, wording.KEY_ITS
    assert not kept & {draw.statement(whole, its, wording.KEY_CORES, value_first=0.35) for _ in range(500)}
    assert not kept & {draw.statement(wording.NEEDLE_FACTS, wording.NAME_ITS) for _ in range(500)}
    for whole, its in ((wording.PASSKEY_QUESTIONS, wording.KEY_ITS), (wording.NEEDLE_QUESTIONS, wording.NAME_ITS)):
        assert not kept & {draw.question(whole, its) for _ in range(500)}


def test_wordings_are_put_together_from_parts(maker):
    fill = dict.fromkeys(("kind", "Kind", "attribute", "line", "content"), "code") | {"name": "Ann", "key": "a-b"}
    facts = {maker.draw.statement(wording.NEEDLE_FACTS, wording.NAME_ITS) for _ in range(300)}
    asked = {maker.draw.question(wording.PASSKEY_QUESTIONS, wording.KEY_ITS) for _ in range(300)}
    assert min(len(facts), len(asked)) > 200
    for form in facts | asked:
        text = form.format(value="4711", **fill)
        assert text.count("[[") == text.count("]]") == 1 and "4711" in text and text[0] != " " and "{" not in text


def test_any_words_may_stand_between_a_value_and_what_it_is(maker):
    draw = maker.draw

    def early(value_first):
        forms = [draw.statement((), wording.KEY_ITS, ("{it} is [[{value}]]",), value_first) for _ in range(300)]
        return sum(form.index("[[") < form.lower().index("{kind}") for form in forms)

    draw.composed = 1.0
    assert early(0.0) == 0 and 60 < early(1.0) < 120  # three cores in ten are of any words


def test_a_question_for_a_value_without_a_name_begins_its_sentence_again(maker):
    for _ in range(20):
        fact, question = maker.draw.unnamed()
        begin = fact.split(" [[")[0]
        assert len(begin.split()) >= 2 and f"{begin}[[ {{value}}]]" in question


def test_any_words_are_half_of_them_pieces_of_text(shelf):
    phrases = books.phrases(books.read("train"))
    text = " ".join(" ".join(books.read("train").values()).split())
    assert len(phrases) > 20 and all(phrase in text and 3 <= len(phrase.split()) <= 6 for phrase in phrases)
    draw = Draw(random.Random(0), WORDS, [], phrases=["one two three four five six"])
    found = [draw.some_words() for _ in range(100)]
    assert 30 < sum(words.startswith("one") for words in found) < 70 and "one two three four five" in found


def test_nothing_is_put_together_where_only_written_out_wordings_are_wanted(maker):
    draw = Draw(random.Random(0), WORDS, WORDS, composed=0.0)
    for _ in range(50):
        assert draw.statement(wording.PASSKEY_FACTS, wording.KEY_ITS) in wording.PASSKEY_FACTS
        assert draw.question(wording.PASSKEY_QUESTIONS, wording.KEY_ITS) in wording.PASSKEY_QUESTIONS
        assert draw.kind(wording.KINDS) in wording.KINDS
    tasks.prompt(maker, "passkey", 300, 0.5)
    assert maker.draw.composed == 0.7


def test_a_value_before_its_owner_is_known_as_such():
    episode = Episode()
    episode.state("[[{value}]] is {name}'s code.", name="Ann", value="1")
    episode.state("The code of {name} is [[{value}]].", name="Ann", value="1")
    episode.state("Use [[{value}]] as the {kind}.", kind="code", value="1")
    assert episode.early == {0, 2} and episode.facts[0] == "[[1]] is Ann's code."


def test_marks_become_token_ranges(words):
    piece = tokenise(words, "The key is[[ 12345]], not[[ 678]].")
    assert [words.decode(piece.ids[a:b]) for a, b in piece.marks] == [" 12345", " 678"]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_prompts_end_before_the_answer(maker, words, task):
    length = 600
    asked = tasks.prompt(maker, task, length, 0.5)
    assert asked.ids.shape[0] == 1 and 100 < asked.ids.shape[1] <= length and asked.answer.strip()
    text = words.decode(asked.ids[0])
    assert not text.endswith(asked.answer)
    assert task in ("two of 8 needles", "chain of two") or asked.answer.strip() in text


@pytest.mark.parametrize("task", tasks.TASKS)
def test_what_a_question_needs_lies_where_it_was_wanted(maker, words, task):
    for depth in (0.05, 0.5, 0.95):
        made = tasks.sequence(maker, task, 900, depth)
        lines = task in ("key-value lines", "line records")
        start = min(hint.start for hint in made.guides) if lines else made.guides[0].start
        # the question, the other facts, and the way to the end of a sentence move it
        assert abs(start / len(made.ids) - depth) < 0.25, (depth, start, len(made.ids))


def test_facts_come_in_their_order(maker):
    for _ in range(20):
        episode = SKILLS["where_is"](maker.draw, 12)
        facts = [tokenise(maker.tokenizer, text) for text in episode.facts]
        starts = maker._hide(facts, 300, False, [], None, 0)[1]
        assert starts == sorted(starts)


def test_facts_that_do_not_fit_are_an_error(maker):
    with pytest.raises(TooLong, match="length: got 30; the facts and a question alone take"):
        maker.sequence(30, SKILLS["needles"](maker.draw, 8), asked=1)


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        (" 123.", " 123", True),
        ("1234", " 123", False),
        ("12", "123", False),
        ("123 and 9", "123", True),
        ("", "x", False),
    ],
)
def test_a_longer_number_is_another_answer(given, wanted, expected):
    assert right(given, wanted) is expected
