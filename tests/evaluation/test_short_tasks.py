"""SQuAD, CommonGen, GSM8K, perplexity, GLUE and MMLU: scores of hand-made cases, and real samples from end to end."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re

import pytest
import torch

import distill
import distill.mini
from distill.compression.perplexity import perplexity, windows
from distill.evaluation import likelihood
from distill.evaluation.benchmark import Sample, Source, Window
from distill.evaluation.catalogue import benchmark
from distill.evaluation.cli import main
from distill.evaluation.data import read_parquet
from distill.evaluation.generation import Generator
from distill.evaluation.metrics import short_tasks
from distill.evaluation.multiple_choice import f1, matthews
from distill.evaluation.prompting import Encoder, Prompt
from distill.evaluation.store import read_results


def loaded(name, task, tokenizer, path, *flags):
    bench = benchmark(name)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(list(flags))
    args.preset = "official"
    chosen = bench.options(args)
    found = bench.tasks(chosen)[task]
    return bench, found, bench.samples(found, Source(Encoder(tokenizer), path, options=chosen))


def run(tmp_path, name, data, *flags, model=None):
    model = model or distill.mini.path("llama")
    line = [name, "--model", str(model), "--cpu", "--dtype", "float32", "--output", str(tmp_path), *flags]
    assert main([*line, "--data-path", str(data)]) == 0
    folder = next(tmp_path.rglob("scores.json")).parent
    return folder, json.loads((folder / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        # the official evaluate-v1.1.py by hand: articles, case, punctuation and white space do not count
        ("The  Denver Broncos!", ["Denver Broncos", "Carolina Panthers"], 1, 1),
        ("Broncos", ["Denver Broncos"], 2 / 3, 0),
        ("in 1066 and 1067", ["1066", "in 1066"], 2 / 3, 0),
        # two of two words right, but said twice: the second time counts against it
        ("red red", ["red"], 2 / 3, 0),
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California", "clara"], 0.8, 0),
        ("u.s.", ["US"], 1, 1),
        ("", ["Paris"], 0, 0),
        # an answer of articles alone normalises to nothing: no word in common, yet the same
        ("a", ["the"], 0, 1),
    ],
)
def test_squad_scores_as_the_official_script(prediction, answers, f1, exact):
    assert short_tasks.squad_f1(prediction, answers) == pytest.approx(f1)
    assert short_tasks.squad_exact(prediction, answers) == exact


@pytest.mark.parametrize(
    ("prediction", "answer", "last", "strict"),
    [
        ("She makes 9 * 2 = $18 every day.\n#### 18", "18", 1, 1),
        ("So there are 1,200 eggs. The answer is 1,200.", "1200", 1, 1),
        ("The answer is $5.", "5", 1, 1),
        ("#### 7\nBut 8 is wrong", "7", 0, 1),
        ("It is 18.", "18", 1, 0),
        ("It is 18.50", "18", 0, 0),
        ("It fell by -3", "-3", 1, 0),
        # a base model goes on with a question of its own
        ("The answer is 6.\n\nQ: Ann has 9 pens.", "6", 1, 1),
        ("I do not know.", "0", 0, 0),
    ],
)
def test_gsm8k_takes_the_exact_number(prediction, answer, last, strict):
    assert short_tasks.gsm8k(prediction, answer, "last") == last
    assert short_tasks.gsm8k(prediction, answer, "strict") == strict


def test_gsm8k_reads_the_solutions_of_the_data(shared):
    assert short_tasks.gsm8k_answer("x\n#### 1,234") == "1234"
    with pytest.raises(ValueError, match=r"answer: got .*; allowed are solutions with '#### '"):
        short_tasks.gsm8k_answer("18")
    with gzip.open(shared("data", "gsm8k", "test.jsonl.gz"), "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"] for line in file]
    for solution in solutions:  # every solution scores as its own answer, under both rules
        answer = short_tasks.gsm8k_answer(solution)
        assert float(answer) == int(answer)
        assert short_tasks.gsm8k(solution, answer, "strict") == short_tasks.gsm8k(solution, answer, "last") == 1


def test_commongen_scores():
    concepts, sentences = ["field", "look", "stand"], ["The player stood in the field looking at the batter."]
    assert short_tasks.coverage("They stand looking at FIELDS.", concepts) == 1
    assert short_tasks.coverage("He stood in a field.", concepts) == pytest.approx(1 / 3)
    assert short_tasks.rouge_l_stemmed(sentences[0], ["Nothing here", *sentences]) == 1
    assert short_tasks.bleu_4([sentences[0]] * 2, [sentences, ["x", *sentences]]) == pytest.approx(1)
    # one wrong word of five leaves 4/5 unigrams, 3/4, 2/3 and 1/2: their geometric mean
    found = short_tasks.bleu_4(["a b c d x"], [["a b c d e"]])
    assert found == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_people_cover_nearly_all_concepts(shared):
    with gzip.open(shared("data", "commongen", "commongen.dev.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = [
        short_tasks.coverage(sentence, [part.rpartition("_")[0] for part in row["concept_set"].split("#")])
        for row in rows
        for sentence in row["scene"]
    ]
    assert len(found) == 4018 and 0.96 < sum(found) / len(found) < 0.98  # the rest are irregular forms


def test_correlation_and_f1():
    pairs = [(1, 1)] * 4 + [(0, 0)] * 3 + [(1, 0)] * 2 + [(0, 1)]
    assert matthews(pairs) == pytest.approx((4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4))
    assert matthews([(1, 1), (1, 0)]) == 0 and matthews([(1, 1), (0, 0)]) == 1
    assert f1(pairs) == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)) and f1([(0, 0)]) == 0


def test_windows_score_every_token_once():
    for tokens, window, stride in ((2, 2, 1), (10, 4, 4), (10, 4, 2), (11, 4, 3), (5, 8, 8), (8, 4, 1)):
        scored = [i for start, end, fresh in windows(tokens, window, stride) for i in range(end - fresh, end)]
        assert scored == sorted(set(scored))
        # without overlap the first token of each window has nothing before it
        assert set(range(1, tokens)) - set(scored) == (
            set(range(stride, tokens, stride)) if stride == window else set()
        )
    with pytest.raises(ValueError, match="stride: got 5; allowed for windows of 4 are 1 to 4"):
        list(windows(9, 4, 5))


def test_likelihoods_are_those_of_lm_eval(tiny, tokenizer):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from lm_eval.api.instance import Instance

    from distill.evaluation import harness

    lm = harness.DistillLM(str(tiny), policy=None, device="cpu")
    for text, choices in (("Is it so?\nAnswer:", (" yes", " no")), ("It is ", ("true", "false", "unclear"))):
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(text, c), idx=0, metadata=("t", 0, 1))
            for c in choices
        ]
        theirs = [-value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        generator = Generator(distill.load(tiny, policy=None), Encoder(tokenizer))
        prompt = Prompt(text, "")
        ours = likelihood.measure(generator, Sample("0", prompt, {}, choices=choices), prompt)
        assert ours.nats == pytest.approx(theirs, abs=1e-4)


def test_a_window_is_one_pass_of_the_model(tiny, tokenizer):
    model = distill.load(tiny, policy=None)
    ids = list(range(3, 33))
    sample = Sample("0", Prompt("", ""), {}, window=Window(tuple(ids), 10))
    found = likelihood.measure(Generator(model, Encoder(tokenizer)), sample, sample.prompt)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert found.nats[0] == pytest.approx(-sum(float(logs[i - 1, ids[i]]) for i in range(20, 30)), rel=1e-5)
    assert found.scored == 10 and found.prompt_tokens == 30


def test_perplexity_through_result_files_is_that_of_compression(tiny, tokenizer, tmp_path):
    text = "The river was quiet and nobody had seen the bridge before noon. " * 5
    (tmp_path / "story.txt").write_text(text, encoding="utf-8")
    flags = ["--tasks", "text", "--window", "64", "--stride", "48"]
    folder, scores = run(tmp_path / "out", "perplexity", tmp_path / "story.txt", *flags, model=tiny)
    ids = Encoder(tokenizer).encode(text)
    wanted = perplexity(distill.load(tiny, policy=None), ids, len(text.split()), 64, 48)
    task = scores["tasks"]["text"]
    assert task["score"] == pytest.approx(wanted.token) == task["breakdown"]["perplexity"]["token"]
    assert task["breakdown"]["perplexity"]["word"] == pytest.approx(wanted.word)
    assert task["interval"][0] <= task["score"] <= task["interval"][1] and task["chance"] == pytest.approx(
        len(tokenizer)
    )
    assert task["unit"] == "perplexity a token" and "windows of 64 tokens, stride 48" in task["metric"]
    # a report in which nothing is a percentage
    assert main(["report", str(folder), "--report", str(tmp_path / "report.html")]) == 0
    assert '"unit": "perplexity a token"' in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edition", "knorm", "--budget", "8"], "--edition: got 'knorm.*allowed for perplexity is 'default'"),
        (["--protocol", "query-agnostic"], "--protocol: got 'query-agnostic'; allowed for perplexity"),
        (["--drilldown", "1"], "--drilldown: got 1; allowed for perplexity is 0"),
        (["--window", "8", "--stride", "9"], "--stride: got 9; allowed are"),
        (["--tasks", "wikitext2_unk"], "wikitext2_unk: got a text without <unk>; allowed"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, tmp_path, capsys, flags, message):
    (tmp_path / "story.txt").write_text("Nobody had seen the bridge before noon.", encoding="utf-8")
    line = ["perplexity", "--model", str(tiny), "--cpu", "--output", str(tmp_path / "out")]
    tasks = [] if "--tasks" in flags else ["--tasks", "text"]
    assert main([*line, "--data-path", str(tmp_path / "story.txt"), *tasks, *flags]) == 2
    assert re.search(message.replace("(", r"\("), capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


RUNS = {
    "squad": ("xquad", ["--tasks", "xquad_en"], {"f1", "exact"}),
    "commongen": ("commongen", [], {"coverage", "rouge_l", "bleu_4"}),
    "gsm8k": ("gsm8k", ["--prompt", "zero"], {"last", "strict"}),
    "perplexity": ("wikitext-2", ["--tasks", "wikitext2_unk_valid", "--window", "256"], {"token", "word"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_real_samples_from_end_to_end(shared, tmp_path, name):
    data, flags, measures = RUNS[name]
    folder, scores = run(tmp_path, name, shared("data", data), "--limit", "2", *flags)
    (task,) = scores["tasks"].values()
    (breakdown,) = task["breakdown"].values()
    assert task["n"] == 2 and task["complete"] and set(breakdown) == measures
    if name == "perplexity":  # a small model of stories knows more than nothing
        assert 1 < task["score"] < task["chance"]
    assert main(["score", str(folder)]) == 0


@pytest.mark.parametrize(("name", "flags"), [("commongen", []), ("gsm8k", ["--prompt", "zero"])])
def test_prompts_without_a_context_are_not_read_in_two(tiny, tmp_path, capsys, name, flags):
    line = [name, "--model", str(tiny), "--cpu", "--output", str(tmp_path / "out"), "--data-path", str(tmp_path)]
    assert main([*line, *flags, "--protocol", "query-agnostic"]) == 2
    assert "allowed under the query-agnostic protocol are tasks" in capsys.readouterr().err


def test_prompts_of_the_real_data(shared, tokenizer):
    _, _, samples = loaded("squad", "xquad_en", tokenizer, shared("data", "xquad"))
    assert len(samples) == 1190 and samples[0].prompt.question.endswith("?\n\nAnswer:")
    assert all(any(a in s.prompt.context for a in s.reference["answers"]) for s in samples[:50])
    _, _, samples = loaded("gsm8k", "test", tokenizer, shared("data", "gsm8k"))
    assert len(samples) == 1319 and samples[0].prompt.context.count("The answer is ") == 8
    assert samples[0].prompt.question.startswith("Q: Janet") and samples[0].reference == {"answer": "18"}
    _, _, samples = loaded("commongen", "dev", tokenizer, shared("data", "commongen"))
    assert len(samples) == 993 and '"field(noun), look(verb), stand(verb)"\n- Sentence:' in samples[0].prompt.text


RTE = [
    {"sentence1": "The cat sat.", "sentence2": "A cat was sitting.", "label": 0, "idx": 0},
    {"sentence1": "The cat sat.", "sentence2": "No cat sat.", "label": 1, "idx": 1},
]
HEARTS = {"question": "How many hearts has a man?", "choices": ["1", "2", "3", "4"], "answer": 0, "subject": "anatomy"}


def test_glue_and_mmlu_with_the_prompts_of_lm_eval(tiny, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    data = tmp_path / "data"
    data.mkdir()
    (data / "rte.jsonl").write_text("\n".join(map(json.dumps, RTE)), encoding="utf-8")
    folder, scores = run(tmp_path / "glue", "glue", data, "--tasks", "rte", model=tiny)
    task, results = scores["tasks"]["rte"], read_results(folder / "rte.jsonl")
    assert task["n"] == 2 and task["chance"] == 50
    for record, row in zip(results.records.values(), RTE, strict=True):
        right = record["nats"][row["label"]] < record["nats"][1 - row["label"]]
        assert task["samples"][record["id"]] == float(right)
        assert record["prediction"] in (" True", " False")
    (data / "cola.jsonl").write_text(json.dumps({"label": 0}), encoding="utf-8")
    line = ["glue", "--model", str(tiny), "--cpu", "--tasks", "cola", "--output", str(tmp_path / "glue")]
    assert main([*line, "--data-path", str(data)]) == 2
    assert "cola: got no data (UndefinedError" in capsys.readouterr().err
    # MMLU's 5 shots need the rows of its development set
    (data / "mmlu_anatomy.jsonl").write_text(json.dumps(HEARTS), encoding="utf-8")
    line = ["mmlu", "--model", str(tiny), "--cpu", "--tasks", "anatomy", "--output", str(tmp_path / "mmlu")]
    assert main([*line, "--data-path", str(data)]) == 2
    assert "allowed are folders with mmlu_anatomy.shots.jsonl" in capsys.readouterr().err
    shots = [HEARTS | {"question": f"Question {i}?", "answer": i % 4} for i in range(5)]
    (data / "mmlu_anatomy.shots.jsonl").write_text("\n".join(map(json.dumps, shots)), encoding="utf-8")
    assert main([*line, "--data-path", str(data)]) == 0
    results = read_results(next((tmp_path / "mmlu").rglob("anatomy.jsonl")))
    assert next(iter(results.records.values()))["scored"] == 8 and results.header["options"] == {"shots": 5}
    assert len(benchmark("mmlu").tasks({})) == 57


def test_parquet_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    rows = [{"text": "a", "answers": {"text": ["x"], "answer_start": [3]}, "other": 1}]
    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_parquet(tmp_path / "rows.parquet", ["text", "answers"]) == [
        {"text": "a", "answers": {"text": ["x"], "answer_start": [3]}}
    ]
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="allowed is Parquet"):
        read_parquet(tmp_path / "bad.parquet", ["text"])
