"""Result files: nothing is lost, nothing is there twice, what is corrupt is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation.intervals import bootstrap, interval, paired_difference, wilson
from distill.evaluation.store import ResultFile, read_results, summarise

HEADER = {"task": "t", "truncation": {"limit": 10}, "environment": {"commit": "c"}}
ORDER = [str(i) for i in range(6)]


def record(key):
    cost = {"seconds": 1.0, "ttft_seconds": 0.5, "cache_bytes": 10, "peak_cache_bytes": 20 + int(key)}
    return {"id": key, "prediction": f"p{key}\u2028中", "truncated": False, "cost": cost}


def run(path, keys, rank=0, world=1, header=HEADER, end=True):
    file = ResultFile(path, header, rank, world)
    if rank == 0:
        file.prepare(ORDER)
    done = file.done()
    for key in [key for key in keys if key not in done][rank::world]:
        file.append(record(key))
    return file.finish(ORDER, summarise) if end else None


def test_a_whole_run(tmp_path):
    results = run(tmp_path / "t.jsonl", ORDER)
    assert list(results.records) == ORDER
    assert results.summary["n"] == 6 and results.summary["peak_cache_bytes"] == 25
    lines = (tmp_path / "t.jsonl").read_text(encoding="utf-8").split("\n")
    assert list(json.loads(lines[0])) == ["header"] and list(json.loads(lines[-2])) == ["summary"]
    assert read_results(tmp_path / "t.jsonl").records == results.records


@pytest.mark.parametrize("cut", [0, 1, 20, 200, 500, 700])
def test_a_run_killed_at_any_byte_resumes_to_the_same_file(tmp_path, cut):
    whole = tmp_path / "whole.jsonl"
    run(whole, ORDER)
    killed = tmp_path / "killed.jsonl"
    run(killed, ORDER[:4], end=False)
    killed.write_bytes(killed.read_bytes()[:cut])
    run(killed, ORDER)
    assert killed.read_bytes() == whole.read_bytes()


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 1200), world=st.integers(1, 3), stop=st.integers(0, 6))
def test_shards_and_kills_in_any_mixture_give_the_same_file(tmp_path_factory, cut, world, stop):
    folder = tmp_path_factory.mktemp("store")
    run(folder / "whole.jsonl", ORDER)
    path = folder / "t.jsonl"
    for rank in range(world):
        run(path, ORDER[:stop], rank, world, end=False)
    for shard in folder.glob("t.shard*.jsonl"):
        shard.write_bytes(shard.read_bytes()[:cut])
    for rank in range(2):
        run(path, ORDER, rank, 2, end=False)
    ResultFile(path, HEADER).finish(ORDER, summarise)
    assert path.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not list(folder.glob("*.shard*"))


def test_a_finished_run_grows_with_a_larger_limit_and_never_doubles(tmp_path):
    path = tmp_path / "t.jsonl"
    run(path, ORDER[:2])
    run(path, ORDER[:2])
    assert list(read_results(path).records) == ORDER[:2]
    assert list(run(path, ORDER).records) == ORDER


def test_other_settings_are_not_continued(tmp_path):
    path = tmp_path / "t.jsonl"
    run(path, ORDER[:2])
    before = path.read_bytes()
    changed = HEADER | {"truncation": {"limit": 20}}
    with pytest.raises(ValueError, match=r"other settings: truncation\.limit \(truncation\.limit: 10 there, 20 now\)"):
        run(path, ORDER, header=changed)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "prediction": ', "line 3: corrupt"),
        ("[1]", "line 3: corrupt: expected an object"),
        ('{"prediction": "x"}', "line 3: corrupt record"),
        (json.dumps(record("0")), "line 3: sample '0' occurs twice"),
    ],
)
def test_corrupt_lines_are_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    rows = [json.dumps({"header": HEADER}), json.dumps(record("0")), line, json.dumps(record("2"))]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    before = path.read_bytes()
    for act in (lambda: read_results(path), lambda: run(path, ORDER)):
        with pytest.raises(ValueError, match=rf"t\.jsonl, {message}"):
            act()
    assert path.read_bytes() == before


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="not found"):
        read_results(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty"):
        read_results(tmp_path / "empty.jsonl")
    (tmp_path / "other.jsonl").write_text('{"id": "1", "prediction": ""}\n')
    with pytest.raises(ValueError, match="line 1: a result file starts with a header"):
        read_results(tmp_path / "other.jsonl")


def test_half_a_surrogate_pair_survives(tmp_path):
    path = tmp_path / "t.jsonl"
    file = ResultFile(path, HEADER)
    file.prepare(["0"])
    file.append({"id": "0", "prediction": "\ud83d"})
    assert read_results(path).records["0"]["prediction"] == "\ud83d"


def test_wilson_is_the_textbook_interval():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1), abs=1e-4)
    for bad in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="successes"):
            wilson(*bad)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_intervals_hold_the_mean(scores):
    low, high = interval(scores)
    mean = sum(scores) / len(scores)
    assert -1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1 + 1e-9
    assert interval(scores) == (low, high)


def test_bootstrap_agrees_with_the_normal_interval():
    scores = [i / 199 for i in range(200)]
    low, high = bootstrap(scores)
    half = 1.96 * (sum((s - 0.5) ** 2 for s in scores) / 200) ** 0.5 / 200**0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)
    with pytest.raises(ValueError, match="values: got none"):
        bootstrap([])


def test_differences_are_paired():
    base = [i / 50 for i in range(50)]
    assert paired_difference([b + 0.1 for b in base], base) == pytest.approx((0.1, 0.1, 0.1))
    assert paired_difference([1.0], [0.0]) is None
    assert interval([0.5]) is None
    with pytest.raises(ValueError, match="baseline: got 2 scores; allowed are 1, of the same samples"):
        paired_difference([1.0], [0.0, 1.0])
