"""What is kept because of its kind, and what goes whole: instructions, turns, tables, logs, JSON."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.pruning import Distill
from distill.pruning.lines import log_lines
from distill.pruning.members import removable
from distill.pruning.segments import split_segments
from distill.pruning.units import join, merge, split_units

RATES = (0.8, 0.5, 0.3, 0.2)
CODE = "```python\ndef area(w, h):\n    return w * h\n\nprint(area(2, 3))\n```\n"
ASKED = [
    "Find the bug in the function below and explain it in two sentences.",
    "Please review this code. Do not change its interface.",
    "Can you tell me why this is so slow?",
    "You are a careful engineer. Rewrite the code for readability and add type hints.",
    "请解释下面的代码，不要改动它。",
    "次のコードを説明してください。",
    "다음 코드를 설명해 주세요.",
]


@pytest.fixture(scope="module")
def quick() -> Distill:
    return Distill(scorer="baseline", ner="capitals")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("last", [False, True])
def test_what_is_asked_for_survives_at_every_rate(quick, long_prose, asked, rate, last):
    notes = long_prose(120)
    text = f"# Review\n\n{CODE}\n{notes}\n\n{asked}\n" if last else f"# Review\n\n{asked}\n\n{CODE}\n{notes}\n"
    result = quick.compress(text, rate)
    assert asked in result.text and "# Review" in result.text and CODE.strip() in result.text
    result.check()


def test_the_user_may_say_otherwise(quick, long_prose):
    text = f"{ASKED[0]}\n\n{CODE}\n{long_prose(100)}"
    assert ASKED[0] not in quick.compress(text, 0.2, segments=False).text
    assert CODE.strip() not in quick.compress(text, 0.2, segments={"code": 0.3}).text


def test_an_imperative_inside_a_document_is_part_of_it(quick, long_prose):
    inside = "Call the office before noon and tell them that the report is late this time."
    text = f"{long_prose(80, 1)}\n\n{inside}\n\n{long_prose(80, 2)}\n\n{long_prose(40, 3)}"
    kinds = {s.kind for s in split_segments(text)}
    assert "instruction" not in kinds


def test_the_last_turn_of_a_written_conversation(quick, long_prose):
    last = "I would rather know how long the tunnel is, and who pays."
    text = (
        f"System: Answer in one sentence.\nUser: {long_prose(60, 1)}\nAssistant: {long_prose(60, 2)}\nUser: {last}\n"
        "Assistant:"
    )
    result = quick.compress(text, 0.3)
    assert f"User: {last}" in result.text and "System: Answer in one sentence." in result.text


def test_a_table_stays_a_table(quick, long_prose):
    rows = "".join(f"| the {i}th way along the railway | a long one |\n" for i in range(8))
    result = quick.compress(f"{long_prose(60)}\n\n| way | length |\n| --- | --- |\n{rows}\n{long_prose(60)}", 0.4)
    kept = [line for line in result.text.splitlines() if line.lstrip().startswith("|")]
    assert kept[:2] == ["| way | length |", "| --- | --- |"] and all(line.count("|") == 3 for line in kept)


def log(lines: int, seed: int = 0) -> str:
    """A log with repeated lines, some errors, and a stack trace."""
    draw = random.Random(seed)
    out = []
    for i in range(lines):
        head = f"2024-05-17 10:{i // 60 % 60:02d}:{i % 60:02d}.{draw.randrange(1000):03d}"
        kind = draw.random()
        if kind < 0.01:
            out.append(f"{head} ERROR worker-{draw.randrange(9)} could not read block {draw.randrange(10**6)}")
        elif kind < 0.012:
            out += [
                f"{head} ERROR request {draw.randrange(10**6)} failed",
                "Traceback (most recent call last):",
                f'  File "app.py", line {draw.randrange(900)}, in serve',
                "    raise ValueError(path)",
                f"ValueError: /srv/{draw.randrange(10**6)}",
            ]
        elif kind < 0.05:
            out.append(f"{head} WARN queue has {draw.randrange(500)} entries")
        else:
            what = draw.choice(
                ("GET /api/items/{} took {} ms", "cache hit for key {} in {} us", "sent {} of {} bytes")
            )
            out.append(f"{head} INFO " + what.format(draw.randrange(10**5), draw.randrange(10**4)))
    return "\n".join(out) + "\n"


def test_a_log_reaches_its_rate_with_every_error(quick):
    text = log(2600)
    result = quick.compress(text, 0.3)
    result.check()
    assert len(text) > 150_000 and result.tokens <= result.budget and not result.over_budget
    lines = set(result.text.splitlines())
    errors = [line for line in text.splitlines() if " ERROR " in line or "Traceback" in line or "ValueError" in line]
    assert len(errors) > 25 and all(line in lines for line in errors)
    assert lines <= set(text.splitlines())  # whole lines
    assert result.tokens > 0.95 * result.budget


def test_folds_restore_what_was_removed(quick):
    text = log(400, 1)
    result = quick.compress(text, 0.3)
    original = text.splitlines()
    assert result.folds
    described = {}
    for fold in result.folds:
        described |= fold.restore()
        assert set(fold.kept) < set(fold.lines) and "<*>" in fold.template
    assert all(original[number - 1] == line for number, line in described.items())
    counted = result.with_counts()
    most = max(result.folds, key=lambda fold: fold.count)
    assert f" (x {most.count})\n" in counted
    assert re.sub(r" \(x \d+\)$", "", counted, flags=re.M) == result.text
    json.dumps(result.to_dict())


def test_a_few_lines_of_log_are_ordinary_text(quick):
    text = "2024-05-17 10:45:01 INFO the server has started and it listens to everyone\n" * 3
    result = quick.compress(text, 0.9)
    assert not log_lines(text, split_segments(text)) and result.text.count("\n") == 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=6), inner, max_size=20),
    max_leaves=60,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=12) | st.dictionaries(st.text(max_size=6), VALUES, min_size=1), st.data())
def test_whatever_goes_json_stays_valid(value, data):
    text = json.dumps(value, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False)
    spans = removable(text, 0, len(text))
    assert all(a < b for a, b in spans) and all(b[1] <= c[0] for b, c in itertools.pairwise(spans))
    gone = {i for i in range(len(spans)) if data.draw(st.booleans())}
    kept, at = [], 0
    for i, (a, b) in enumerate(spans):
        if i in gone:
            kept.append((at, a))
            at = b
    left = json.loads(join(text, [*kept, (at, len(text))]))
    assert type(left) is type(value)
    for rate in (0.3, 0.6):
        result = Distill(scorer="baseline", ner=None).compress(text, rate, keep_tags=False)
        json.loads(result.text)
        result.check()


def test_long_json_is_shortened_by_elements(quick):
    rows = [
        {"id": i, "state": "failed" if i in (40, 77) else "ok", "note": f"row {i} of the table"} for i in range(100)
    ]
    for text in (json.dumps(rows), json.dumps({"page": 1, "rows": rows}, indent=2)):
        result = quick.compress(text, 0.3)
        found = json.loads(result.text)
        found = found if isinstance(found, list) else found["rows"]
        assert result.tokens <= result.budget and 20 < len(found) < 40
        assert {row["id"] for row in found} >= {0, 40, 77} and all(row in rows for row in found)
    lines = "\n".join(map(json.dumps, rows))
    kept = [json.loads(line) for line in quick.compress(lines, 0.3).text.splitlines() if line.strip()]
    assert {40, 77} <= {row["id"] for row in kept} and all(row in rows for row in kept)


def test_json_in_a_text_is_kept_unless_a_share_is_given(quick, long_prose):
    data = json.dumps([{"id": i} for i in range(30)])
    text = f"{long_prose(200)}\n\n{data}\n\n{long_prose(100)}"
    assert data in quick.compress(text, 0.5).text
    result = quick.compress(text, 0.5, segments={"json": 0.4})
    found = json.loads(next(line for line in result.text.splitlines() if line.startswith("[{")))
    assert 5 < len(found) < 20


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.data())
def test_merged_units_are_the_stretches(text, data):
    units = split_units(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if text[a:b].strip()]
    made, of = merge(units, spans)
    assert all(a < b for a, b in zip(made.starts, made.ends, strict=True))
    assert all(b <= c for b, c in zip(made.ends[:-1], made.starts[1:], strict=True))
    covered = {i for a, b in zip(made.starts, made.ends, strict=True) for i in range(a, b)}
    assert {i for a, b in zip(units.starts, units.ends, strict=True) for i in range(a, b)} <= covered
    assert sorted(set(of.tolist()) - {-1}) == [i for i, _ in enumerate(spans)]


def test_the_command_takes_shares_anchors_and_counts(tmp_path, capsys):
    from distill.cli import main

    path = tmp_path / "server.log"
    path.write_text(log(300))
    options = ["prune", str(path), "--scorer", "baseline", "--rate", "0.3", "--ner", "capitals"]
    assert main([*options, "--counts", "--no-report"]) == 0
    assert re.search(r" \(x \d+\)\n", capsys.readouterr().out)
    assert main([*options, "--anchors", "versions,money", "--report-only"]) == 0
    assert "repeated lines" in capsys.readouterr().out
    assert main([*options, "--segments", "log=0.2", "--report-only"]) == 0
    for bad, word in (
        (["--anchors", "x"], "anchors"),
        (["--segments", "log=x"], "--segments"),
        (["--segments", "x=1"], "x"),
    ):
        assert main([*options, *bad]) == 2
        assert word in capsys.readouterr().err
