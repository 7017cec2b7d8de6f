"""The whole chain on real samples with the small models at hand: predict, score, report."""

from __future__ import annotations

import json

import pytest

import distill.mini
from distill.evaluation.cli import main
from distill.evaluation.store import read_results

RUNS = {
    "babilong": ("babilong", "babilong", ["qa1_1k"], []),
    "kv": ("kv", "lost-in-the-middle", ["keys_75"], []),
    "longchat": ("longchat", "longchat", ["lines_200"], ["--max-length", "2000"]),
    "longbench": ("longbench", "longbench", ["multi_news", "passage_retrieval_zh"], ["--max-length", "1001"]),
    "infbench": (
        "infbench",
        "infinitebench/passkey_8k_16k_32k_64k.zip",
        ["passkey"],
        ["--data-file", "passkey_8192.jsonl"],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_real_samples_through_the_whole_chain(shared, tmp_path, name):
    bench, data, tasks, flags = RUNS[name]
    path = shared("data", *data.split("/"))
    model = distill.mini.path("llama")
    arguments = [bench, "--model", str(model), "--cpu", "--dtype", "float32", "--data-path", str(path), "--limit", "1"]
    arguments += ["--output", str(tmp_path), "--tasks", *tasks, *flags]
    assert main(arguments) == 0
    folder = next(tmp_path.rglob("scores.json")).parent
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert list(scores["tasks"]) == sorted(tasks)
    for task in tasks:
        results = read_results(folder / f"{task}.jsonl")
        record = next(iter(results.records.values()))
        assert results.summary["n"] == 1 and record["prompt_tokens"] > 500
        limit = results.header["truncation"]["limit"]
        if record["truncated"]:
            assert record["prompt_tokens"] <= limit + 20
    if name == "infbench":
        # the small model really finds pass keys
        assert scores["tasks"]["passkey"]["score"] == 100
    assert main(["report", str(folder), "--report", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-tok105-hf"])
def test_other_small_models_run_too(shared, tmp_path, name):
    model, data = shared("data", "models", name), shared("data", "babilong")
    arguments = ["babilong", "--model", str(model), "--cpu", "--data-path", str(data), "--tasks", "qa1_0k"]
    assert main([*arguments, "--limit", "2", "--max-length", "200", "--output", str(tmp_path)]) == 0
    results = read_results(next(tmp_path.rglob("qa1_0k.jsonl")))
    assert results.summary == results.summary | {"n": 2, "truncated": 2}
