"""Each benchmark: prompts rendered as published, protocol constants, data that is wrong is named."""

from __future__ import annotations

import argparse
import gzip
import json
import zipfile

import pytest

from distill.evaluation.benchmark import Source, check_tasks
from distill.evaluation.catalogue import BENCHMARKS, benchmark
from distill.evaluation.predict import Plan, decoding, new_tokens, render, uses_template
from distill.evaluation.prompting import Encoder


def options(name, *flags, preset="official"):
    bench = benchmark(name)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(list(flags))
    args.preset = preset
    return bench, bench.options(args)


def load(name, task, rows, tmp_path, tokenizer, *flags, preset="official", file=None):
    bench, chosen = options(name, *flags, preset=preset)
    (tmp_path / (file or f"{task}.jsonl")).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = check_tasks(bench, [task], chosen)[0]
    source = Source(Encoder(tokenizer), tmp_path, None, preset, chosen)
    return bench, chosen, found, bench.samples(found, source)


def longbench_row(task, **changes):
    row = {"input": "Who?", "context": "Some text.", "answers": ["A", "B"], "length": 4100, "dataset": task}
    return row | {"all_classes": None, "_id": "x1", "language": "en"} | changes


def test_longbench_has_the_21_tasks_and_the_13_of_e():
    bench, chosen = options("longbench")
    names = bench.default_tasks(chosen)
    assert len(names) == 21
    e = bench.default_tasks({"e": True})
    assert len(e) == 13 and {"trec_e", "lcc_e"} < set(e) and "musique_e" not in e
    tasks = bench.tasks(chosen)
    assert [n for n in names if not tasks[n].template] == ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]
    assert [n for n in names if tasks[n].stop_at_newline] == ["samsum"]
    assert tasks["gov_report"].max_new_tokens == 512 and tasks["hotpotqa_e"].max_new_tokens == 32


def test_longbench_prompts_are_the_published_ones(tmp_path, tokenizer):
    *_, samples = load("longbench", "qasper", [longbench_row("qasper")], tmp_path, tokenizer)
    assert samples[0].prompt.text.startswith("You are given a scientific article and a question.")
    assert samples[0].prompt.context.endswith("Article: Some text.")
    assert samples[0].prompt.question.endswith("\n\nQuestion: Who?\n\nAnswer:")
    *_, samples = load("longbench", "trec", [longbench_row("trec", all_classes=["x"])], tmp_path, tokenizer)
    assert samples[0].prompt.text.endswith("examples of questions.\n\nSome text.\nWho?")


def test_few_shot_tasks_get_no_template_even_under_chat(tmp_path, tokenizer):
    for task, wrapped in (("qasper", True), ("trec", False), ("lcc", False)):
        row = longbench_row(task, all_classes=["x"])
        bench, _, found, samples = load("longbench", task, [row], tmp_path, tokenizer, preset="chat")
        plan = Plan(bench, preset="chat")
        template = uses_template(plan, found, tokenizer)
        prompt, _ = render(plan, samples[0], Encoder(tokenizer), None, template)
        assert template == wrapped == prompt.text.startswith("<s><|user|>")
        assert Encoder(tokenizer).encode(prompt.text).count(0) == 1


def test_longbench_scores(tmp_path, tokenizer):
    bench, chosen, found, _ = load("longbench", "trec_e", [longbench_row("trec")], tmp_path, tokenizer)
    settings = bench.preset("official").scoring

    def record(prediction, **reference):
        return {"prediction": prediction, "reference": reference, "group": {"length": 4100}}

    assert bench.score(found, record("\nCity\nA City", answers=["City"], all_classes=["City", "A"]), settings) == 1
    assert bench.chance(found, record("", answers=["City"], all_classes=["City", "A"])) == 0.5
    qa = bench.tasks(chosen)["hotpotqa"]
    assert bench.score(qa, record("Paris", answers=["Rome", "paris"], all_classes=None), settings) == 1
    records = [{"group": {"length": n}} for n in (10, 3999, 4000, 7999)]
    assert bench.breakdown(found, records, [1, 0, 1, 1]) == {"length": {"0-4k": 50, "4-8k": 100, "8k+": None}}
    code = bench.tasks(chosen)["lcc"]
    pair = record("int y = 1;", answers=["        self.assertEqual(result, expected)"], all_classes=None)
    assert bench.score(code, pair, {"fuzz_backend": "difflib"}) == 0.08
    assert bench.score(code, pair, bench.preset("promptdistill").scoring) == 0.12


def test_longbench_averages_state_their_subset():
    bench, chosen = options("longbench")
    every = dict.fromkeys(bench.default_tasks(chosen), 10.0) | {"lcc": 40.0, "repobench-p": 40.0}
    found = bench.aggregates(every)
    assert found["all 21 tasks"]["score"] == pytest.approx((19 * 10 + 80) / 21)
    assert len(found["16 tasks (English and code, SnapKV's)"]["tasks"]) == 16
    assert found["14 tasks (English without code, GemFilter's and PromptDistill's)"]["score"] == 10
    # six categories, code in both languages
    assert found["official English (mean of the categories)"]["score"] == pytest.approx((5 * 10 + 40) / 6)
    assert found["official Chinese (mean of the categories)"]["score"] == pytest.approx((5 * 10 + 40) / 6)
    assert bench.aggregates({"trec": 1.0}) == {}


def test_longbench_refuses_recut_data(tmp_path, tokenizer):
    recut = {"context": "c", "question": "q", "answers": ["a"], "answer_prefix": "", "all_classes": None, "length": 1}
    with pytest.raises(ValueError, match="row 1: got no 'input', only context, question"):
        load("longbench", "qasper", [recut], tmp_path, tokenizer)
    with pytest.raises(ValueError, match="dataset: got 'musique'; allowed is 'qasper'"):
        load("longbench", "qasper", [longbench_row("musique")], tmp_path, tokenizer)


def test_longbench_reads_the_zip(tmp_path, tokenizer):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", json.dumps(longbench_row("qasper", context="中文")))
    bench, chosen = options("longbench")
    task = bench.tasks(chosen)["qasper"]
    for path in (tmp_path, tmp_path / "data.zip"):
        assert (
            "中文" in bench.samples(task, Source(Encoder(tokenizer), path, None, "official", chosen))[0].prompt.context
        )


def test_samsum_stops_at_a_newline_only_officially():
    bench, chosen = options("longbench")
    task = bench.tasks(chosen)["samsum"]
    assert decoding(Plan(bench), task).stop_at_newline
    ours = decoding(Plan(bench, preset="promptdistill"), task)
    assert not ours.stop_at_newline and ours.tokenizer_eos_only and ours.strip and ours.first_token_free


def test_promptdistill_limits():
    longbench, infbench = benchmark("longbench"), benchmark("infbench")
    assert longbench.preset("official").limit.tokens(32_000, "llama") == 31_500
    assert longbench.preset("promptdistill").limit.tokens(131_072, "llama") == 128_000
    assert longbench.preset("promptdistill").limit.tokens(32_768, "qwen2") == 32_200
    assert infbench.preset("official").limit.tokens(200_000, "llama") == 131_072
    assert [infbench.preset("promptdistill").limit.tokens(None, kind) for kind in ("llama", "phi3", "qwen2")] == [
        100_000,
        50_000,
        31_500,
    ]


def longbench2_row(**changes):
    row = {f"choice_{letter}": f" {letter.lower()} $DOC$ " for letter in "ABCD"}
    row |= {"_id": "q", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "answer": "B"}
    return row | {"question": "Q?", "context": " The $Q$ document "} | changes


def test_longbench2_prompts(tmp_path, tokenizer):
    *_, samples = load("longbench2", "test", [longbench2_row()], tmp_path, tokenizer, file="data.jsonl")
    text = samples[0].prompt.text
    assert "<text>\nThe $Q$ document\n</text>\n\nWhat is the correct answer to this question: Q?" in text
    assert "(B) b $DOC$\n(C)" in text
    assert text.endswith('"The correct answer is (insert answer here)".')
    assert samples[0].prompt.context.endswith("The $Q$ document")
    bench, _, found, samples = load(
        "longbench2", "test", [longbench2_row()], tmp_path, tokenizer, "--variant", "cot", file="data.jsonl"
    )
    assert samples[0].prompt.text.endswith("Let’s think step by step:")
    assert samples[0].max_new_tokens == 1024
    assert "The text is too long and omitted here." in samples[0].follow_up and "$COT$" in samples[0].follow_up
    assert "document" not in samples[0].follow_up
    assert new_tokens(Plan(bench), found, samples[0]) == 1024


def test_longbench2_scores(tmp_path, tokenizer):
    bench, _, found, samples = load("longbench2", "test", [longbench2_row()], tmp_path, tokenizer, file="data.jsonl")
    records = [
        {"prediction": text, "reference": samples[0].reference, "group": samples[0].group}
        for text in ("The correct answer is (B)", "The correct answer is (A)", "B")
    ]
    scores = [bench.score(found, record, bench.preset("official").scoring) for record in records]
    assert scores == [1, 0, 0]
    assert bench.score(found, records[2], {"compensated": True}) == 0.25
    parts = bench.breakdown(found, records, scores)
    assert parts["answers"]["cannot be parsed (%)"] == pytest.approx(100 / 3)
    assert bench.chance(found, records[0]) == 0.25


INFINITE = {
    "code_run": (
        {"input": "Please give me the value of func_12(-7).", "answer": 4},
        "value of func_12(-7). The value of",
    ),
    "math_find": (
        {"input": "The 2nd largest number of the list is?", "answer": 8},
        "What is the 2nd largest number in the",
    ),
    "passkey": ({"input": "What is the pass key?", "answer": "71432"}, "\n\nThe pass key is"),
    "code_debug": ({"input": "", "answer": ["f"], "options": ["e", "f", "g", "h"]}, "A. e\nB. f\nC. g\nD. h\n"),
    "longbook_choice_eng": (
        {"input": "Who?", "answer": "g", "options": ["e", "f", "g", "h"]},
        "Question: Who?\nA. e\n",
    ),
    "math_calc": ({"input": "x", "answer": [1, 2]}, "Expression: {body}\nValues:"),
}


@pytest.mark.parametrize("task", INFINITE)
def test_infinitebench_prompts(tmp_path, tokenizer, task):
    row, expected = INFINITE[task]
    row = {"id": 5, "context": "The body.", "options": []} | row
    _, _, found, samples = load("infbench", task, [row], tmp_path, tokenizer)
    assert expected.format(body="The body.") in samples[0].prompt.text
    label = {"code_debug": ["f", "B"], "longbook_choice_eng": ["g", "C"]}.get(task, row["answer"])
    assert samples[0].reference["label"] == label and samples[0].id == "5"
    assert found.question_leads == (task in ("code_run", "math_find"))


def test_infinitebench_has_12_tasks_and_rules_by_preset():
    bench, chosen = options("infbench")
    assert len(bench.tasks(chosen)) == 12
    assert bench.preset("official").scoring == {"rules": "2024-08"}
    assert bench.preset("promptdistill").scoring == {"rules": "promptdistill"}
    assert bench.default_tasks(chosen) == list(bench.tasks(chosen))
    assert bench.preset("official").truncation == "infinitebench"
    _, earlier = options("infbench", preset="promptdistill")
    assert set(bench.tasks(chosen)) - set(bench.default_tasks(earlier)) == {"math_calc"}
    assert bench.preset("promptdistill").truncation == "longbench"


def test_integers_stay_integers(tmp_path, tokenizer):
    row = {"context": "1 2", "input": "The largest number of the list is?", "answer": 88}
    *_, samples = load("infbench", "math_find", [row], tmp_path, tokenizer)
    assert type(samples[0].reference["label"]) is int


def test_babilong(tmp_path, tokenizer):
    row = {"input": "Mary went home.", "question": "Where is Mary? ", "target": "kitchen"}
    bench, _, found, samples = load("babilong", "qa1_2k", [row], tmp_path, tokenizer, file="2k_qa1.jsonl")
    text = samples[0].prompt.text
    assert text.endswith("<context>\nMary went home.\n</context>\nQuestion: Where is Mary?")
    assert "’person’ is ’location’" in text and found.max_new_tokens == 20
    record = {"prediction": "Mary is in the kitchen.", "reference": samples[0].reference, "group": {}}
    assert bench.score(found, record, {}) == 1
    assert bench.chance(found, record) == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="3k"):
        options("babilong", "--lengths", "3k")


def test_longchat(tmp_path, tokenizer):
    prompt = "Remember.\nline a-b: REGISTER_CONTENT is <7>\n\nNow the record is over. Tell me a-b. "
    row = {"prompt": prompt, "expected_number": 7, "num_lines": 200}
    bench, _, found, samples = load("longchat", "lines_200", [row], tmp_path, tokenizer, file="200_lines.jsonl")
    assert samples[0].prompt.text == prompt
    assert samples[0].prompt.question.startswith("\nNow the record")
    assert bench.chance(found, {"reference": samples[0].reference}) == 1 / 200
    with pytest.raises(ValueError, match="got 200 lines; allowed are 300"):
        load("longchat", "lines_300", [row], tmp_path, tokenizer)


def test_key_value_pairs_are_printed_as_the_original_does(tmp_path, tokenizer):
    pairs = [[f"k{i}", f"v{i}"] for i in range(75)]
    row = {"ordered_kv_records": pairs, "key": "k3", "value": "v3"}
    *_, samples = load("kv", "keys_75", [row], tmp_path, tokenizer, file="kv-retrieval-75_keys.jsonl")
    text = samples[0].prompt.text
    assert 'JSON data:\n{"k0": "v0",\n "k1": "v1",\n' in text
    assert text.endswith('"k74": "v74"}\n\nKey: "k3"\nCorresponding value:')
    assert samples[0].group == {"position": 3}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_unknown_tasks_are_refused_with_the_list(name):
    bench, chosen = options(name)
    with pytest.raises(ValueError, match=rf"tasks of {name}: got 'nonsense'; allowed are '\w+'"):
        check_tasks(bench, ["nonsense"], chosen)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="benchmark: got 'haystack'; allowed are 'needle', "):
        benchmark("haystack")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": 1}\nnot json\n', "line 2: got corrupt JSON"),
        ("[1, 2]\n", "line 1: got a list; allowed is a JSON object"),
        ("\n", ""),
    ],
)
def test_corrupt_data_names_file_and_line(tmp_path, tokenizer, content, message):
    from distill.evaluation.data import read_jsonl

    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(content)
    if message:
        with pytest.raises(ValueError, match=rf"data\.jsonl\.gz, {message}"):
            read_jsonl(path)
    else:
        assert read_jsonl(path) == []


def test_missing_data_names_the_path(tmp_path, tokenizer):
    bench, chosen = options("longbench")
    task = bench.tasks(chosen)["qasper"]
    with pytest.raises(ValueError, match=r"--data-path: got .*; allowed are folders with qasper\.jsonl"):
        bench.samples(task, Source(Encoder(tokenizer), tmp_path, None, "official", chosen))
    with pytest.raises(ValueError, match=r"--data-path: got .*no; allowed are files and folders that exist"):
        bench.samples(task, Source(Encoder(tokenizer), tmp_path / "no", None, "official", chosen))


def test_data_that_cannot_be_fetched_says_how_to_use_a_local_copy(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    bench, chosen = options("longbench")
    with pytest.raises(ValueError, match=r"data: got no data\.zip of the data set THUDM/LongBench .*--data-path"):
        bench.samples(bench.tasks(chosen)["qasper"], Source(Encoder(tokenizer), None, None, "official", chosen))


def test_scoring_settings_have_values_of_their_kind():
    from distill.evaluation.scoring import scoring_settings

    bench = benchmark("longbench2")
    assert scoring_settings(bench, "official", {"compensated": True}) == {"compensated": True}
    assert scoring_settings(bench, "official", {"compensated": None}) == {"compensated": False}
    for value in (1, "yes", []):
        with pytest.raises(ValueError, match=r"compensated: got .*; allowed are True and False"):
            scoring_settings(bench, "official", {"compensated": value})
    with pytest.raises(ValueError, match="rules: got \\['2024-06'\\]; allowed are '2024-06', "):
        scoring_settings(benchmark("infbench"), "official", {"rules": ["2024-06"]})
    with pytest.raises(ValueError, match="scoring setting of infbench: got 'ruls'; allowed are 'rules'"):
        scoring_settings(benchmark("infbench"), "official", {"ruls": "2024-06"})
