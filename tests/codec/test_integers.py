"""Frequencies, coders, ranks, packers and layout: laws of the parts that need no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.codec.coder import ENGINES, engine
from distill.codec.corrector import PARTS, Corrector
from distill.codec.frequencies import TOTAL, exp_table, frequencies, ideal_bits, levels
from distill.codec.layout import unwrap, wrap
from distill.codec.ranks import (
    PACKERS,
    code_lengths,
    from_varints,
    rank_of,
    token_at,
    varints,
)

SCORES = arrays(np.float64, st.integers(2, 60), elements=st.floats(-80, 80))


@given(SCORES, st.integers(2, 12))
def test_frequencies_are_positive_integers_that_add_up(scores, grid):
    below = levels(scores, grid)
    shares = frequencies(below, grid)
    assert shares.dtype == np.int64 and shares.min() >= 1 and shares.sum() == TOTAL
    # the likelier, the more; of equals one may have what rounding left over
    order = np.lexsort((-shares, below))
    assert (np.diff(shares[order]) <= 0).all()


@given(SCORES)
def test_frequencies_are_near_the_probabilities(scores):
    shares = frequencies(levels(scores, 10), 10) / TOTAL
    exact = np.exp(scores - scores.max())
    exact /= exact.sum()
    likely = exact > 1e-3
    assert np.abs(shares[likely] / exact[likely] - 1).max() < 3e-3


def test_the_table_of_exp():
    for grid in (5, 10):
        table = exp_table(grid)
        exact = np.exp(-np.arange(len(table)) / 2**grid) * table[0]
        assert np.abs(table - exact).max() < 1 and (np.diff(table) <= 0).all()


@pytest.mark.parametrize("scores", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_scores_that_are_none(scores):
    with pytest.raises(ValueError, match="scores: got a best score"):
        levels(np.array(scores), 10)


@pytest.mark.parametrize("name", ENGINES)
@given(data=st.data())
@settings(max_examples=60)
def test_what_is_coded_is_decoded(name, data):
    size = data.draw(st.integers(2, 40))
    steps = data.draw(st.lists(arrays(np.float64, size, elements=st.floats(-30, 30)), min_size=1, max_size=8))
    shares = [frequencies(levels(scores, 10), 10) for scores in steps]
    symbols = data.draw(st.lists(st.integers(0, size - 1), max_size=120))
    make_encoder, make_decoder = engine(name)
    encoder = make_encoder()
    for place, symbol in enumerate(symbols):
        encoder.put(symbol, shares[place % len(shares)])
    packed = encoder.finish()
    decoder = make_decoder(packed)
    assert [decoder.get(shares[place % len(shares)]) for place in range(len(symbols))] == symbols
    ideal = sum(ideal_bits(int(shares[place % len(shares)][symbol])) for place, symbol in enumerate(symbols))
    assert 8 * len(packed) <= 1.0001 * ideal + 64


@pytest.mark.parametrize("name", ENGINES)
def test_a_coder_reaches_the_ideal(name):
    """So constriction codes with our integers, not with some near them."""
    generator = np.random.default_rng(0)
    shares = frequencies(levels(generator.normal(size=3000) * 3, 10), 10)
    symbols = generator.choice(3000, size=3000, p=shares / TOTAL)
    encoder = engine(name)[0]()
    for symbol in symbols:
        encoder.put(int(symbol), shares)
    ideal = sum(ideal_bits(int(shares[symbol])) for symbol in symbols)
    assert ideal - 1 <= 8 * len(encoder.finish()) <= ideal + 64


@given(arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 8)), st.data())
def test_ranks_and_tokens_are_one_another(below, data):
    token = data.draw(st.integers(0, len(below) - 1))
    assert token_at(rank_of(token, below), below) == token
    assert sorted(rank_of(one, below) for one in range(len(below))) == list(range(len(below)))


@given(st.lists(st.integers(0, 1 << 20)))
def test_varints(numbers):
    assert from_varints(varints(numbers)) == numbers


@pytest.mark.parametrize("name", PACKERS)
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=9).map(lambda piece: piece * 20)))
@settings(max_examples=30)
def test_packers(name, data):
    pack, unpack = PACKERS[name]
    assert unpack(pack(data)) == data


@given(st.dictionaries(st.integers(0, 255), st.integers(1, 1000), min_size=2))
def test_huffman_codes_fill_the_tree(counts):
    lengths = code_lengths(counts)
    assert sum(2.0**-length for length in lengths.values()) == 1
    total = sum(counts.values())
    entropy = sum(count * np.log2(total / count) for count in counts.values())
    assert entropy - 1e-6 <= sum(counts[one] * lengths[one] for one in counts) <= entropy + total


WORDS = st.lists(st.text("abcdefg", min_size=1, max_size=9), min_size=40, max_size=150)


@given(WORDS, st.integers(20, 60), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=40)
def test_wrapped_text_comes_back_and_costs_little(words, width, end):
    lines, line = [], words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line += " " + word
    text = end.join([*lines, line]).encode()
    found = unwrap(text)
    if found is not None:
        flowing, notes = found
        assert wrap(flowing, notes) == text and (notes[0] & 1 or b"\n" not in flowing)
        assert 8 * len(notes) <= 2 * len(lines) + 72


@given(st.text("ab \n\r", max_size=300) | st.text("ab \n", max_size=300).map(lambda text: text.replace("\n", "\r\n")))
def test_any_layout_comes_back(text):
    found = unwrap(text.encode())
    assert found is None or wrap(*found) == text.encode()


def test_lines_that_are_no_paragraphs_stay():
    code = Path(__file__).read_bytes()
    assert unwrap(code) is None
    assert unwrap(code.replace(b"\n", b"\r\n")) == (code, b"\x01")


@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS), PARTS])
def test_the_corrector_does_the_same_twice_and_helps_where_text_repeats(parts):
    generator = np.random.default_rng(1)
    scores, hidden = generator.normal(size=(20, 50)), generator.normal(size=(20, 8))
    tokens = [int(token) for token in generator.integers(0, 50, 20)]

    def run() -> list[float]:
        corrector, bits = Corrector(50, 10, parts), []
        for place in range(400):
            below = corrector.levels(scores[place % 20], hidden[place % 20])
            shares = frequencies(below, 10)
            token = tokens[place % 20]
            bits.append(ideal_bits(int(shares[token])))
            corrector.learn(token, shares)
        return bits

    first = run()
    assert first == run()
    early, late = sum(first[:40]), sum(first[-40:])
    if "match" in parts or "ngram" in parts or "adapt" in parts:
        assert late < 0.7 * early
    if not parts:
        assert abs(late - early) < 1e-9


def test_the_corrector_does_not_see_last_bits():
    """Scores that differ by less than rounding give the same numbers, through all that was learnt."""
    generator = np.random.default_rng(2)
    scores, hidden = generator.normal(size=(60, 50)) * 3, generator.normal(size=(60, 8))
    one, other = Corrector(50, 5), Corrector(50, 5)
    for place in range(60):
        noise = generator.normal(size=50) * 1e-14
        first, second = one.levels(scores[place], hidden[place]), other.levels(scores[place] + noise, hidden[place])
        assert (first == second).all()
        one.learn(place % 7)
        other.learn(place % 7)
