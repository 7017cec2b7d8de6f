"""The command, the page, and pruning composed with a reader."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.cli import main
from distill.pruning import PruneThenGenerate
from distill.pruning.html import page
from distill.pruning.loading import shipped_model
from distill.pruning.result import report


@pytest.fixture
def text_file(tmp_path, prose):
    path = tmp_path / "in.txt"
    path.write_bytes(prose.encode())
    return path


def test_command_writes_text_and_report(text_file, tmp_path, checkpoints, prose):
    out, html, data = (tmp_path / name for name in ("out.md", "out.html", "out.json"))
    status = main(
        ["prune", str(text_file), "-o", str(out), "--rate", "0.6", "--model", checkpoints.llama, "--ner", "none",
         "--force-token", "\\n", "--keyword", "decision", "--html", str(html), "--json", str(data)]
    )  # fmt: skip
    assert status == 0
    text, block = out.read_text().split("\n\n<!-- distill prune\n")
    found = json.loads(data.read_text())
    assert found["text"] == text and found["tokens"] <= found["budget"]
    assert text.count("\n") == prose.count("\n") and "decision" in text
    assert (
        f"{found['original_tokens']} -> {found['tokens']}" in block and "estimate" in block and block.endswith("-->\n")
    )
    assert html.read_text().startswith("<!doctype html>")


def test_command_reads_standard_input(monkeypatch, capsys, prose):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(prose.encode())))
    assert main(["prune", "--scorer", "baseline", "--rate", "0.6", "--ner", "capitals"]) == 0
    captured = capsys.readouterr()
    assert 0 < len(captured.out) < len(prose) and "kept" in captured.err and "tokens by mask" in captured.err


def test_command_says_when_it_is_over(text_file, capsys):
    assert main(["prune", str(text_file), "--scorer", "baseline", "--rate", "0.05", "--report-only"]) == 3
    assert "OVER THE BUDGET" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rate", "1.5"], "rate: got 1.5"),
        (["--rules", "moneys"], "rules"),
        (["--model", "/no/such/folder", "--scorer", "auto"], "model_name"),
        (["--question", "Why?"], "does not use one"),
        (["--no-report", "--report-only"], "--no-report; allowed"),
    ],
)
def test_command_bad_input(text_file, capsys, options, word):
    scorer = [] if "--scorer" in options else ["--scorer", "baseline"]
    assert main(["prune", str(text_file), *scorer, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill prune: ") and word in error


def test_command_unreadable_input(tmp_path, capsys):
    assert main(["prune", str(tmp_path / "none.txt"), "--scorer", "baseline"]) == 2
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main(["prune", str(binary), "--scorer", "baseline"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_command_line_budgets_exclude_each_other(text_file, capsys):
    with pytest.raises(SystemExit):
        main(["prune", str(text_file), "--rate", "0.5", "--reduce-rate", "0.5"])
    assert "not allowed with" in capsys.readouterr().err


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.stack, self.inside, self.kept, self.gone, self.marks = [], False, "", "", []

    def handle_starttag(self, tag, attributes):
        self.inside |= tag == "article"
        if self.inside:
            self.stack.append(tag)
            if tag == "mark":
                self.marks.append(dict(attributes))

    def handle_endtag(self, tag):
        if self.inside:
            self.stack.pop()
            self.inside = bool(self.stack)

    def handle_data(self, data):
        if self.inside:
            if "del" in self.stack:
                self.gone += data
            else:
                self.kept += data


@pytest.mark.parametrize("tail", ["", "\n<b>&amp; <script>alert(1)</script> </article>"])
def test_page_shows_exactly_what_stayed(default, prose, tail):
    result = default.compress(prose + tail, 0.6, force_tokens=["bridge"])
    shown = page(result, "a <title>")
    reader = _Reader()
    reader.feed(shown)
    assert reader.kept == result.text
    assert sorted(reader.kept + reader.gone) == sorted(prose + tail)
    assert {"user", "rules", "ner"} <= {m["class"] for m in reader.marks}
    assert any(m["title"] == "rules: money" for m in reader.marks)
    assert "<script" not in shown and "http://" not in shown.split("<article>")[0]
    assert "a &lt;title&gt;" in shown


def test_report_is_honest(default, prose):
    result = default.compress(prose, 0.6)
    lines = report(result)
    assert f"{result.original_tokens} -> {result.tokens}" in lines and "within the budget" in lines
    assert result.scorer in lines and result.counter in lines
    over = default.compress(prose, 0.02)
    assert "OVER THE BUDGET" in report(over) and "over the budget because of" in report(over)
    json.dumps(result.to_dict(with_original=True))


@pytest.fixture(scope="module")
def reader(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints.llama).eval()
    return model, AutoTokenizer.from_pretrained(checkpoints.llama)


def test_pruning_composes_with_a_reader(plain, reader, prose):
    step = PruneThenGenerate(plain, *reader)
    answer = step(
        prose, "Who drafted the report?", rate=0.4, instruction="Answer.", query_aware=False, max_new_tokens=4
    )
    pruned = plain.compress(prose, 0.4)
    prompt = f"Answer.\n\n{pruned.text}\n\nWho drafted the report?"
    model, tokenizer = reader
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    wanted = model.generate(**inputs, max_new_tokens=4)
    assert answer.text == tokenizer.decode(wanted[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1] and answer.pruned.tokens <= answer.pruned.budget
    assert set(answer.timings) == {"prune", "generate"}


def test_reader_counts_and_question_decides(checkpoints, reader, prose):
    from distill.pruning import Distill

    pruner = Distill(checkpoints.llama, ner=None, rules=False)
    answer = PruneThenGenerate(pruner, *reader, template="{context} Q: {question}")(
        prose, "What did the engineers measure?", rate=0.4, prune={"keywords": ["river"]}, max_new_tokens=2
    )
    assert "question-likelihood" in answer.pruned.scorer and answer.pruned.exact and "river" in answer.pruned.text
    assert not pruner.compress(prose, 0.4).exact  # the caller's pruner still counts as before
    for options, word in (({"template": "{question}"}, "context"), ({"chat": True}, "chat template")):
        with pytest.raises(ValueError, match=word):
            PruneThenGenerate(pruner, *reader, **options)


def test_chat_template(plain, reader, prose):
    model, tokenizer = reader
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    try:
        answer = PruneThenGenerate(plain, model, tokenizer, chat=True)(
            prose, "Why?", rate=0.3, query_aware=False, max_new_tokens=2
        )
    finally:
        tokenizer.chat_template = None
    wanted = len(tokenizer(f"[{answer.pruned.text}\n\nWhy?]>").input_ids)
    assert answer.prompt_tokens == wanted


def test_shipped_model_is_the_default_or_says_what_is_missing(monkeypatch, tmp_path, checkpoints, prose):
    import shutil

    from distill.pruning import Distill

    monkeypatch.setattr("distill.pruning.loading.resources.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="ships no small model"):
        shipped_model()
    shutil.copytree(checkpoints.llama, tmp_path / "llama")
    result = Distill(ner=None).compress(prose, 0.5)
    assert result.scorer == "self-information(the shipped small model)" and result.tokens <= result.budget


def test_megabyte_of_one_line():
    from distill.pruning import Distill

    pruner = Distill(scorer="baseline", ner="capitals")
    for text in ("lorem ipsum dolor sit amet " * 37_100, "x" * 1_000_000):
        result = pruner.compress(text, 0.5)
        assert len(text) >= 1_000_000 and 0 < result.tokens <= result.budget and not result.over_budget


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ([1], r"texts\[0\]"),
        ([None], r"texts\[0\]"),
        (["a", "\ud800"], "surrogate"),
        (7, "texts: got 7; allowed are lists"),
    ],
)
def test_bad_texts(default, texts, word):
    with pytest.raises(ValueError, match=word):
        default.compress_prompt(texts, 0.5)


def test_the_application_of_the_environment(tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("dotenv")
    from starlette.testclient import TestClient

    from distill.serving.environment import app_from_environment

    for name in ("DISTILL_MODEL_PATH", "DISTILL_DEVICE", "DISTILL_UPSTREAM", "DISTILL_RATE", "DISTILL_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    path = tmp_path / ".env"
    path.write_text(f"DISTILL_MODEL_PATH={shipped_model()}\nDISTILL_DEVICE=cpu\n")
    with TestClient(app_from_environment(path)) as http:
        body = {"context": ["The river rose at noon, and nobody was there to see it."], "reduce_rate": 0.5}
        answer = http.post("/compress_prompt", json=body).json()
        assert answer["reports"][0]["rate"] <= 0.5 and "llama" in answer["scorer"]
    path.write_text("DISTILL_UPSTREAM=http://localhost:9/v1\nDISTILL_RATE=many\n")
    with pytest.raises(ValueError, match="DISTILL_RATE: got 'many'"):
        app_from_environment(path)


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0 and capsys.readouterr().out.startswith("distill 0.")
