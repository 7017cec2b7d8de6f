"""`distill generate` and `distill eval` with `--engine vllm`: the same answers as with Transformers."""

from __future__ import annotations

import json

import pytest

from distill.cli import main
from distill.mini import FOLDER

from .harness import vllm

METHOD = "promptdistill:selection_layers=[3],n_topks=[64],scoring=softmax,pooling=max,pooling_kernel=7"


def test_generate(capsys, tmp_path):
    context = tmp_path / "context.txt"
    context.write_text((FOLDER / "story.txt").read_text()[:1500] + " The pass key is 48213. Remember it.")
    words = [
        "--model",
        str(FOLDER / "llama"),
        "--dtype",
        "float32",
        "--max-new-tokens",
        "8",
        "--context",
        str(context),
    ]
    words += ["--question", "What is the pass key? The pass key is", "--method", METHOD]
    printed = {}
    for engine in ("transformers", "vllm"):
        assert main(["generate", *words, "--engine", engine]) == 0
        printed[engine] = capsys.readouterr().out.splitlines()
    assert printed["vllm"][-1].split() == ["engine:", "vllm", vllm.__version__]
    facts = [
        {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines if ":" in line}
        for lines in printed.values()
    ]
    assert printed["vllm"][0] == printed["transformers"][0]
    for name in ("method", "prompt tokens", "kept share", "cache bytes"):
        assert facts[0][name] == facts[1][name]
    assert main(["generate", *words, "--engine", "vllm", "--attention", "sdpa"]) == 2


@pytest.mark.parametrize("edition", ["default", "promptdistill"])
def test_eval(tmp_path, edition):
    words = ["eval", "needle", "--model", str(FOLDER / "llama"), "--cpu", "--dtype", "float32", "--needles", "1"]
    words += ["--data-path", str(FOLDER / "story.txt"), "--s_len", "600", "--e_len", "900", "--n-lengths", "2"]
    words += ["--n-depths", "4", "--output", str(tmp_path), "--edition", edition]
    if edition == "promptdistill":
        words += ["--selection-layers", "3", "--n-topks", "64"]
        words += ["--policy-args", "scoring=softmax,pooling=max,pooling_kernel=7"]
    records = []
    for engine in ("transformers", "vllm"):
        assert main([*words, "--engine", engine]) == 0
        made = {path.name.endswith("--vllm"): path for path in (tmp_path / "needle").iterdir()}
        lines = [json.loads(line) for line in next(made[engine == "vllm"].glob("*.jsonl")).read_text().splitlines()]
        assert any(line.get("header", {}).get("engine") == f"vllm {vllm.__version__}" for line in lines) == (
            engine == "vllm"
        )
        answers = [line for line in lines if "prediction" in line]
        fields = ("id", "prediction", "prompt_tokens", "new_tokens")
        records.append([[*(one[name] for name in fields), one["cost"]["cache_bytes"]] for one in answers])
    assert records[0] == records[1] and len(records[0]) == 8


def test_eval_refuses(tmp_path, capsys):
    words = ["eval", "needle", "--model", str(FOLDER / "llama"), "--data-path", str(FOLDER / "story.txt"), "--engine"]
    words += ["vllm", "--output", str(tmp_path), "--s_len", "600", "--e_len", "600", "--cpu"]
    for more, name in ((["--protocol", "query-agnostic"], "--protocol"), (["--attention", "eager"], "--attention")):
        assert main([*words, *more]) == 2
        assert f"{name}: got" in capsys.readouterr().err
