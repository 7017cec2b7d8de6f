"""The commands `distill methods` and `distill generate`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill import policies
from distill.cli import main

from ..tiny import VOCABULARY, tiny_pair


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A stock checkpoint with a tokenizer of single characters."""
    path = tmp_path_factory.mktemp("checkpoint")
    characters = {chr(33 + i): i for i in range(VOCABULARY - 3)} | {"<s>": VOCABULARY - 2, "Ġ": VOCABULARY - 3}
    tokenizer = Tokenizer(models.BPE({**characters, "<unk>": VOCABULARY - 1}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>").save_pretrained(path)
    tiny_pair("llama")[0].save_pretrained(path)
    return str(path)


@pytest.fixture
def context(tmp_path):
    path = tmp_path / "context.txt"
    path.write_text("The sky is blue. " * 6)
    return str(path)


def figures(text):
    """What stands behind the answer, `name: value`."""
    return dict(re.findall(r"^([a-z ]+): +(.+)$", text, re.MULTILINE))


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    names = re.findall(r"^\S+$", listed, re.MULTILINE)
    assert names == policies() and "(budget=1024, window_size=32, kernel_size=5" in listed
    for block in listed.split("\n\n"):
        assert "https://" in block or block.startswith(("compose", "random")), block
    assert main(["methods", "pyramidkv"]) == 0
    shown = capsys.readouterr().out
    assert "beta: the larger, the steeper" in shown and "window_size: last tokens of the prompt" in shown


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--method", "none"], lambda n: n),
        (["--method", "snapkv", "--budget", "20", "--set", "window_size=4"], lambda n: 20),
        (
            ["--method", "h2o", "--budget", "0.5", "--set", "recent_size=4", "--prefill-chunk-size", "16"],
            lambda n: n // 2,
        ),
        (["--method", "gemfilter", "--budget", "20", "--set", "layer=1"], lambda n: 20),
        (["--method", "decoding", "--budget", "20", "--set", "policy=knorm"], lambda n: n),
    ],
)
def test_generate_answers_and_reports(arguments, kept, checkpoint, context, capsys):
    call = ["generate", "--model", checkpoint, "--context", context, "--question", "What is blue?", "--device", "cpu"]
    assert main([*call, "--max-new-tokens", "5", *arguments]) == 0
    out = capsys.readouterr().out
    shown = figures(out)
    assert shown["method"] == arguments[1] and shown["prompt tokens"].isdigit()
    tokens = int(shown["prompt tokens"])
    assert shown["kept share"] == f"{kept(tokens) / tokens:.1%} of the prompt's cache" and tokens > 100
    assert re.match(r"[\d.]+ s", shown["time to first token"]) and float(shown["tokens per second"]) > 0
    assert re.match(r"[\d,]+ \([\d,]+ after the prompt, where stock has [\d,]+\)", shown["cache bytes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "snapvk"], "method: got 'snapvk'; allowed are default, none, .*snapkv"),
        (["--method", "snapkv", "--budget", "0"], "budget: got '0'; allowed are integers"),
        (["--method", "snapkv", "--budget", "many"], "budget: got 'many'; allowed are integers"),
        (["--method", "snapkv", "--set", "window"], "method: got 'window' as arguments; allowed is name=value"),
        (["--method", "none", "--budget", "3"], "budget: got a value for none, the stock model"),
        (["--method", "promptdistill", "--budget", "3"], "selection_layers: got nothing"),
        (["--method", "gemfilter", "--set", "layer=9"], "layer: got 9; allowed are layers 0 to 3"),
        (["--context", "nowhere.txt"], "context: got nowhere.txt, which is no file"),
        (["--question", ""], "context, question: got neither"),
    ],
)  # fmt: skip
def test_generate_says_what_is_wrong(arguments, message, checkpoint, capsys):
    assert main(["generate", "--model", checkpoint, "--question", "Why?", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_documentation_names_every_method():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == policies()
