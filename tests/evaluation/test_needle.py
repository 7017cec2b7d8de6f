"""Needle and RULER: the needle is there once, at every depth; lengths hold; seeds decide everything."""

from __future__ import annotations

import argparse
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation import heatmap
from distill.evaluation.benchmark import Source, check_tasks
from distill.evaluation.catalogue import benchmark
from distill.evaluation.needle import RESERVE, insert, spaced
from distill.evaluation.predict import Plan, render
from distill.evaluation.prompting import Encoder
from distill.evaluation.synthetic.fit import largest_size, shrink_to_fit
from distill.evaluation.synthetic.niah import sentences

NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
prose = st.lists(
    st.sampled_from(["One day it rained.", "Why not?", 'He said "go." ', "No stop here", "中文。", "Yes!\n\n"]),
    max_size=30,
).map(" ".join)


def make(name, essays, tokenizer, *flags, preset="official", task=None, limit=None):
    bench = benchmark(name)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(list(flags))
    args.preset = preset
    chosen = bench.options(args)
    source = Source(Encoder(tokenizer), essays, None, preset, chosen, limit=limit)
    found = check_tasks(bench, [task] if task else None, chosen)[0]
    return bench, found, bench.samples(found, source)


@settings(max_examples=100, deadline=None)
@given(prose, st.integers(0, 100))
def test_the_needle_is_there_once_between_sentences(text, depth):
    made = insert(text, [NEEDLE], [depth])
    assert made.count(NEEDLE) == 1
    place = made.index(NEEDLE)
    assert made[:place] + made[place + len(NEEDLE) :] == text
    assert place <= len(text) * depth / 100
    assert place in (0, len(text)) or re.search(r"[.!?][\"'”’)]*\s+$", text[:place])


@settings(max_examples=60, deadline=None)
@given(prose)
def test_depth_is_monotone_and_its_ends_are_the_ends(text):
    places = [insert(text, [NEEDLE], [depth]).index(NEEDLE) for depth in range(0, 101, 10)]
    assert places == sorted(places)
    assert places[0] == 0 and places[-1] == len(text)


@settings(max_examples=60, deadline=None)
@given(prose, st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_many_needles_are_each_there_once(text, depths):
    needles = [f"Needle number {i} is here. " for i in range(len(depths))]
    made = insert(text, needles, depths)
    assert all(made.count(needle) == 1 for needle in needles)
    assert len(made) == len(text) + sum(map(len, needles))


def test_a_haystack_that_holds_the_needle_is_refused():
    with pytest.raises(ValueError, match=r"needle: got .* does not hold already"):
        insert("Before." + NEEDLE + "After.", [NEEDLE], [50])
    with pytest.raises(ValueError, match="depth: got 101; allowed are numbers from 0 to 100"):
        insert("Text.", [NEEDLE], [101])


def test_grids():
    assert spaced(1000, 128_000, 35)[0] == 1000 and spaced(1000, 128_000, 35)[-1] == 128_000
    assert spaced(0, 100, 3) == [0, 50, 100]
    assert spaced(5, 9, 1) == [9]


@pytest.mark.parametrize("preset", ["official", "promptdistill", "chat"])
def test_every_cell_has_one_needle_one_bos_and_fits(essays, tokenizer, preset):
    flags = ["--s_len", "1200", "--e_len", "2000", "--n-lengths", "2", "--n-depths", "5"]
    bench, task, samples = make("needle", essays, tokenizer, *flags, preset=preset)
    assert len(samples) == 10 and task.max_new_tokens == 50
    encoder = Encoder(tokenizer)
    for sample in samples:
        prompt, cut = render(Plan(bench, preset=preset), sample, encoder, None, preset == "chat")
        ids = encoder.encode(prompt.text)
        assert prompt.text.count(NEEDLE.strip()) == 1 and not cut
        assert ids.count(tokenizer.bos_token_id) == 1
        # one token a byte here: the fixed words of the prompt are longer than the 200 tokens kept for them
        words = len(sample.prompt.text) - len(sample.prompt.context)
        assert len(ids) <= sample.group["length"] + words + 200
    if preset == "promptdistill":
        assert samples[0].prompt.text.startswith("<|im_start|> This is a very long story book: <book> ")
        assert samples[0].prompt.text.endswith(
            "</book>.\n Based on the content of the book, "
            "Question: What is the best thing to do in San Francisco?\nAnswer:"
        )


def test_promptdistill_grid_is_cut_at_the_two_flags(essays, tokenizer):
    parser = argparse.ArgumentParser()
    benchmark("needle").add_arguments(parser)
    args = parser.parse_args(["--e_len", "120000"])
    args.preset = "promptdistill"
    chosen = benchmark("needle").options(args)
    assert len(chosen["depths"]) == 10 and chosen["lengths"][:2] == [1000, 4256]
    assert chosen["lengths"] == [n for n in spaced(1000, 128_000, 40) if n <= 120_000]
    assert len(chosen["lengths"]) == 37


def test_random_needles_are_seeded_and_repeatable(essays, tokenizer):
    flags = ["--e_len", "1500", "--n-lengths", "1", "--n-depths", "2", "--needles", "3", "--repeats", "2"]
    bench, task, samples = make("needle", essays, tokenizer, *flags)
    again = make("needle", essays, tokenizer, *flags)[2]
    other = make("needle", essays, tokenizer, *flags, "--seed", "7")[2]
    assert samples == again and samples[0] != other[0]
    assert len({sample.id for sample in samples}) == 4
    for sample in samples:
        assert sample.prompt.context.count("One of the special magic numbers for") == 3
        assert sample.prompt.context.count(sample.reference["value"]) == 1
        assert sample.reference["value"] not in sample.prompt.question + sample.answer_prefix
        assert bench.chance(task, {"reference": sample.reference}) == pytest.approx(1 / 3)
    assert len(Encoder(tokenizer).encode(samples[0].prompt.context)) <= 1500 - RESERVE + 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--e_len", "500", "--s_len", "1000"], "--e_len: got 500; allowed are integers >= 1000"),
        (["--s_len", "10"], "--s_len: got 10; allowed are integers >= 300"),
        (["--repeats", "2"], "--repeats: got 2; allowed is 1"),
        (["--needles", "-1"], "--needles: got -1; allowed are integers >= 0"),
        (["--n-depths", "-3"], "--n-depths: got -3; allowed are integers >= 1"),
        (["--n-lengths", "10001"], "--n-lengths: got 10001; allowed are numbers from 1 to 10000"),
        (["--needles", "1001"], "--needles: got 1001; allowed are numbers from 0 to 1000"),
        (["--n-lengths", "0"], "--n-lengths: got 0; allowed are integers >= 1"),
    ],
)
def test_bad_needle_flags_are_refused(essays, tokenizer, flags, message):
    with pytest.raises(ValueError, match=message):
        make("needle", essays, tokenizer, *flags)


def test_the_order_of_files_is_sorted(essays, tokenizer):
    *_, samples = make("needle", essays, tokenizer, "--e_len", "1000", "--n-lengths", "1", "--n-depths", "2")
    assert samples[-1].prompt.context.startswith("The garden was quiet")


def test_heat_map_files(tmp_path):
    groups = {f"{n}-{d}": {"length": n, "depth": d} for n in (1000, 2000) for d in (0, 50, 100)}
    task = {"samples": {key: float(i % 2) for i, key in enumerate(groups)}, "groups": groups, "score": 50.0, "n": 6}
    task["header"] = {"label": "default", "protocol": "query-aware", "task": "classic"}
    assert heatmap.grid(task) == ([1000, 2000], [0, 50, 100], [[0, 100], [100, 0], [0, 100]])
    heatmap.write_png(task, tmp_path / "map.png")
    heatmap.write_csv(task, tmp_path / "map.csv")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "map.csv").read_text().splitlines()[:2] == ["depth %,1000,2000", "0,0.00,100.00"]
    task["header"]["label"] = "half a pair \ud83d"
    heatmap.write_png(task, tmp_path / "map.png")
    with pytest.raises(ValueError, match=r"sample 'a': got the groups \{\}; allowed"):
        heatmap.grid({"samples": {"a": 1.0}, "groups": {"a": {}}})


RULER = ["niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"]
RULER += ["niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"]


def test_ruler_has_the_13_tasks():
    bench = benchmark("ruler")
    tasks = bench.tasks({"lengths": [4096]})
    assert list(tasks) == [f"{name}_4096" for name in [*RULER, "qa_1", "qa_2"]]
    numbers = {name.removesuffix("_4096"): task.max_new_tokens for name, task in tasks.items()}
    assert numbers == dict.fromkeys(RULER[:8], 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert [name for name, task in tasks.items() if task.metric == "string_match_part"] == ["qa_1_4096", "qa_2_4096"]


@pytest.mark.parametrize("kind", RULER)
def test_ruler_samples_fill_the_length_and_hold_the_answers(essays, tokenizer, kind):
    length = 9000 if kind in ("vt", "cwe") else 4000
    flags = ["--lengths", str(length), "--samples", "2"]
    _, task, samples = make("ruler", essays, tokenizer, *flags, task=f"{kind}_{length}")
    again = make("ruler", essays, tokenizer, *flags, task=f"{kind}_{length}")[2]
    assert samples == again and samples[0].prompt != samples[1].prompt
    encoder = Encoder(tokenizer)
    for sample in samples:
        used = len(encoder.encode(sample.prompt.text + sample.answer_prefix)) + task.max_new_tokens
        assert 0.7 * length < used <= length
        assert sample.answer_prefix
        for reference in sample.reference["references"]:
            assert reference in sample.prompt.context
            assert reference not in sample.prompt.question
    counts = {"vt": 5, "cwe": 10, "fwe": 3, "niah_multivalue": 4, "niah_multiquery": 4}
    assert len(samples[0].reference["references"]) == counts.get(kind, 1)


def test_ruler_makes_no_more_samples_than_are_wanted_and_the_same_ones(essays, tokenizer):
    def some(limit):
        flags = ["--lengths", "1000", "--samples", "5"]
        return make("ruler", essays, tokenizer, *flags, task="niah_single_1_1000", limit=limit)[2]

    assert some(2) == some(None)[:2] and len(some(None)) == len(some(9)) == 5


def test_ruler_wording(essays, tokenizer):
    def one(kind, length):
        task = f"{kind}_{length}"
        return make("ruler", essays, tokenizer, "--lengths", str(length), "--samples", "1", task=task)[2][0]

    single = one("niah_single_1", 2000)
    assert single.prompt.text.startswith("A special magic number is hidden within the following text.")
    assert re.search(r"What is the special magic number for [\w-]+ mentioned in", single.prompt.question)
    assert re.fullmatch(r" The special magic number for .+ mentioned in the provided text is", single.answer_prefix)
    assert re.fullmatch(r"\d{7}", single.reference["references"][0])
    many = one("niah_multiquery", 4000)
    assert many.prompt.text.startswith("Some special magic numbers are hidden")
    assert ", and " in many.prompt.question
    chain = one("vt", 9000)
    names = chain.reference["references"]
    lines = [f"VAR {later} = VAR {earlier}" for earlier, later in itertools.pairwise(names)]
    places = [chain.prompt.context.index(line) for line in lines]
    assert places == sorted(places) and len(set(names)) == 5
    # the solved example comes first, with names of its own
    assert chain.prompt.text.count("Memorize and track the chain(s)") == 2
    words = one("cwe", 9000)
    assert words.prompt.text.count("Below is a numbered list of words") == 2
    main = words.prompt.context[words.prompt.context.rindex("Below is") :]
    counts = {
        word: len(re.findall(rf"\d+\. {re.escape(word)}(?= \d+\.|$)", main)) for word in words.reference["references"]
    }
    assert set(counts.values()) == {30}


def test_frequent_words_are_the_most_frequent_after_the_dots(essays, tokenizer):
    from collections import Counter

    flags = ["--lengths", "6000", "--samples", "1"]
    _, _, samples = make("ruler", essays, tokenizer, *flags, task="fwe_6000")
    body = samples[0].prompt.context.split("coded words. ")[1]
    ranked = [word for word, _ in Counter(body.split()).most_common(4)]
    assert ranked[0] == "..." and ranked[1:] == samples[0].reference["references"]


def test_ruler_questions_from_squad(shared, tokenizer, tmp_path):
    import gzip

    with gzip.open(shared("data", "xquad", "xquad.en.json.gz"), "rt", encoding="utf-8") as file:
        (tmp_path / "dev-v2.0.json").write_text(file.read(), encoding="utf-8")
    flags = ["--lengths", "9000", "--samples", "6"]
    bench, task, samples = make("ruler", tmp_path, tokenizer, *flags, task="qa_1_9000")
    places = set()
    for sample in samples:
        assert "Document 1:\n" in sample.prompt.context and sample.answer_prefix == " Answer:"
        assert any(answer in sample.prompt.context for answer in sample.reference["references"])
        documents = sample.prompt.context.split("Document ")[1:]
        places.add(next(i for i, text in enumerate(documents) if sample.reference["references"][0] in text))
    assert len(places) > 1
    answer = {"prediction": samples[0].reference["references"][0].upper(), "reference": samples[0].reference}
    assert bench.score(task, answer, {}) == 1


def test_ruler_errors(essays, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"length: got room for .* prompt tokens; allowed are"):
        make("ruler", essays, tokenizer, "--lengths", "300", "--samples", "1", task="niah_single_1_300")
    with pytest.raises(ValueError, match=r"--data-path: got .*; allowed are folders that hold text in \.txt"):
        make("ruler", tmp_path, tokenizer, "--lengths", "4000", "--samples", "1", task="niah_single_2_4000")
    with pytest.raises(ValueError, match=r"dev-v2\.0\.json"):
        make("ruler", tmp_path, tokenizer, "--lengths", "4000", "--samples", "1", task="qa_1_4000")
    for flag, value in (
        ("--lengths", "4k"),
        ("--lengths", "4096,0"),
        ("--lengths", "1" + "0" * 400),
        ("--samples", "0"),
    ):
        with pytest.raises(ValueError, match=f"{flag}: got .*; allowed are"):
            make("ruler", essays, tokenizer, flag, value)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 400), st.one_of(st.none(), st.integers(1, 300)))
def test_largest_size_is_the_largest(smallest, step, budget, most):
    def tokens(size):
        return size + 3

    if tokens(smallest) > budget:
        with pytest.raises(ValueError, match="length: got room for"):
            largest_size(tokens, budget, smallest, step, most)
        return
    size = largest_size(tokens, budget, smallest, step, most)
    allowed = [
        n for n in range(smallest, 500, step) if tokens(n) <= budget and (most is None or n <= max(most, smallest))
    ]
    assert size == allowed[-1]


def test_shrinking_ends():
    assert shrink_to_fit(lambda n: n, lambda n: n, 10, 17, 2, 5) == 7
    with pytest.raises(ValueError, match="got room for 1 prompt tokens; allowed are 2 or more"):
        shrink_to_fit(lambda n: n, lambda n: n, 1, 17, 2, 5)


def test_sentences_join_back():
    text = 'One. Two! "Three?" Four'
    assert sentences(text) == ["One.", "Two!", '"Three?"', "Four"]
