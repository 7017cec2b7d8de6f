"""A fixed number of the random cases; `make fuzz SECONDS=1800` runs more, with other seeds."""

from __future__ import annotations

import pytest

from .__main__ import main, runs

CASES = {"models": 40, "results": 150, "pruning": 100, "codec": 24}


@pytest.mark.parametrize("name", runs())
def test_some_cases(name):
    for seed in range(CASES[name]):
        runs()[name](seed)


def test_the_command_counts_and_says_how_to_run_a_fault_again(capsys, monkeypatch):
    monkeypatch.setattr("tests.fuzz.results.run", lambda seed: 1 / (seed - 7))
    assert main(["--only", "results", "--seed", "5", "--cases", "4"]) == 1
    shown = capsys.readouterr().out
    assert "4 cases, 1 faults (seeds from 5 on" in shown and "ZeroDivisionError" in shown
    assert "FAULT: python -m tests.fuzz --only results --seed 7 --cases 1" in shown
    assert main(["--only", "results", "--seed", "8", "--cases", "1"]) == 0
