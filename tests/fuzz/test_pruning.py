"""A fixed number of random cases of pruning; `python tests/fuzz/pruning.py N` tries more."""

from __future__ import annotations

import pytest

from . import pruning

CASES, PARTS = 600, 4


@pytest.mark.parametrize("part", range(PARTS))
def test_random_cases(part):
    for seed in range(part, CASES, PARTS):
        try:
            pruning.run(seed)
        except BaseException as error:
            raise AssertionError(f"tests/fuzz/pruning.py: run({seed}) fails: {error!r}") from error


def test_the_fuzzer_reaches_what_it_should(monkeypatch):
    """Good and bad calls, and results over their budget: a fuzzer that only meets errors finds nothing."""
    seen = {"results": 0, "over": 0, "refused": 0}
    check = pruning.check

    def counted(result, *rest):
        seen["results"] += 1
        seen["over"] += result.over_budget
        check(result, *rest)

    monkeypatch.setattr(pruning, "check", counted)
    before = 0
    for seed in range(1000, 1200):
        pruning.run(seed)
        seen["refused"] += seen["results"] == before
        before = seen["results"]
    assert seen["results"] > 100 and seen["over"] > 10 and 10 < seen["refused"] < 150, seen
