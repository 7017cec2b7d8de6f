"""Runs: killed and continued is uninterrupted, one folder belongs to one run and one process, no file is ever torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from distill.training import Panel, RunFolder, Training, plot, write_whole

OPTIONS = {"seed": 0, "rate": 0.01, "layers": [1, 2], "init": None}


class Regression(Training):
    """A small network that learns random numbers: everything a real run has, in milliseconds."""

    def __init__(self, folder: RunFolder, total: int, pause: float = 0.0) -> None:
        super().__init__(folder, total, save_minutes=0.0)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.rng, self.pause = random.Random(0), pause
        self.resume()

    def step(self):
        time.sleep(self.pause)
        given = torch.tensor([[self.rng.random() for _ in range(4)] for _ in range(3)])
        loss = (self.model(given) - given.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 3
        self.steps += 1
        return {"loss": loss.item()}

    def look(self):
        return {"norm": float(self.model[0].weight.detach().norm())}

    def state(self):
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": self.rng.getstate(),
            "dropout": torch.get_rng_state(),
        }  # fmt: skip

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["dropout"])


def without_seconds(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in folder.rows()]


KILLED = """
import sys
sys.path[:0] = {path!r}
from {module} import OPTIONS, Regression, RunFolder
Regression(RunFolder({out!r}, OPTIONS), 360, pause=0.01).train()
"""


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    whole = Regression(RunFolder(tmp_path / "whole", OPTIONS), 360)
    whole.train()
    out = tmp_path / "killed"
    code = KILLED.format(path=[os.path.dirname(__file__), *sys.path], module="test_training", out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        with pytest.raises(ValueError, match=r"out: got .*killed; another process is writing this run"):
            RunFolder(out, OPTIONS)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open(out / "log.jsonl", "a") as handle:
        handle.write('{"step": 119, "loss"')  # a line that the kill cut off
    again = Regression(RunFolder(out, OPTIONS), 360)
    assert 0 < again.steps < 120
    again.train()
    assert again.steps == whole.steps == 120 and again.done == 360
    for mine, wanted in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    losses = [[row for row in without_seconds(run.folder) if "loss" in row] for run in (again, whole)]
    assert losses[0] == losses[1] and [row["step"] for row in losses[0]] == [20, 40, 60, 80, 100, 120]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: got 1; .* holds a run with 0"),
        ({"layers": [1]}, r"layers: got \[1\]; .* holds a run with \[1, 2\]"),
        ({"init": "x"}, "init: got 'x'; .* holds a run with None"),
        ({"new": None}, "new: got None; .* holds a run with None"),
    ],
)
def test_another_option_is_refused(tmp_path, change, message):
    RunFolder(tmp_path, OPTIONS).close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path, {**OPTIONS, **change})
    with pytest.raises(ValueError, match=r"seed: got None; .* holds a run with 0"):
        RunFolder(tmp_path, {name: value for name, value in OPTIONS.items() if name != "seed"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    RunFolder(tmp_path, {**OPTIONS, "layers": (1, 2)}).close()  # JSON knows no tuples


def test_a_file_is_whole_or_what_it_was(tmp_path):
    file = tmp_path / "a.txt"
    write_whole(file, lambda new: new.write_text("first"))

    def torn(new):
        new.write_text("sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, torn)
    assert file.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_a_checkpoint_is_never_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    folder = RunFolder(tmp_path / "run", OPTIONS)
    file = tmp_path / "run" / "checkpoint.pt"
    torch.save({"model": Evil()}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: got .*; allowed are checkpoints"):
        folder.load()
    assert not (tmp_path / "executed").exists()
    for content in (b"", b"PK\x03\x04 torn", b"no checkpoint at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: got .*; allowed are checkpoints"):
            folder.load()
    torch.save({"model": {}}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: got a checkpoint of another kind"):
        Regression(folder, 6)
    torch.save([1], file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: got list; allowed"):
        folder.load()


@pytest.mark.parametrize("line", [b"{", b'"text"', b"\xff\xfe", b"[" * 100_000, b"9" * 5_000], ids=range(5))
def test_a_corrupt_log_line_is_named(tmp_path, line):
    folder = RunFolder(tmp_path, OPTIONS)
    folder.log({"step": 1})
    with open(tmp_path / "log.jsonl", "ab") as handle:
        handle.write(line + b"\n")
    with pytest.raises(ValueError, match=r"log\.jsonl:2: got .*; allowed are"):
        folder.rows()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_corrupt_options_are_named(tmp_path, content):
    (tmp_path / "options.json").write_text(content)
    with pytest.raises(ValueError, match=r"options\.json: got .*; allowed are"):
        RunFolder(tmp_path, OPTIONS)


def test_a_log_without_a_checkpoint_begins_again(tmp_path):
    folder = RunFolder(tmp_path, OPTIONS)
    folder.log({"step": 1, "samples": 3})
    run = Regression(folder, 6)
    assert folder.rows() == []
    run.train()
    assert [row["step"] for row in folder.rows()] == [2] and json.loads((tmp_path / "options.json").read_text())


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": i, "samples": 3 * i, "loss": 1 / (i + 1)} for i in range(9)] + [{"samples": 27, "norm": 2.0}]
    plot(tmp_path / "a.png", rows, "samples", [Panel("losses", ("loss",), (0, 1)), Panel("norm", ("norm", "none"))])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    plot(tmp_path / "b.png", [], "samples", [Panel("nothing yet", ())])
    assert (tmp_path / "b.png").exists()
