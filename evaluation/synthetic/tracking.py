"""RULER's variable tracking and its two counting tasks: common words and frequent words."""

from __future__ import annotations

import functools
import itertools
import math
import random
import string
from collections.abc import Sequence

from distill.evaluation.prompting import Prompt, fill
from distill.evaluation.synthetic import words

HOPS = 4
# ten words are asked for
COMMON = 10


def variable_chain(
    size: int, seed: str, template: str, answer_prefix: str, name_length: int = 5
) -> tuple[Prompt, str, list[str]]:
    """A chain of `HOPS` assignments (X = 12345, Y = X, Z = Y ...) hidden in noise; all variables of it are asked for.

    Args:
        size: how many times the noise sentences are repeated.
        seed: decides everything that is random.
        template, answer_prefix: RULER's prompt and beginning of the answer.
        name_length: letters of a variable name.

    Returns:
        The prompt, the beginning of the answer, and the names of the variables.
    """
    rng = random.Random(seed)
    names = words.draw_unique(functools.partial(words.letters, rng, name_length), HOPS + 1)
    value = str(rng.randint(10000, 99998))
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {later} = VAR {earlier} " for earlier, later in itertools.pairwise(names)]
    units = [words.NOISE + "\n"] * size
    places = sorted(rng.sample(range(size), len(chain)), reverse=True)
    for place, line in zip(places, reversed(chain), strict=True):
        units.insert(place, line)
    context = " ".join(units).replace(". \n", ".\n")
    prompt = fill(template, {"context": context, "query": value}, "context")
    return prompt, answer_prefix.format(num_v=len(names), query=value), names


def worked_example(prompt: Prompt, answer_prefix: str, answer: str) -> str:
    """A sample with its answer as text, which stands in a prompt before the question that is really asked.

    Args:
        prompt, answer_prefix: the sample's prompt and beginning of the answer.
        answer: the rest of the answer.
    """
    return f"{prompt.text}{answer_prefix} {answer}"


def _word_list(rng: random.Random, n_words: int, often: int, seldom: int) -> tuple[str, list[str]]:
    chosen = rng.sample(words.vocabulary(), n_words)
    common, rest = chosen[:COMMON], chosen[COMMON:]
    entries = common * often + rest * seldom
    rng.shuffle(entries)
    return " ".join(f"{i}. {word}" for i, word in enumerate(entries, 1)), common


def common_words(
    n_words: int, seed: str, template: str, answer_prefix: str, length: int
) -> tuple[Prompt, str, list[str]]:
    """A numbered list in which ten words are frequent, after one solved example.

    Args:
        n_words: different words in the list, at least ten.
        seed: decides everything that is random.
        template, answer_prefix: RULER's prompt and beginning of the answer.
        length: token length of the sample; below 4096 RULER repeats words less often.

    Returns:
        The prompt, the beginning of the answer, and the ten words.
    """
    rng = random.Random(seed)
    short = length < 4096
    example_list, example_answer = _word_list(rng, 20 if short else 40, 3 if short else 10, 1 if short else 3)
    main_list, answer = _word_list(rng, n_words, 6 if short else 30, 1 if short else 3)
    example = fill(template, {"context": example_list}, "context")
    listed = " ".join(f"{i}. {word}" for i, word in enumerate(example_answer, 1))
    prompt = fill(template, {"context": main_list}, "context")
    before = worked_example(example, answer_prefix, listed)
    return Prompt(f"{before}\n{prompt.context}", prompt.question), answer_prefix, answer


def frequent_words(
    n_words: int, seed: str, template: str, answer_prefix: str, length: int
) -> tuple[Prompt, str, list[str]]:
    """Made-up words, of which the one of rank r occurs about 1/r**2 as often as the first.

    The most frequent "word" is the noise "..."; the words of ranks 2 to 4 are asked for.

    Args:
        n_words: words of the text, about.
        seed: decides everything that is random.
        template, answer_prefix: RULER's prompt and beginning of the answer.
        length: token length of the sample; the vocabulary has a word for every 50 tokens.

    Returns:
        The prompt, the beginning of the answer, and the three words.
    """
    rng = random.Random(seed)
    draw = functools.partial(words.letters, rng, 6, string.ascii_lowercase)
    vocabulary = ["...", *words.draw_unique(draw, max(4, length // 50) - 1)]
    zeta = math.pi**2 / 6
    text: list[str] = []
    for rank, word in enumerate(vocabulary, 1):
        text += [word] * int(n_words / (rank**2 * zeta))
    rng.shuffle(text)
    return fill(template, {"context": " ".join(text)}, "context"), answer_prefix, vocabulary[1:4]


def document_question(
    documents: Sequence[str],
    gold: Sequence[int],
    related: Sequence[int],
    size: int,
    seed: str,
    template: str,
    answer_prefix: str,
    question: str,
) -> tuple[Prompt, str]:
    """A question, and the documents that answer it among others, shuffled.

    RULER shuffles every sample with the same seed, so that the answer always stands at the same place. Here every
    sample has a seed of its own.

    Args:
        documents: texts of all documents.
        gold: numbers of the documents that answer the question.
        related: numbers of the documents that are taken first to fill up.
        size: how many documents there are in the prompt.
        seed: decides everything that is random.
        template, answer_prefix: RULER's prompt and beginning of the answer.

    Returns:
        The prompt and the beginning of the answer.
    """
    rng = random.Random(seed)
    others = [i for i in range(len(documents)) if i not in {*gold, *related}]
    filler = rng.sample(list(related), len(related)) + rng.sample(others, len(others))
    chosen = [*gold, *filler[: max(0, size - len(gold))]]
    rng.shuffle(chosen)
    context = "\n\n".join(f"Document {i}:\n{documents[index]}" for i, index in enumerate(chosen, 1))
    return fill(template, {"context": context, "query": question}, "context"), answer_prefix
