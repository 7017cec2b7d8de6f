"""Result files: nothing is lost, nothing is there twice, what is corrupt is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation import lock
from distill.evaluation.intervals import bootstrap, interval, paired_difference, wilson
from distill.evaluation.lock import LOCK_FILE, only_writer
from distill.evaluation.store import COSTS, FIELDS, ResultFile, read_results, summarise

HEADER = {"task": "t", "truncation": {"limit": 10}, "environment": {"commit": "c"}}
ORDER = [str(i) for i in range(6)]


def record(key):
    cost = {"seconds": 1.0, "ttft_seconds": 0.5, "cache_bytes": 10, "peak_cache_bytes": 20 + int(key)}
    made = {"id": key, "prediction": f"p{key}\u2028中", "reference": {}, "group": {}, "truncated": False, "cost": cost}
    return made | {"prompt_tokens": 3, "new_tokens": 1, "prompt_sha256": "0"}


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
        ('{"id": "1", "prediction": ', "line 3: got corrupt JSON"),
        ("[1]", "line 3: got a corrupt line, a list"),
        ('{"prediction": "x"}', "line 3: got a corrupt record without 'id'"),
        (json.dumps(record("0")), "line 3: got the sample '0' again; allowed is once, and line 2 has it"),
        (json.dumps({"header": HEADER}), "line 3: got a corrupt record without 'id'"),
        (json.dumps({"summary": {}}), "line 4: got a line behind the summary"),
        (json.dumps(record("1") | {"group": {"length": 3}}), "line 3: got a corrupt record with the group"),
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
    with pytest.raises(ValueError, match=r"result file: got .*no\.jsonl; allowed"):
        read_results(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="line 1: got an empty file"):
        read_results(tmp_path / "empty.jsonl")
    (tmp_path / "other.jsonl").write_text('{"id": "1", "prediction": ""}\n')
    with pytest.raises(ValueError, match="line 1: got id, prediction; allowed is a header"):
        read_results(tmp_path / "other.jsonl")


def test_half_a_surrogate_pair_survives(tmp_path):
    path = tmp_path / "t.jsonl"
    file = ResultFile(path, HEADER)
    file.prepare(["0"])
    file.append(record("0") | {"prediction": "\ud83d"})
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


# what a disk, an editor or another program can make of one line of a result file
DAMAGE = {
    "not UTF-8": lambda line: line[:-3] + b"\xff" + line[-3:],
    "deep": lambda line: b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rather deep": lambda line: b'{"id": ' + b"[" * 150 + b"]" * 150 + b"}",
    "many digits": lambda line: line.replace(b": 3,", b": %b," % (b"3" * 5_000)).replace(b"10}", b"1" * 5_000 + b"}"),
    "not a number": lambda line: line.replace(b": 3,", b": NaN,").replace(b": 10}", b": NaN}"),
    "infinite": lambda line: line.replace(b": 3,", b": 1e999,").replace(b": 10}", b": 1e999}"),
    "cut": lambda line: line[: len(line) // 2],
    "zeros": lambda line: b"\0" * len(line),
    "a list": lambda line: b"[" + line + b"]",
    "a text": lambda line: b'"text"',
    "two values": lambda line: line + line,
}


@pytest.mark.parametrize("torn_end", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damaged_line_is_named_and_nothing_is_changed(tmp_path, kind, number, torn_end):
    path = tmp_path / "t.jsonl"
    run(path, ORDER, end=False)
    lines = path.read_bytes().split(b"\n")
    damaged = DAMAGE[kind](lines[number - 1])
    assert damaged != lines[number - 1]
    lines[number - 1] = damaged
    path.write_bytes(b"\n".join(lines) + (b'{"id": "torn' if torn_end else b""))
    before = path.read_bytes()
    acts = [lambda: run(path, ORDER), lambda: ResultFile(path, HEADER).finish(ORDER, summarise)]
    for act in acts if torn_end else [*acts, lambda: read_results(path)]:
        with pytest.raises(ValueError, match=rf"t\.jsonl, line {number}: got "):
            act()
        assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


WRONG = ("missing", None, True, [], -1, "x", {})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (name, wrong)
        for name in (*FIELDS, *(f"cost.{name}" for name in COSTS))
        for wrong in WRONG
        if wrong in ("missing", -1) or type(wrong) is not FIELDS.get(name)
    ],
)
def test_a_field_that_is_missing_or_of_another_kind_is_named(tmp_path, name, wrong):
    path = tmp_path / "t.jsonl"
    run(path, ORDER[:1], end=False)
    made = record("1")
    target, _, key = name.rpartition(".")
    place = made[target] if target else made
    if wrong == "missing":
        del place[key]
    else:
        place[key] = wrong
    with pytest.raises(ValueError, match="a new record: got a corrupt record"):
        ResultFile(path, HEADER).append(made)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    for act in (lambda: read_results(path), lambda: run(path, ORDER)):
        with pytest.raises(ValueError, match=rf"t\.jsonl, line 3: got a corrupt record.*{key}"):
            act()


@pytest.mark.parametrize(
    "extra", [{"kept": "99"}, {"tokens": ["a"]}, {"kept": "9", "tokens": ["a", "b"]}, {"kept": "x", "tokens": ["a"]}]
)
def test_kept_tokens_that_do_not_fit_are_refused(tmp_path, extra):
    path = tmp_path / "t.jsonl"
    run(path, [], end=False)
    with pytest.raises(ValueError, match="a new record: got a corrupt record"):
        ResultFile(path, HEADER).append(record("0") | extra)
    ResultFile(path, HEADER).append(record("0") | {"kept": "90", "tokens": ["a", "b"]})
    assert len(read_results(path).records) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, object()])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="header: got"):
        ResultFile(tmp_path / "t.jsonl", {"seed": value})
    assert not list(tmp_path.iterdir())


def test_a_restart_discards_shards_too(tmp_path):
    path = tmp_path / "t.jsonl"
    for rank in range(2):
        run(path, ORDER[:4], rank, 2, end=False)
    file = ResultFile(path, HEADER)
    assert list(tmp_path.glob("*.shard*"))
    file.discard()
    file.prepare(ORDER)
    assert file.done() == {} and not list(tmp_path.glob("*.shard*"))


def test_a_second_writer_is_refused_while_the_first_is_there(tmp_path):
    folder = tmp_path / "new" / "run"
    refused = pytest.raises(ValueError, match=rf"run: got a second writer; .* process {os.getpid()} ")
    with only_writer(folder), refused, only_writer(folder):
        pass
    with only_writer(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(ValueError, match=r"folder of the run: got .*file.run; allowed are folders that can be")
    with refused, only_writer(tmp_path / "file" / "run"):
        pass


# (the module alone: importing the package takes seconds)
HOLDER = """
import runpy, sys, time
from pathlib import Path
only_writer = runpy.run_path(sys.argv[1])["only_writer"]
with only_writer(Path(sys.argv[2])):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_killed_process_leaves_no_lock_behind(tmp_path, end):
    call = [sys.executable, "-c", HOLDER, lock.__file__, str(tmp_path)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "holds\n"
            refused = pytest.raises(ValueError, match=f"and process {holder.pid} writes this run now")
            with refused, only_writer(tmp_path):
                pass
        finally:
            getattr(holder, end)()
        holder.wait(30)
        with only_writer(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
