"""Routing by measured quality, and `distill pipeline`: what is chosen and why, what is refused, what is reported."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

import distill.mini
from distill.cli import main
from distill.pruning import Band, Candidate, choose
from distill.pruning.pipeline import fenced, read_settings
from distill.pruning.quality import read_candidates

SMALL = Candidate("small", 61.0, 0.2, (55.0, 67.0), 25.0, "mmlu", 1000)
MIDDLE = Candidate("middle", 64.0, 0.5, (58.0, 70.0), 25.0, "mmlu")
LARGE = Candidate("large", 66.0, 1.0, (60.0, 72.0), 25.0, "mmlu")
POOR = Candidate("poor", 27.0, 0.01, (21.0, 33.0), 25.0, "mmlu")
BANDS = [Band(0.3, 0.9), Band(1.0, 0.98)]
EASY = "Hello there, nice day."
HARD = (
    "Prove step by step why the plan must never exceed 100 units, compare 3 designs, and explain each trade-off. "
    "The answer must be JSON, at most 200 words, without adjectives. Why? How many? What if not? Which one?\n"
) * 6
NOTES = "\n".join(f"On day {i} the river was quiet and nobody had seen the bridge before noon." for i in range(30))


def test_the_cheapest_that_is_good_enough():
    candidates = [LARGE, POOR, SMALL, MIDDLE]
    easy = choose(EASY, candidates, BANDS)
    # 61 is 92 % of 66; a model within its interval of chance is cheapest, and never chosen
    assert easy.model == "small" and "at least 90 % of the best (66.0, 'large')" in easy.reasons[0]
    assert "measured: mmlu" in easy.reasons[0] and any(
        "'poor'" in r and "no better than chance" in r for r in easy.reasons
    )
    assert choose(HARD, candidates, BANDS).model == "large"  # 64 is 97 %
    assert choose(HARD, candidates, [Band(1.0, 0.95)]).model == "middle"
    assert choose("plain words " * 3000, candidates, [Band(1.0, 0.9)]).model == "middle"  # too long for the small one


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose(EASY, [], BANDS), "candidates: got"),
        (lambda: choose(EASY, [POOR], BANDS), r"candidates: got none that is better than chance \(25.0\)"),
        (lambda: choose(EASY, [LARGE, LARGE], BANDS), "allowed are lists with each model once"),
        (lambda: choose(EASY, [LARGE], [Band(0.5, 1.0)]), "bands: got .* one of them up to 1"),
        (lambda: choose(EASY, [SMALL], BANDS), "routes: got .* one route takes everything"),
        (lambda: choose(EASY, [LARGE, Candidate("x", 50.0, 1.0)], BANDS), "others cannot be compared"),
        (lambda: Candidate("x", 101.0, 1.0), "quality: got 101.0; allowed are numbers from 0 and up to 100"),
        (lambda: Candidate("x", 50.0, 1.0, (51.0, 60.0)), r"interval\[0\]: got 51.0"),
        (lambda: Candidate("x", 50.0, 1.0, address="localhost"), "address: got 'localhost'"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def files(tmp_path):
    """A text, and a function that writes a config beside it and gives the command's arguments."""
    (tmp_path / "in.txt").write_text(NOTES, encoding="utf-8")

    def arguments(config, *flags):
        (tmp_path / "my.json").write_text(json.dumps(config), encoding="utf-8")
        places = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.md")]
        return ["pipeline", "--config", str(tmp_path / "my.json"), *places, *flags]

    return arguments


def test_the_shipped_config(tmp_path, capsys, files):
    assert read_settings("default") == read_settings("default.json")
    line = files({})
    assert main([*line[:2], "default.json", *line[3:]]) == 0
    report = (tmp_path / "out.md").read_text(encoding="utf-8")
    before, after = (int(x) for x in capsys.readouterr().out.split(" tokens")[0].split(" -> "))
    assert f"| {before} | {after} |" in report and after <= before / 2 + 1
    assert "None was chosen" in report and "| prune |" in report and "## Answer" not in report


def test_results_of_distill_eval_choose_the_model(tmp_path, files):
    header = {"model": "models/a", "preset": "official", "protocol": "query-aware", "options": {"shots": 5}}
    task = {"header": header, "complete": True, "score": 60.0, "interval": [55.0, 65.0], "chance": 25.0, "n": 300}
    for name, score in (("a", 60.0), ("b", 64.0)):
        (tmp_path / name).mkdir()
        entry = task | {
            "score": score,
            "interval": [score - 5, score + 5],
            "header": header | {"model": f"models/{name}"},
        }
        text = json.dumps({"benchmark": "mmlu", "scoring": {}, "tasks": {"anatomy": entry}})
        (tmp_path / name / "scores.json").write_text(text, encoding="utf-8")
    models = [{"results": "a", "cost": 1}, {"results": "b", "cost": 2}]
    config = {"route": {"models": models, "bands": [{"up_to": 1.0, "share": 0.9}]}, "prune": {"target_tokens": 300}}
    assert main(files(config)) == 0
    report = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "**models/a**" in report and "mmlu anatomy, 300 samples, official, query-aware" in report
    config["route"]["bands"][0]["share"] = 0.99
    assert main(files(config)) == 0
    assert "**models/b**" in (tmp_path / "out.md").read_text(encoding="utf-8")


def test_a_real_run_of_distill_eval_is_read(tmp_path):
    from distill.evaluation.cli import main as evaluate

    facts = tmp_path / "facts"
    facts.mkdir()
    rows = [
        {"input": f"Mary went to the kitchen. Day {i}.", "question": "Where is Mary? ", "target": "kitchen"}
        for i in (1, 2)
    ]
    (facts / "1k_qa1.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = str(distill.mini.path("llama"))
    line = ["babilong", "--model", model, "--cpu", "--data-path", str(facts), "--tasks", "qa1_1k"]
    assert evaluate([*line, "--output", str(tmp_path / "eval")]) == 0
    folder = next((tmp_path / "eval").rglob("scores.json")).parent
    entry = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["tasks"]["qa1_1k"]
    (found,) = read_candidates([{"results": str(folder), "cost": 1}], tmp_path)
    assert (found.model, found.quality, found.chance) == (model, entry["score"], entry["chance"])
    assert found.interval == tuple(entry["interval"]) and "babilong qa1_1k, 2 samples" in found.measure


class Server(http.server.BaseHTTPRequestHandler):
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        body = json.dumps({"choices": [{"message": {"content": "At ```noon```."}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_answers(tmp_path, files):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/v1"
        config = {"route": {"models": [{"model": "m", "quality": 50, "cost": 1, "address": address}]}}
        assert main(files(config | {"answer": {"max_new_tokens": 7}}, "--answer", "--question", "When?")) == 0
    finally:
        server.shutdown()
        server.server_close()
    report = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "## Answer\n\n````text\nAt ```noon```.\n````" in report and "| answer |" in report
    asked = Server.asked[-1]
    assert asked["model"] == "m" and asked["max_tokens"] == 7 and asked["messages"][0]["content"].endswith("\n\nWhen?")
    # what was asked is the pruned text, not the whole one
    assert len(asked["messages"][0]["content"]) < 0.8 * len(NOTES)


def test_a_folder_answers(tmp_path, files):
    model = str(distill.mini.path("llama"))
    config = {"route": {"models": [{"model": model, "quality": 50, "cost": 1}]}, "answer": {"max_new_tokens": 4}}
    assert main(files(config, "--answer", "--question", "When?")) == 0
    assert "## Answer\n\n```text\n" in (tmp_path / "out.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ({"prun": {}}, [], "config.prun: got an option that does not exist"),
        ({"prune": {"speed": 2}}, [], "prune.speed: got an option that does not exist"),
        ({"prune": {"rate": 2}}, [], "rate: got 2"),
        ({"route": {"models": [{"model": "m"}]}}, [], "models[0]: got no 'quality'"),
        ({"route": {"models": [{"model": "m", "quality": 5, "cost": -1}]}}, [], "models[0].cost: got -1"),
        (
            {"route": {"models": [{"results": "nowhere", "cost": 1}]}},
            [],
            "allowed are folders that `distill eval` has",
        ),
        ({"route": {"bands": [{"up_to": 1.0}]}}, [], "route.bands: got"),
        ({"answer": {"max_new_tokens": 0}}, [], "answer.max_new_tokens: got 0"),
        ({}, ["--answer"], "--answer: got no model to ask"),
        (
            {"route": {"models": [{"model": "m", "quality": 5, "cost": 1}]}},
            ["--answer"],
            "model: got 'm', which is no",
        ),
        (
            {"route": {"models": [{"model": "m", "quality": 5, "cost": 1, "address": "http://127.0.0.1:9/v1"}]}},
            ["--answer"],
            "address: got http://127.0.0.1:9/v1",
        ),
        (
            {},
            ["--output", "nowhere/out.md"],
            "--output: got nowhere/out.md; allowed are files in a folder that exists",
        ),
        ({}, ["--input", "nowhere.txt"], "--input: got nowhere.txt"),
        ({}, ["--config", "nothing"], "config: got nothing"),
    ],
)
def test_everything_is_checked_before_it_starts(tmp_path, capsys, files, config, flags, message):
    assert main(files(config, *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.md").exists()


def test_fences_hold_any_text():
    assert fenced("a ````b").startswith("`````text\n")


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["pipeline", "--help"])
    assert "distill pipeline --config my.json --input in.txt --output out.md" in capsys.readouterr().out


def test_what_was_pruned_is_written_when_the_model_fails(tmp_path, files, monkeypatch, capsys):
    from distill import pipeline_cli

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    models = [{"model": str(tmp_path / "model"), "quality": 60.0, "chance": 0.0, "cost": 1, "measure": "by hand"}]

    def failing(*args):
        raise ValueError("model: got none that answers; allowed are others")

    monkeypatch.setattr(pipeline_cli, "ask_folder", failing)
    config = {"route": {"models": models}, "prune": {"target_tokens": 300}}
    assert main(files(config, "--answer")) == 2
    assert "got none that answers" in capsys.readouterr().err
    report = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "| prune |" in report and "## Answer" not in report
