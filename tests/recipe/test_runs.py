"""How the small models are trained and measured: losses, runs that go on where they stopped, and tables."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F

from distill.mini.recipe import books, convert, evaluate, guide, start, train

from .conftest import NAMES, WORDS


def test_the_loss_is_cross_entropy():
    torch.manual_seed(0)
    hidden, head = torch.randn(700, 8), torch.randn(30, 8)
    targets, weights = torch.randint(30, (700,)), torch.rand(700)
    ours = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    stock = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    found = 2 * train.SparseLoss.apply(*ours, targets, weights)
    found.backward()
    wanted = 2 * (F.cross_entropy(stock[0] @ stock[1].T, targets, reduction="none") * weights).sum()
    wanted.backward()
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_local_attention_sees_its_block_and_the_one_before():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 24, 4) for _ in range(3))
    ours = guide.local_attention(query, key, value, 6, 0.5)
    i = torch.arange(24)
    mask = (i[:, None] >= i) & (i[:, None] // 6 - i // 6 <= 1)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5))


def test_guided_attention_is_plain_attention_and_its_losses_fall_with_what_they_reward(words):
    torch.manual_seed(0)
    model = start.build(len(words)).eval()
    ids = torch.randint(3, len(words), (1, 40))
    stock = model(ids, use_cache=False).logits
    model.set_attn_implementation(guide.NAME)
    plan = guide.Plan(guides=[guide.Guide(0, 30, 12, 10, 16)])
    guide.set_plan(plan)
    torch.testing.assert_close(model(ids, use_cache=False).logits, stock, rtol=1e-4, atol=1e-4)
    guide.set_plan(guide.Plan())
    assert len(plan.find) == 1 and len(plan.fetch) == len(guide.FETCH)
    query, key = torch.zeros(1, 4, 40, 8), torch.zeros(1, 2, 40, 8)
    query[..., 0], key[:, :, 12, 0] = 1.0, 50.0
    near, far = [guide.Guide(0, 30, 12, 12, 13)], [guide.Guide(0, 30, 13, 13, 14)]
    assert guide._find_loss(query, key, 1.0, near) < 0.1 < 10 < guide._find_loss(query, key, 1.0, far)
    assert (
        guide._fetch_loss(query, key, 1.0, near, (0, 1)) < 0.1 < 10 < guide._fetch_loss(query, key, 1.0, far, (0, 1))
    )


@pytest.mark.parametrize("arch", convert.ARCHITECTURES)
def test_the_same_weights_in_every_architecture(arch, words, tmp_path):
    model = start.build(len(words), seed=3).eval()
    ids = torch.randint(3, len(words), (2, 30))
    with torch.no_grad():
        stock, other = model(ids).logits, convert.convert(model, arch).eval()
        torch.testing.assert_close(other(ids).logits, stock, rtol=1e-5, atol=1e-5)
        convert.export(other, words, tmp_path)
        back = type(other).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        assert back.config.model_type == arch and back.dtype == torch.bfloat16
    for name, parameter in other.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter.to(torch.bfloat16))
    assert back.lm_head.weight is back.get_input_embeddings().weight
    with pytest.raises(ValueError, match="arch: got"):
        convert.convert(other, "gpt")


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(shelf, words, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STEP_TOKENS", 512)
    monkeypatch.setattr(train, "CURRICULUM", ((1.0, {256: 1.0}),))
    monkeypatch.setattr(train, "progress", lambda *_: {"bits_per_byte": 9.0, "passkey@1": 0.0})
    monkeypatch.setattr(books, "vocabulary", lambda texts: (WORDS, NAMES))  # our story has two names

    def run(folder, *options):
        words.save_pretrained(tmp_path / folder)
        return train.Run(train.parser().parse_args(["--out", str(tmp_path / folder), "--tokens", "2048", *options]))

    whole, half = run("whole"), run("half")
    whole.train()
    for _ in range(2):
        half.step()
    half.save()
    half.log(loss=0.0, find=0.0, fetch=0.0)
    half.step()
    half.log(loss=9.0, find=0.0, fetch=0.0)  # and then the run is killed
    half.folder.close()
    again = run("half")
    assert again.steps == 2
    again.train()
    assert again.steps == whole.steps == 4 and again.tokens == 2048
    assert all(torch.equal(p, again.model.get_parameter(n)) for n, p in whole.model.named_parameters())
    logged = (tmp_path / "half" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [2, 4] and json.loads(logged[0])["loss"] == 0.0
    assert (tmp_path / "half" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "half" / "model" / "model.safetensors").exists()
    for option, value, before in (("seed", "1", "0"), ("tokens", "4096", "2048.0"), ("init", "x", "None")):
        with pytest.raises(ValueError, match=rf"{option}: got .*{value}.*; .* holds a run with {before}"):
            run("half", f"--{option}", value)
    assert run("half", "--every", "1").steps == 4


def test_a_run_refuses_what_makes_no_run(shelf, words, tmp_path):
    def run(*options):
        return train.Run(train.parser().parse_args(["--out", str(tmp_path / "out"), *options]))

    for option, value in (
        ("tokens", "0"), ("rate", "0"), ("find", "-1"), ("fetch", "nan"), ("scale", "0"), ("min-length", "100"),
        ("min-length", "-128"), ("min-length", "16384"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{option.replace('-', '_')}: got {value}.*; allowed are "):
            run(f"--{option}={value}")
    assert not (tmp_path / "out").exists()
    model = start.build(len(words) + 8)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"init: got .*model; allowed is the folder of a model with its tokenizer"):
        run("--init", str(tmp_path / "model"))
    words.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"init: got .*, a model of \d+ tokens with a tokenizer of \d+; allowed are equal"
    ):
        run("--init", str(tmp_path / "model"))


def test_a_gradient_that_is_no_number_never_reaches_the_weights(shelf, words, tmp_path, monkeypatch):
    words.save_pretrained(tmp_path)
    monkeypatch.setattr(books, "vocabulary", lambda texts: (WORDS, NAMES))
    monkeypatch.setattr(train, "STEP_TOKENS", 512)
    run = train.Run(train.parser().parse_args(["--out", str(tmp_path), "--tokens", "2048"]))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    honest = train.loss_of
    monkeypatch.setattr(train, "loss_of", lambda *a: [loss * float("nan") for loss in honest(*a)])
    with pytest.raises(ArithmeticError, match="the gradient is nan after 0 steps"):
        run.step()
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


def test_the_evaluation_prints_its_tables(shelf, words, tmp_path, monkeypatch, capsys):
    convert.export(start.build(len(words)), words, tmp_path / "model")
    command = ["evaluate", "skills", "depths", "layers", "sensitivity", "--model", str(tmp_path / "model")]
    command += ["--samples", "2", "--lengths", "300", "200", "--tasks", "passkey", "--shares", "1/8", "0.3"]
    monkeypatch.setattr(evaluate, "OTHER", 300)
    monkeypatch.setattr(evaluate, "BUDGETED", 300)
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "out")])
    evaluate.main()
    printed = capsys.readouterr().out
    assert "| method | 1/8 | 3/10 |" in printed and "| passkey | 1/90000 | 0.000 | 0.000 | 0.000 |" in printed
    assert "| task | depth | 200 | 300 |" in printed
    parts = ("skills", "depths", "layers", "sensitivity")
    found = {part: json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in parts}
    assert all((tmp_path / "out" / f"{part}.md").read_text() in printed for part in parts)
    assert found["skills"] == {"n": 2, "right": {"passkey": {"300": 0, "200": 0, "other": 0}}}
    assert found["depths"]["passkey"]["lengths"] == [200, 300] and len(found["layers"]["passkey"]) == 7
    assert (tmp_path / "out" / "depths-passkey.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["layers", "--shares", "1/2"], "--shares: layers would not read it"),
        (["language", "sensitivity", "--lengths", "512"], "--lengths: language and sensitivity would not read it"),
        (["skills", "--lengths", "512", "512"], "--lengths: got .*; allowed are different ones"),
        (["looks"], "parts: got looks; allowed are skills, depths, language, layers, sensitivity"),
        (["--arch", "phi3", "--model", "x"], "not allowed with argument"),
        (["--arch", "gpt"], "invalid choice: 'gpt'"),
        (["--shares", "2"], "invalid share_of value: '2'"),
    ],
)
def test_the_evaluation_refuses_what_no_part_reads(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", *options])
    with pytest.raises(SystemExit):
        evaluate.parse()
    assert re.search(message, capsys.readouterr().err)


def test_a_model_is_asked_no_more_than_it_can_read(shelf, words, tmp_path, monkeypatch):
    convert.export(start.build(len(words)), words, tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate", "skills", "--model", str(tmp_path), "--lengths", "9000"])
    with pytest.raises(ValueError, match="length: got 9000; allowed are up to 8192"):
        evaluate.main()
