"""Prediction on a random tiny model: protocols, presets, costs, resuming, the command line, two processes."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

import distill
from distill.evaluation import cli, methods, scoring
from distill.evaluation.catalogue import benchmark
from distill.evaluation.cli import add_arguments, main
from distill.evaluation.generation import Generator
from distill.evaluation.predict import Plan, describe, predict
from distill.evaluation.prompting import Encoder
from distill.evaluation.runs import folder_name, load_tokenizer, sweep
from distill.evaluation.store import read_results

ROOT = Path(__file__).resolve().parents[2]
DISTILL = {"selection_layers": [0], "n_topks": [16], "cache_truncation_end": 1}
QA = "Mary went to the kitchen. " * 12


@pytest.fixture(scope="module")
def model(tiny):
    return distill.load(tiny, policy=None)


@pytest.fixture
def facts_folder(tmp_path):
    """BABILong-like data of six samples."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_facts(folder)
    return folder


def write_facts(folder):
    rows = [{"input": QA + f"Day {i}.", "question": "Where is Mary? ", "target": "kitchen"} for i in range(6)]
    for task in ("qa1", "qa4"):
        (folder / f"1k_{task}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def command(tiny, data, output, *flags, bench="babilong", tasks=("qa1_1k",)):
    return [
        bench,
        "--model",
        str(tiny),
        "--cpu",
        "--data-path",
        str(data),
        "--output",
        str(output),
        "--tasks",
        *tasks,
        *flags,
    ]


def without_times(path):
    """The bytes of a result file, times left out."""
    return re.sub(rb'"(ttft_)?seconds": [-+.\de]+', b"", path.read_bytes())


def this_package():
    """Environment in which another process imports the package under test, wherever else one is installed."""
    path = os.pathsep.join(filter(None, (str(Path(distill.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def only(folder, name="*.jsonl"):
    found = list(folder.rglob(name))
    assert len(found) == 1, found
    return found[0]


def test_methods_are_asked_from_the_registry():
    assert methods.editions() == ["default", *distill.policies()]
    made = methods.make("promptdistill", DISTILL)
    assert made.policy == distill.policy("promptdistill", **DISTILL)
    assert made.label == "promptdistill(selection_layers=[0], n_topks=[16], cache_truncation_end=1)"
    swept = methods.parse("promptdistill:selection_layers=[0,1],scoring=softmax", 0.25)
    assert swept.policy.n_topks == (0.25, 0.25) and swept.policy.scoring == "softmax"
    assert swept.label == 'promptdistill(selection_layers=[0,1], scoring="softmax")'
    both = sweep(["default", "promptdistill:selection_layers=[0]"], [8, 16])
    assert [(m.edition, m.budget) for m in both] == [("default", None), ("promptdistill", 8), ("promptdistill", 16)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: methods.make("nonsense", {}), "method: got .*; allowed are default, "),
        (lambda: methods.make("default", {"n_topks": [1]}), "n_topks: got a value for default"),
        (lambda: methods.make("promptdistill", {"budget": 3}), "budget: got an argument that promptdistill"),
        (lambda: methods.parse("promptdistill:selection_layers"), "allowed is name=value"),
        (lambda: methods.parse("promptdistill", 16), "selection_layers: got nothing"),
        (lambda: methods.parse_budget("1.5"), "budget: got"),
        (lambda: methods.parse_budget("0"), "budget: got"),
        (lambda: Plan(benchmark("kv"), limit=0), "limit: got 0; allowed are integers >= 1"),
        (lambda: Plan(benchmark("kv"), limit=10**400), r"limit: got 10+\.\.\. .*; allowed are integers from 1 to"),
        (
            lambda: Plan(benchmark("kv"), limit=10**5000),
            "limit: got a value of type int that is too long to show; allowed are",
        ),
        (lambda: Plan(benchmark("kv"), limit=True), "limit: got True; allowed are integers >= 1"),
        (lambda: Plan(benchmark("kv"), max_length=1), "max_length: got 1; allowed are integers >= 2"),
        (lambda: Plan(benchmark("kv"), preset="mine"), "preset: got 'mine'; allowed are"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_chain_runs_and_every_result_file_carries_its_facts(tiny, facts_folder, tmp_path, capsys):
    output = tmp_path / "out"
    flags = ["--edition", "promptdistill", "--selection-layers", "0", "--n-topks", "16", "--cache-truncation-end", "1"]
    assert main(command(tiny, facts_folder, output, *flags, "--no-use-pooling", "--limit", "3")) == 0
    shown = capsys.readouterr().out
    assert "qa1_1k" in shown and "16.67" in shown
    results = read_results(only(output))
    header = results.header
    assert header["method"] == distill.policy("promptdistill", **DISTILL, use_pooling=False).to_dict()
    assert header["model"] == str(tiny) and header["revision"] is None and header["template"] is True
    assert header["truncation"] == {"rule": "longbench", "limit": None}
    assert header["environment"]["versions"]["transformers"]
    assert "commit" in header["environment"] and header["max_new_tokens"] == 20
    assert header["data"] == {"path": str(facts_folder)}
    assert len({record["prompt_sha256"] for record in results.records.values()}) == 3
    assert results.summary["n"] == 3
    assert {"seconds", "ttft_seconds", "peak_cache_bytes"} <= set(results.summary)
    scores = json.loads(only(output, "scores.json").read_text(encoding="utf-8"))
    task = scores["tasks"]["qa1_1k"]
    assert task["n"] == 3 and task["chance"] == pytest.approx(100 / 6) and len(task["interval"]) == 2
    assert task["header"] == header


def test_an_interrupted_run_resumes_to_the_same_file(tiny, facts_folder, tmp_path, monkeypatch):
    assert main(command(tiny, facts_folder, tmp_path / "whole")) == 0
    calls = []

    def dies(self, *args, original=Generator.__call__, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            main(command(tiny, facts_folder, tmp_path / "killed"))
    path = only(tmp_path / "killed")
    assert len(read_results(path).records) == 3
    with path.open("ab") as file:
        file.write(b'{"id": "3", "predic')
    assert main(command(tiny, facts_folder, tmp_path / "killed")) == 0
    assert without_times(path) == without_times(only(tmp_path / "whole"))
    before = path.read_bytes()
    assert main(command(tiny, facts_folder, tmp_path / "killed")) == 0
    assert path.read_bytes() == before


def test_scoring_needs_no_model_and_no_data(tiny, facts_folder, tmp_path, monkeypatch, capsys):
    main(command(tiny, facts_folder, tmp_path / "out", "--limit", "2", "--no-score"))
    path = only(tmp_path / "out")
    assert not list(tmp_path.rglob("scores.json"))
    monkeypatch.setattr(distill, "load", None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    capsys.readouterr()
    assert main(["score", str(path.parent)]) == 0
    first = capsys.readouterr().out
    assert main(["score", str(path.parent)]) == 0
    assert capsys.readouterr().out == first


def test_scores_come_from_the_predictions_alone(tiny, facts_folder, tmp_path):
    main(command(tiny, facts_folder, tmp_path / "out", "--limit", "4", "--no-score"))
    path = only(tmp_path / "out")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, answer in zip(rows[1:5], ("in the kitchen.", "kitchen garden", "garden", "Kitchen"), strict=True):
        row["prediction"] = answer
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = scoring.score_folder(path.parent)["tasks"]["qa1_1k"]
    assert list(scores["samples"].values()) == [1, 0, 0, 1] and scores["score"] == 50


def test_predictions_that_crash_the_official_scorer_are_counted(tmp_path):
    header = {"benchmark": "infbench", "task": "math_find", "preset": "official", "protocol": "query-aware"}
    header |= {"edition": "default", "label": "default", "budget": None, "method": None, "window": None, "options": {}}
    cost = {"seconds": 1.0, "ttft_seconds": 1.0, "cache_bytes": 1, "peak_cache_bytes": 1}
    shared = {"reference": {"label": 88}, "group": {}, "cost": cost, "truncated": False}
    shared |= {"prompt_tokens": 9, "new_tokens": 2, "prompt_sha256": ""}
    rows = [{"header": header}] + [{"id": str(i), "prediction": p} | shared for i, p in enumerate(("88", "88.7"))]
    (tmp_path / "math_find.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", str(tmp_path), "--set", "rules=2024-06"]) == 0
    task = json.loads((tmp_path / "scores.json").read_text())["tasks"]["math_find"]
    assert task["unscorable"] == 1 and task["score"] == 50 and task["complete"] is False
    for wrong in ("ruls=2024-06", "rules=2023", "rules"):
        assert main(["score", str(tmp_path), "--set", wrong]) == 2


def test_folders_of_runs_differ_and_are_short():
    long = "promptdistill:selection_layers=[0],scoring=softmax,pooling=max,pooling_kernel=31,recent=2,sinks=1"
    chosen = sweep([f"{long},observation_window={n}" for n in (2, 3)], [8, 16])
    names = {folder_name("a/b/Model-1B", method, "query-aware", "official") for method in chosen}
    assert len(names) == 5 and max(map(len, names)) < 200
    assert "Model-1B--default--query-aware--official" in names


def test_results_from_the_hub_carry_the_pinned_revision(model, tokenizer):
    plan, task = Plan(benchmark("longbench")), benchmark("longbench").tasks({})["trec"]
    header = describe(plan, methods.make("default", {}), task, model, tokenizer, False)
    assert header["data"] == {"repo": "THUDM/LongBench", "revision": "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"}
    moved = describe(replace(plan, revision="main"), methods.make("default", {}), task, model, tokenizer, False)
    assert moved["data"]["revision"] == "main"


def test_prompts_beyond_the_window_are_told(tiny, facts_folder, tmp_path, capsys):
    row = {"input": QA * 20, "question": "Where is Mary? ", "target": "kitchen"}
    (facts_folder / "1k_qa1.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert main(command(tiny, facts_folder, tmp_path)) == 0
    assert "1 prompts are longer than the model's 4096 positions" in capsys.readouterr().out
    assert main(command(tiny, facts_folder, tmp_path / "cut", "--max-length", "3000")) == 0
    assert "positions" not in capsys.readouterr().out


def test_longbench2_chain_of_thought_asks_twice(tiny, tmp_path):
    row = {f"choice_{letter}": letter for letter in "ABCD"} | {"_id": "q", "difficulty": "easy", "length": "short"}
    row |= {"answer": "B", "question": "Q?", "context": "text " * 20}
    (tmp_path / "data.jsonl").write_text(json.dumps(row), encoding="utf-8")
    flags = ("--variant", "cot", "--max-length", "600")
    assert main(command(tiny, tmp_path, tmp_path / "out", *flags, bench="longbench2", tasks=("test",))) == 0
    found = read_results(only(tmp_path / "out", "test.jsonl")).records["q"]
    assert found["reasoning"] and found["prediction"] != found["reasoning"]
    assert found["new_tokens"] > len(Encoder(load_tokenizer(str(tiny))).plain(found["prediction"])) - 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edition", "nonsense"], "allowed are default"),
        (["--data-path", "nowhere"], "--data-path: got nowhere; allowed are"),
        (["--tasks", "qa99_1k"], "tasks of babilong: got 'qa99_1k'; allowed are 'qa1_0k', "),
        (["--model-type", "phi3"], "--model-type: got 'phi3'; allowed is 'llama'"),
        (["--limit", "0"], "limit: got 0; allowed are integers >= 1"),
        (["--attention", "nonsense"], "with dtype=auto, attn_implementation=nonsense; allowed are"),
        (["--dtype", "int3"], "--dtype: got 'int3'; allowed are 'auto', "),
        (["--tokenizer", "nowhere"], "--tokenizer: got 'nowhere'; allowed are"),
        (["--model", "nowhere", "--tokenizer", "TINY"], "--model: got 'nowhere'; allowed are"),
        (["--edition", "promptdistill", "--selection-layers", "2", "--n-topks", "4"], "selection_layers"),
    ],
)
def test_bad_input_is_told_and_status_is_2(tiny, facts_folder, tmp_path, capsys, flags, message):
    flags = [str(tiny) if flag == "TINY" else flag for flag in flags]
    assert main(command(tiny, facts_folder, tmp_path / "out", *flags)) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_tokenizer(tiny, facts_folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny / name).read_bytes())
    assert main(command(bare, facts_folder, tmp_path / "out")) == 2
    assert f"--tokenizer: got '{bare}'; allowed are" in capsys.readouterr().err
    assert main(command(bare, facts_folder, tmp_path / "out", "--tokenizer", str(tiny), "--limit", "1")) == 0


def test_a_corrupt_line_stops_the_run_and_results_are_kept(tiny, facts_folder, tmp_path, capsys):
    output = tmp_path / "out"
    main(command(tiny, facts_folder, output, "--limit", "3"))
    path = only(output)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[2] = lines[2][:40] + "\n"
    path.write_text("".join(lines), encoding="utf-8")
    before = path.read_bytes()
    for arguments in (command(tiny, facts_folder, output), ["score", str(path.parent)]):
        assert main(arguments) == 2
        assert f"{path}, line 3: got corrupt JSON" in capsys.readouterr().err
        assert path.read_bytes() == before
    assert main(command(tiny, facts_folder, output, "--restart", "--limit", "1")) == 0


@pytest.fixture(scope="module")
def once(tiny, tmp_path_factory):
    """A finished and scored run of three samples, with the kept tokens of the first: its data, and its folder."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "data").mkdir()
    write_facts(folder / "data")
    assert main(command(tiny, folder / "data", folder / "out", "--limit", "3", "--drilldown", "1")) == 0
    return folder / "data", folder / "out"


@pytest.fixture
def finished(once, tiny, tmp_path):
    """The result file of a copy of that run, and the command that continues it."""
    data, output = once
    shutil.copytree(output, tmp_path / "out")
    return only(tmp_path / "out"), command(tiny, data, tmp_path / "out", "--limit", "3", "--drilldown", "1")


RECORD = [
    "id",
    "prediction",
    "reference",
    "group",
    "prompt_tokens",
    "prompt_sha256",
    "new_tokens",
    "truncated",
    "cost",
]


@pytest.mark.parametrize("name", [*RECORD, "reference.target", "reference.question", "cost.ttft_seconds", "tokens"])
def test_a_record_without_a_field_is_named_by_every_reader(finished, tmp_path, capsys, name):
    path, arguments = finished
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    outer, _, key = name.rpartition(".")
    del (rows[1][outer] if outer else rows[1])[key]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = path.read_bytes()
    capsys.readouterr()
    readers = [
        ["score", str(path.parent)],
        ["report", str(path.parent), "--report", str(tmp_path / "r.html")],
        arguments,
    ]
    # a report shows the reference as it is, and a run that continues scores afterwards
    for reader in readers[:1] if outer == "reference" else readers:
        assert main(reader) == 2
        assert f"{path}, line 2: got " in capsys.readouterr().err
        assert path.read_bytes() == before


HEADER = ["benchmark", "task", "preset", "protocol", "edition", "label", "budget", "method", "window", "options"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in HEADER
        for value in ("missing", "nonsense", True, [], float("nan"))
        # any text will do for these two
        if not (value == "nonsense" and name in ("edition", "label"))
    ],
)
def test_a_header_that_is_not_one_is_named(finished, capsys, name, value):
    path, arguments = finished
    header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = json.loads(header)
    if value == "missing":
        del changed["header"][name]
    else:
        changed["header"][name] = value
    path.write_text(json.dumps(changed) + "\n" + "".join(rows), encoding="utf-8")
    before = path.read_bytes()
    capsys.readouterr()
    for reader in (["score", str(path.parent)], *([arguments] if value in ("missing", "nonsense") else [])):
        assert main(reader) == 2
        assert f"{path}, line 1" in capsys.readouterr().err
        assert path.read_bytes() == before


def test_a_corrupt_file_of_scores_is_named(finished, tmp_path, capsys):
    path = finished[0].with_name("scores.json")
    scores = json.loads(path.read_text(encoding="utf-8"))
    for content in (b"", b"{}", b"\xff", b"[1]", json.dumps(scores | {"tasks": {}}).encode(), path.read_bytes()[:-9]):
        path.write_bytes(content)
        assert main(["report", str(path.parent), "--report", str(tmp_path / "r.html")]) == 2
        assert f"{path}: got " in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_copy_of_a_result_file_is_not_scored_in_its_place(finished, capsys):
    path, _ = finished
    path.with_name("copy.jsonl").write_bytes(path.read_bytes())
    assert main(["score", str(path.parent)]) == 2
    assert "copy.jsonl, line 1, task: got 'qa1_1k'; allowed are 'copy'" in capsys.readouterr().err


def test_half_a_surrogate_pair_comes_into_the_report(finished, tmp_path):
    path, _ = finished
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1]["prediction"] = rows[0]["header"]["model"] = rows[0]["header"]["label"] = "\ud83d"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", str(path.parent)]) == 0
    assert main(["report", str(path.parent), "--report", str(tmp_path / "r.html")]) == 0
    assert "\\ud83d" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_of_two_processes_on_one_run_only_one_writes(tiny, facts_folder, tmp_path, capsys):
    """Another process and this one, with one command: this one is refused and writes nothing, and later continues."""
    arguments = command(tiny, facts_folder, tmp_path / "out")
    # the first process waits in its third sample
    slow = (
        "import sys, time\n"
        "from distill.evaluation import cli, generation\n"
        "answer, calls = generation.Generator.__call__, []\n"
        "def waits(self, *args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        print('waits', flush=True)\n"
        "        time.sleep(120)\n"
        "    return answer(self, *args, **kwargs)\n"
        "generation.Generator.__call__ = waits\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    call = [sys.executable, "-c", slow, *arguments]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=this_package()) as first:
        try:
            assert first.stdout.readline() == "waits\n"
            path = only(tmp_path / "out")
            before = {file: file.read_bytes() for file in path.parent.iterdir()}
            assert main(arguments) == 2
            refused = f"{path.parent}: got a second writer; allowed is one at a time, and process {first.pid}"
            assert refused in capsys.readouterr().err
            assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
        finally:
            first.kill()
    assert len(read_results(path).records) == 2
    assert main(arguments) == 0
    assert main(command(tiny, facts_folder, tmp_path / "whole")) == 0
    assert without_times(path) == without_times(only(tmp_path / "whole"))


def test_data_that_cannot_be_had_leaves_no_folder(tiny, tmp_path):
    assert main(command(tiny, tmp_path, tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()


def test_changed_settings_need_another_folder(tiny, facts_folder, tmp_path, capsys):
    main(command(tiny, facts_folder, tmp_path / "out", "--limit", "1"))
    assert main(command(tiny, facts_folder, tmp_path / "out", "--max-length", "500")) == 2
    assert "truncation.limit: None there, 500 now" in capsys.readouterr().err


def test_questions_that_lead_cannot_be_hidden(model, tokenizer, tmp_path):
    plan = Plan(benchmark("infbench"), tasks=("math_find", "passkey"), protocol="query-agnostic", options={})
    with pytest.raises(ValueError, match="--tasks: got math_find; allowed under the query-agnostic protocol are"):
        predict(plan, methods.make("default", {}), model, tokenizer, tmp_path)


def test_chat_needs_a_chat_template(model, tokenizer, tmp_path):
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="--preset: got 'chat'; allowed are"):
        predict(Plan(benchmark("kv"), preset="chat"), methods.make("default", {}), model, bare, tmp_path)


def test_the_known_sample_commands_are_understood(tiny, essays, tmp_path):
    """The commands users know, with a smaller model and length; as script from the repository root and as module."""
    shared = ["--model", str(tiny), "--model-type", "llama", "--edition", "promptdistill", "--tokenizer", str(tiny)]
    shared += [
        "--n-topks",
        "64",
        "--selection-layers",
        "1",
        "--cache-truncation-end",
        "1",
        "--no-use-pooling",
        "--cpu",
    ]
    needle = ["--s_len", "600", "--e_len", "700", "--n-lengths", "2", "--n-depths", "2", "--data-path", str(essays)]
    if (ROOT / "evaluation" / "needle.py").is_file():
        start = [sys.executable, str(ROOT / "evaluation" / "needle.py")]
    else:
        start = [sys.executable, "-m", "distill.evaluation.needle"]
    call = [*start, *needle, *shared, "--output", str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120, env=this_package())
    assert done.returncode == 0, done.stderr
    assert "classic" in done.stdout
    folder = only(tmp_path, "scores.json").parent
    assert (folder / "classic.png").is_file() and len(read_results(folder / "classic.jsonl").records) == 4


@pytest.mark.parametrize("name", ["longbench", "infbench"])
def test_the_other_scripts_explain_themselves(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(cli.__file__).with_name(f"{name}.py")), run_name="__main__")
    assert stop.value.code == 0 and f"distill eval {name}" in capsys.readouterr().out


COMMANDS = [
    "needle --e_len 120000 --model MODEL --model-type llama --edition promptdistill --tokenizer MODEL --n-topks 1024 "
    "--selection-layers 13 --cache-truncation-end 1",
    "longbench --model MODEL --model-type llama --edition promptdistill --tokenizer MODEL --n-topks 1024 "
    "--selection-layers 13 --cache-truncation-end 1",
    "infbench --model MODEL --model-type llama --edition promptdistill --tokenizer MODEL --n-topks 1024 "
    "--selection-layers 13 --cache-truncation-end 1 --no-use-pooling",
    "needle --s_len 1000 --e_len 120000 --model MODEL --edition default",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_known_flags_mean_what_they_meant(line):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(line.split())
    assert args.benchmark == line.split()[0]
    if args.edition == "promptdistill":
        assert (args.n_topks, args.selection_layers, args.cache_truncation_end) == (["1024"], [13], 1)
        assert args.use_pooling is (False if "--no-use-pooling" in line else None)
    if args.benchmark == "needle":
        assert (args.s_len, args.e_len) == (1000, 120_000)


@pytest.mark.parametrize("flag", ["--seed", "--e_len", "--limit", "--max-length", "--n-depths", "--selection-layers"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "9" * 5_000, "-1" + "0" * 20, "1.5", "nan", ""])
def test_integers_have_bounds(flag, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["needle", "--model", "MODEL", f"{flag}={value}"])
    assert stop.value.code == 2
    assert f"argument {flag}: got {value[:40]!r}; allowed are integers from" in capsys.readouterr().err


def test_help_teaches(capsys):
    for arguments in (["--help"], ["needle", "--help"], ["compare", "ruler", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "examples:" in text or ("--protocol" in text and "query-agnostic" in text)


def test_two_processes_give_the_scores_of_one(tiny, facts_folder, tmp_path):
    tasks = ("qa1_1k", "qa4_1k")
    assert main(command(tiny, facts_folder, tmp_path / "one", tasks=tasks)) == 0
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["-m", "distill.evaluation", *command(tiny, facts_folder, tmp_path / "two", tasks=tasks)]
    environment = this_package() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for task in tasks:
        one, two = (only(tmp_path / name, f"{task}.jsonl") for name in ("one", "two"))
        assert without_times(one) == without_times(two)
    scores = [json.loads(only(tmp_path / name, "scores.json").read_text()) for name in ("one", "two")]
    for task in tasks:
        assert scores[0]["tasks"][task]["samples"] == scores[1]["tasks"][task]["samples"]
    assert not list(tmp_path.rglob("*.shard*"))
