"""What the models are taught: facts and questions about them, drawn at random."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.mini.recipe import wording as w
from distill.mini.recipe.books import held_out
from distill.mini.recipe.unseen import KINDS as UNSEEN_KINDS
from distill.mini.recipe.unseen import Wordings

_COMMON = w.COMMON.split()


@dataclass(frozen=True)
class Question:
    """A question with its marked answer, and the facts that it needs: one for each mark, then any others."""

    text: str
    facts: tuple[int, ...]


@dataclass
class Episode:
    """Facts (marked texts) and questions about them.

    Args:
        lines: the facts are lines of one block, not scattered.
        early: the facts whose value stands before what it belongs to: nobody can know there whose it is.
    """

    facts: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    lines: bool = False
    early: set[int] = field(default_factory=set)

    def state(self, form: str, **fill: str) -> None:
        """Adds a fact: a template, filled."""
        owner = re.search(r"\{(name|kind|Kind)\}", form)
        if owner and form.index("[[") < owner.start():
            self.early.add(len(self.facts))
        self.facts.append(form.format(**fill))


class Draw:
    """Random words, names, values and wordings.

    Args:
        unseen: only words, names and values that no training task draws (the text, and the phrases that stand around
            them, may hold them).
        composed: how often a wording is put together from parts, and not one of those written out.
        phrases: pieces of text, half of what stands where any words may stand; none: single words only.
    """

    def __init__(
        self,
        rng: random.Random,
        words: Sequence[str],
        names: Sequence[str],
        unseen: bool = False,
        composed: float = 0.7,
        phrases: Sequence[str] = (),
    ) -> None:
        self.rng, self.unseen, self.composed = rng, unseen, composed
        self.phrases = phrases
        self.words = [word for word in words if held_out(word) == unseen]
        self.names = [name for name in names if held_out(name) == unseen]

    def statement(
        self, whole: Sequence[str], its: Sequence[str], cores: Sequence[str] = w.CORES, value_first: float = 0.0
    ) -> str:
        """A template: a `whole` one, or one made of an opener, a core about one of `its`, and a closer.

        `value_first`: how often a core of any words has the value before what it is.
        """
        if self.rng.random() >= self.composed:
            return self.rng.choice(whole)
        core = self.rng.choice(cores)
        if self.rng.random() < 0.3:  # any words between what is asked for and its value
            turn = ""
            if self.rng.random() < 0.4:
                turn = f"{self.rng.choice((' is', ' was', ':', ','))} {self.some_words()}"
            core = f"{{it}}{self.mark()}{self.some_words()}{turn}{self.mark()}[[{{value}}]]"
            if self.rng.random() < value_first:
                core = f"{self.some_words()} [[{{value}}]] {self.some_words()} {{it}}"
        text = core + (self.rng.choice(w.CLOSERS) if self.rng.random() < 0.5 else ".")
        text = _about(text, self.rng.choice(its))
        chance = self.rng.random()
        if chance < 0.4:
            return _sentence(text)
        if chance < 0.9:
            return self.rng.choice(w.OPENERS) + (text if self.rng.random() < 0.7 else _sentence(text))
        return f"{_sentence(self.some_words())}{self.rng.choice((', ', ': ', ' and '))}{text}"

    def question(self, whole: Sequence[str], its: Sequence[str]) -> str:
        """A template: a `whole` one, or one made of a request for one of `its` and the beginning of an answer."""
        if self.rng.random() >= self.composed:
            return self.rng.choice(whole)
        it, ask = self.rng.choice(its), self.rng.choice(w.ASKS)
        if not ask:  # then the beginning of the answer says what is asked for
            named = [text for text in w.ANSWERS if "{it}" in text.lower()]
            return _about(self.rng.choice(named), it).removeprefix(" ")
        chance, said = self.rng.random(), self.passage()
        if chance < 0.3:
            ask = f"{self.passage()} {{it}} {said}" if chance < 0.2 else f"{said} {{it}}"
            ask += self.rng.choice("??.:")
        elif chance < 0.5:
            ask = f"{said}{self.rng.choice((',', '.', ':', ''))} {ask}"
        extra = self.rng.choice(w.EXTRAS) if self.rng.random() < 0.15 else ""
        again = chance < 0.5 and self.rng.random() < 0.4
        return _about(ask + extra + self.beginning(said if again else None), it)

    def beginning(self, said: str | None = None) -> str:
        """The beginning of an answer: one of those known, or any words, such as those that the question `said`."""
        if not said and self.rng.random() < 0.4:
            return self.rng.choice(w.ANSWERS)
        about = self.rng.choice(("", "", " {it}"))
        end = self.rng.choice((":", ":", " is", " was", " says", "", "", ""))
        return self.rng.choice((" ", "\n")) + (said or self.passage()) + about + end + self.rng.choice(w.ENDS)

    def unnamed(self) -> tuple[str, str]:
        """A statement of a value that has no name, and a question that begins its sentence again."""
        begin = _sentence(f"{self.some_words()} {self.some_words()}")
        end = f" {self.some_words()}" if self.rng.random() < 0.5 else ""
        ask = f"Which {self.rng.choice(w.NOUNS)} {self.some_words()}? " if self.rng.random() < 0.5 else ""
        return f"{begin} [[{{value}}]]{end}.", f"{ask}{begin}[[ {{value}}]]{end}.\n"

    def kind(self, known: Sequence[str]) -> str:
        """What a value is called: one of a list, or words put together; none that is kept from training."""
        while True:
            found = self.rng.choice(known)
            if self.rng.random() < 0.7 * self.composed:
                found = f"{self.word()} {self.rng.choice((*w.NOUNS, self.word()))}"
                if self.rng.random() < 0.2:
                    found = f"{self.word()} {found}"
            if found not in UNSEEN_KINDS:
                return found

    def word(self) -> str:
        return self.rng.choice(self.words)

    def some_words(self) -> str:
        """One to five words: of a phrase, or rare ones and those of which sentences are made."""
        if self.phrases and self.rng.random() < 0.5:
            return " ".join(self.rng.choice(self.phrases).split()[: self.rng.randint(1, 5)])
        return " ".join(
            self.word() if self.rng.random() < 0.4 else self.rng.choice(_COMMON) for _ in range(self.rng.randint(1, 5))
        )

    def passage(self) -> str:
        """Any words, up to three pieces of them with marks between, as a sentence, a heading or a tag."""
        pieces = [self.some_words() for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3)))]
        text = _sentence(self.rng.choice((", ", ". ", " - ", "\n", ": ", "; ")).join(pieces))
        return self.rng.choice(w.MARKUP).format(text) if self.rng.random() < 0.1 else text

    def mark(self) -> str:
        return self.rng.choice((" ", " ", " ", ", ", ": "))

    def name(self) -> str:
        kind = self.rng.random()
        if kind < 0.5:
            return self.rng.choice(self.names)
        if kind < 0.6:
            return f"{self.rng.choice(self.names)} {self.rng.choice(self.names)}"
        return self.word() if kind < 0.75 else self.word().capitalize()

    def key(self) -> str:
        """A key of a line: words joined in some way, a name, or letters and digits."""
        kind = self.rng.random()
        if kind < 0.45:
            return f"{self.word()}-{self.word()}"
        if kind < 0.6:
            return f"{self.word()}{self.rng.choice('_ .')}{self.word()}"
        if kind < 0.85:
            return self.word()
        if kind < 0.92:
            return self.rng.choice(self.names)
        return "".join(self.rng.choices(string.ascii_lowercase, k=3)) + str(self.rng.randrange(1000))

    def keys(self, count: int) -> list[str]:
        """Different keys; often made of few words, so that many keys share one."""
        if self.rng.random() < 0.6:
            return self.several(self.key, count)
        words, mark = self.several(self.word, 3 + int(count**0.7)), self.rng.choice("-_ .")
        return self.several(lambda: mark.join(self.rng.choices(words, k=2)), count)

    def number(self, digits: int | None = None) -> str:
        size = digits or self.rng.choice((3, 4, 5, 5, 5, 5, 5, 6, 7, 8))
        while True:
            value = str(self.rng.randrange(10 ** (size - 1), 10**size))
            if held_out(value) == self.unseen:
                return value

    def value(self) -> str:
        kind = self.rng.random()
        if kind < 0.7:
            return self.number()
        if kind < 0.85:
            return self.word()
        if kind < 0.93:
            return f"{self.word()} {self.word()}"
        return f"{self.word()}-{self.number(3)}"

    def several(self, draw: Callable[[], str], count: int) -> list[str]:
        """`count` different draws.

        Raises:
            ValueError: there are not so many.
        """
        found: dict[str, None] = {}
        for _ in range(100 * count):
            found[draw()] = None
            if len(found) == count:
                return list(found)
        raise ValueError(f"count: got {count}; only {len(found)} different ones were drawn in {100 * count} attempts")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _about(text: str, it: str) -> str:
    return text.replace("{it}", it).replace("{It}", _sentence(it))


def passkey(
    d: Draw, count: int, wordings: Wordings | None = None, digits: int | None = None, unnamed: float = 0.1
) -> Episode:
    """One key, or a few keys of different kinds.

    `unnamed`: how often a value is no key at all, only a part of a sentence that the question begins again.
    """
    kinds = [d.rng.choice(wordings.kinds)] if wordings else d.several(lambda: d.kind(w.KINDS), min(count, 5))
    # "passkey" beside "pass key" would be a riddle, not a question
    kinds = list({kind.replace(" ", ""): kind for kind in kinds}.values())
    episode = Episode()
    for i, kind in enumerate(kinds):
        value = d.number(digits) if digits or d.rng.random() < 0.8 else d.value()
        fill = {"kind": kind, "Kind": kind.capitalize(), "value": value}
        if wordings:
            fact, question = d.rng.choice(wordings.passkey_facts), d.rng.choice(wordings.passkey_questions)
        elif d.rng.random() < unnamed:
            fact, question = d.unnamed()
        else:
            fact = d.statement(w.PASSKEY_FACTS, w.KEY_ITS, w.KEY_CORES, value_first=0.35)
            question = d.question(w.PASSKEY_QUESTIONS, w.KEY_ITS[:1])
        episode.state(fact, **fill)
        episode.questions.append(Question(question.format(**fill), (i,)))
    return episode


def needles(
    d: Draw, count: int, wordings: Wordings | None = None, digits: int | None = None, value_first: float = 0.1
) -> Episode:
    """Values of names, in one wording or several, asked for one by one or in pairs.

    `value_first`: how often, at least, the value is stated before the name; 0: never.
    """

    attribute = d.kind(w.ATTRIBUTES)
    names = d.several(d.name, count)
    numeric = digits or d.rng.random() < 0.6
    values = d.several(lambda: d.number(digits) if numeric else d.value(), count)
    same = _needle_fact(d, wordings, value_first) if d.rng.random() < 0.6 else None
    episode = Episode()
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        fill = {"attribute": attribute, "name": name, "value": value}
        episode.state(same or _needle_fact(d, wordings, value_first), **fill)
        others = [j for j in range(count) if j != i]
        if others and not wordings and d.rng.random() < 0.2:
            j = d.rng.choice(others)
            text = d.rng.choice(w.PAIR_QUESTIONS).format(other=names[j], second=values[j], **fill)
            episode.questions.append(Question(text, (i, j)))
            continue
        ask = d.rng.choice(wordings.needle_questions) if wordings else d.question(w.NEEDLE_QUESTIONS, w.NAME_ITS)
        episode.questions.append(Question(ask.format(**fill), (i,)))
    return episode


def _needle_fact(d: Draw, wordings: Wordings | None, value_first: float) -> str:
    if wordings:
        return d.rng.choice(wordings.needle_facts)
    if d.rng.random() < value_first:
        return w.VALUE_FIRST
    while True:
        its: Sequence[str] = w.NAME_ITS
        if d.rng.random() < 0.15:  # any words between the name and what is asked of it
            its = (f"{{name}} {d.some_words()} {d.rng.choice(('the', 'a', 'his', 'this'))} {{attribute}}",)
        found = d.statement(w.NEEDLE_FACTS, its)
        if value_first or found.index("[[") > found.index("{name}"):
            return found


def chain(d: Draw, count: int) -> Episode:
    """Two look-ups: the value of somebody's neighbour."""
    attribute, relation = d.rng.choice(w.ATTRIBUTES), d.rng.choice(w.RELATIONS)
    count = max(2, count // 2)
    people = d.several(d.name, 2 * count)
    values = d.several(d.number, count)
    form, link = d.statement(w.NEEDLE_FACTS, w.NAME_ITS), d.rng.choice(w.LINK_FACTS)
    episode = Episode()
    for i in range(count):
        fill = {"relation": relation, "attribute": attribute, "value": values[i]}
        fill |= {"name": people[i], "other": people[count + i]}
        episode.state(link, **fill)
        episode.state(form, **(fill | {"name": people[count + i]}))
        text = d.rng.choice(w.CHAIN_QUESTIONS).format(**fill)
        needed = (2 * i, 2 * i + 1) if text.count("[[") == 2 else (2 * i + 1, 2 * i)
        episode.questions.append(Question(text, needed))
    return episode


def key_values(d: Draw, count: int) -> Episode:
    """A list of keys and values, a pair a line."""
    line, same = d.rng.choice(w.KV_LINES)
    keys = d.keys(count)
    values = [d.value() for _ in keys]
    facts = [line.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    questions = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        form = d.rng.choice(w.KV_QUESTIONS).replace("{same}", same)
        if d.rng.random() < 0.4:
            form = d.question((form,), w.VALUE_ITS)
        questions.append(Question(form.format(key=key, value=value), (i,)))
    return Episode(facts, questions, lines=True)


def line_records(d: Draw, count: int) -> Episode:
    """Line retrieval in the style of LongChat."""
    (line, content), form = d.rng.choice(w.LINE_WORDS), d.rng.choice(w.LINE_FACTS)
    keys = d.several(lambda: f"{d.word()}-{d.word()}", count) if d.rng.random() < 0.6 else d.keys(count)
    values = [d.number(d.rng.choice((3, 4, 5, 5, 5))) for _ in keys]
    fills = [{"line": line, "content": content, "key": k, "value": v} for k, v in zip(keys, values, strict=True)]
    facts = [form.format(**fill) for fill in fills]
    questions = [Question(d.question(w.LINE_QUESTIONS, w.RECORD_ITS).format(**f), (i,)) for i, f in enumerate(fills)]
    return Episode(facts, questions, lines=True)


def absent(d: Draw, count: int) -> Episode:
    """Which of some names did not appear."""
    count = max(3, min(count, 8))
    names = d.several(lambda: d.rng.choice(d.names), count + 2)
    facts = [d.rng.choice(w.PRESENT_FACTS).format(name=name) for name in names[:count]]
    questions = []
    for missing in names[count:]:
        shown = d.rng.sample(range(count), d.rng.choice((2, 3)))
        options = [names[i] for i in shown] + [missing]
        d.rng.shuffle(options)
        listed = ", ".join(options[:-1]) + " and " + options[-1]
        text = d.rng.choice(w.ABSENT_QUESTIONS).format(options=listed, value=missing)
        questions.append(Question(text, tuple(-1 for _ in range(text.count("[["))) + tuple(shown)))
    return Episode(facts, questions)


def where_is(d: Draw, count: int) -> Episode:
    """Short facts about people, places and things; of several moves of one person the last counts."""
    people = d.several(lambda: d.rng.choice(d.names), max(2, min(count, 8)))
    episode = Episode()
    if d.rng.random() < 0.6:
        at: dict[str, tuple[int, str]] = {}
        for i in range(max(count, len(people))):
            name = people[i] if i < len(people) else d.rng.choice(people)
            place = d.rng.choice(w.PLACES)
            episode.facts.append(f"{name} {d.rng.choice(w.MOVES)} the [[{place}]].")
            at[name] = (i, place)
        for name, (i, place) in at.items():
            episode.questions.append(Question(d.rng.choice(w.WHERE_QUESTIONS).format(name=name, value=place), (i,)))
        return episode
    things = d.rng.sample(w.THINGS, len(people))
    for i, (name, thing) in enumerate(zip(people, things, strict=True)):
        take = d.rng.choice(w.TAKES)
        question, asked = d.rng.choice(w.TAKE_QUESTIONS)
        if asked == "name":
            episode.early.add(i)
        marked = {"name": name, "thing": thing, asked: f"[[{name if asked == 'name' else thing}]]"}
        episode.facts.append("{name} {take} the {thing}.".format(take=take, **marked))
        episode.questions.append(Question(question.format(name=name, take=take, thing=thing), (i,)))
    return episode


SKILLS: dict[str, Callable[[Draw, int], Episode]] = {
    "passkey": passkey,
    "needles": needles,
    "chain": chain,
    "key_values": key_values,
    "line_records": line_records,
    "absent": absent,
    "where_is": where_is,
}
