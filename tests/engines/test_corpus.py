"""A corpus: parts, resuming, and Ray with two workers equal to one process, byte for byte."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.cli import main
from distill.engines.corpus import Part, count_rows, parts_of, rows_of, run_corpus
from distill.mini import FOLDER

TEXT = "the keeper of the light at Cape Ferrol wrote about storms in 1902 and sold 43 loaves to Harriet Stone"


def write_corpus(folder, rows, files=3):
    chance = random.Random(0)
    folder.mkdir()
    made = [{"id": i, "text": " ".join(chance.choices(TEXT.split(), k=30)) + "."} for i in range(rows)]
    for file in range(files):
        some = made[file * rows // files : (file + 1) * rows // files]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def doubled(times):
    return lambda row: row | {"text": row["text"] * times}


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 9))
def test_parts_are_all_rows_in_order(counts, size):
    parts = parts_of([(str(i), count) for i, count in enumerate(counts)], size)
    rows = [(name, row) for part in parts for name, start, stop in part.files for row in range(start, stop)]
    assert rows == [(str(i), row) for i, count in enumerate(counts) for row in range(count)]
    lengths = [sum(stop - start for _, start, stop in part.files) for part in parts]
    assert all(length == size for length in lengths[:-1]) and all(0 < length <= size for length in lengths)
    assert [part.number for part in parts] == list(range(len(parts)))


def test_a_run_continues_and_the_result_is_the_same(tmp_path):
    made = write_corpus(tmp_path / "in", 50)
    assert run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 2}, rows=7, progress=False) == 50
    whole = contents(tmp_path / "out")
    rows = [json.loads(line) for name in whole if name.endswith(".jsonl") for line in whole[name].splitlines()]
    assert rows == [row | {"text": row["text"] * 2} for row in made]
    (tmp_path / "out" / "part-000003.jsonl").unlink()
    assert run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 2}, rows=7, progress=False) == 7
    assert contents(tmp_path / "out") == whole
    assert run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 2}, rows=7, progress=False) == 0


def test_what_is_refused(tmp_path):
    write_corpus(tmp_path / "in", 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"corpus: got .*; allowed are folders of"):
        run_corpus(tmp_path / "empty", tmp_path / "out", doubled, {"times": 2})
    run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 2}, progress=False)
    with pytest.raises(ValueError, match=r"output: got .*made with other settings"):
        run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 3})
    with pytest.raises(ValueError, match=r"output: got .*holds other files"):
        run_corpus(tmp_path / "in", tmp_path / "in", doubled, {"times": 3})
    (tmp_path / "in" / "9.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="no JSON object"):
        list(rows_of(Part(0, ((str(tmp_path / "in" / "9.jsonl"), 0, 1),))))
    assert main(["corpus", str(tmp_path / "in"), "-o", str(tmp_path / "x"), "--rate", "0.5", "--column", "body"]) == 2


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in").mkdir()
    rows = [{"id": i, "text": f"a text of number {i}"} for i in range(11)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    assert count_rows(tmp_path / "in" / "a.parquet") == 11
    run_corpus(tmp_path / "in", tmp_path / "out", doubled, {"times": 2}, rows=4, progress=False)
    found = [
        row for path in sorted((tmp_path / "out").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()
    ]
    assert found == [row | {"text": row["text"] * 2} for row in rows]


def command(*words):
    return [sys.executable, "-m", "distill.cli", *map(str, words)]


def prune(source, target, *more):
    return command("corpus", source, "-o", target, "--rate", "0.5", "--scorer", "baseline", *more)


@pytest.fixture
def ray_environment():
    """The environment of a process that starts Ray, whose folder must have a short name (it holds sockets)."""
    pytest.importorskip("ray", reason="Ray is not installed here; `make vllm` installs it and runs this test")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield os.environ | {"RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}


def test_two_thousand_texts_on_two_workers(tmp_path, ray_environment):
    write_corpus(tmp_path / "in", 2000)
    assert main(prune(tmp_path / "in", tmp_path / "one")[3:]) == 0
    words = prune(tmp_path / "in", tmp_path / "two", "--workers", 2)
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=ray_environment)
        until = time.monotonic() + 600
        while len(list((tmp_path / "two").glob("part-*.jsonl"))) < 3:
            assert killed.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=ray_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # workers may have ended a part after the command was killed
    left = int(re.search(r"(\d+) rows done", done.stdout)[1])
    assert left % 100 == 0 and 0 < left <= 1700
    for path in (tmp_path / "two").glob("*.writing"):
        path.unlink()  # of the part that was being written
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_eval_on_two_workers(tmp_path, ray_environment):
    words = ["eval", "needle", "--model", FOLDER / "llama", "--cpu", "--dtype", "float32", "--needles", 1]
    words += ["--data-path", FOLDER / "story.txt", "--s_len", 300, "--e_len", 300, "--n-lengths", 1, "--n-depths", 6]
    assert main([*map(str, words), "--output", str(tmp_path / "one")]) == 0
    more = ["--output", tmp_path / "two", "--workers", 2]
    done = subprocess.run(command(*words, *more), capture_output=True, text=True, timeout=600, env=ray_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # all were answered by the workers, whose bars are not shown; the command itself had none left
    assert " 0sample" in done.stderr and "/6 " not in done.stderr
    found = []
    for name in ("one", "two"):
        (file,) = (tmp_path / name / "needle").glob("*/random.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found.append([(line["id"], line["prediction"], line["prompt_sha256"]) for line in lines if "id" in line])
    assert found[0] == found[1] and len(found[0]) == 6
    assert main([*map(str, words), "--engine", "vllm", "--workers", "2"]) == 2
