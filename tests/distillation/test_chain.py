"""Students: what they are taught by, how they are cut out of their teacher, and the chain of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import distill
from distill.distillation import chain as room
from distill.distillation import shown as shown_room
from distill.distillation.chain import blocks_of, chain, check_same_tokens, cut_out, described, surprise
from distill.distillation.lessons import Lessons, StudentTraining
from distill.distillation.shown import show
from distill.distillation.students import layer_influence, shallower, thinner
from distill.mini.passkey import story
from distill.training import RunFolder
from distill.training.losses import best_of, divergence, divergence_from_best, in_pieces

SHORT = Lessons(tokens=6 * 2 * 24, length=24, batch=2, rate=1e-3)
TEXT = story()[:9000]


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForCausalLM.from_pretrained(distill.mini.path("llama"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def blocks():
    return blocks_of(AutoTokenizer.from_pretrained(distill.mini.path("llama")), [TEXT], SHORT.length)[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 0.99), st.floats(0.5, 3))
def test_divergences(seed, beta, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, other = (3 * torch.randn(4, 9, generator=generator) for _ in range(2))
    q, p = ((logits.double() / temperature).softmax(-1) for logits in (student, other))
    m = beta * p + (1 - beta) * q
    wanted = {
        "forward": (p * (p / q).log()).sum(-1),
        "reverse": (q * (q / p).log()).sum(-1),
        "jsd": beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1),
    }
    for kind, value in wanted.items():
        found = divergence(student, other, kind, beta, temperature)
        torch.testing.assert_close(found, value.float(), atol=1e-5, rtol=1e-4)
        assert bool((divergence(other, other, kind, beta, temperature).abs() < 1e-5).all())
    whole = divergence(student, other)
    torch.testing.assert_close(divergence_from_best(student, *best_of(other, 9)), whole, atol=1e-5, rtol=1e-4)
    last = torch.zeros(4)
    for count in (1, 3, 6):  # the more tokens are told apart, the more of the divergence is seen
        found = divergence_from_best(student, *best_of(other, count))
        assert bool((found >= last - 1e-5).all()) and bool((found <= whole + 1e-5).all())
        last = found


def test_pieces_change_neither_loss_nor_gradient():
    rows, head = torch.randn(11, 6, requires_grad=True), torch.randn(13, 6, requires_grad=True)
    wanted = torch.randint(0, 13, (11,))

    def loss(part, labels):
        return F.cross_entropy(part @ head.T, labels, reduction="none")

    whole = loss(rows, wanted).sum()
    pieces = in_pieces(loss, rows, wanted, size=4)
    torch.testing.assert_close(pieces, whole)
    for a, b in zip(torch.autograd.grad(whole, [rows, head]), torch.autograd.grad(pieces, [rows, head]), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_student_is_its_teacher_without_some_layers(teacher, blocks):
    before = room.fingerprint(teacher)
    everything = shallower(teacher, range(8))
    assert torch.equal(everything(blocks[:2]).logits, teacher(blocks[:2]).logits)
    student = shallower(teacher, [0, 3, 7])
    hidden = teacher.model.embed_tokens(blocks[:1])
    rotary = teacher.model.rotary_emb(hidden, torch.arange(SHORT.length)[None])
    for layer in (0, 3, 7):
        hidden = teacher.model.layers[layer](hidden, position_embeddings=rotary)
    torch.testing.assert_close(student(blocks[:1]).logits, teacher.lm_head(teacher.model.norm(hidden)))
    assert student.config.num_hidden_layers == 3 and teacher.config.num_hidden_layers == 8
    assert room.fingerprint(teacher) == before != room.fingerprint(student)
    assert not any(layer._forward_hooks for layer in teacher.model.layers)
    for keep in ([], [3, 2], [0, 8], [1, 1]):
        with pytest.raises(ValueError, match="keep: got"):
            shallower(teacher, keep)


@torch.no_grad()
def test_influence_is_one_minus_the_cosine(teacher, blocks):
    states = teacher(blocks[:1], output_hidden_states=True).hidden_states
    wanted = [1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(states[:-1])]
    torch.testing.assert_close(layer_influence(teacher, blocks[:1])[:-1], torch.stack(wanted))


@torch.no_grad()
def test_narrower_mlps_keep_the_neurons_that_are_used(teacher, blocks):
    whole = thinner(teacher, 512, blocks[:2])
    torch.testing.assert_close(whole(blocks[:1]).logits, teacher(blocks[:1]).logits)
    changed = shallower(teacher, range(8))
    for layer in changed.model.layers:  # neurons that do nothing are the first to go
        layer.mlp.up_proj.weight[::2] = 0
    half = thinner(changed, 256, blocks[:2])
    torch.testing.assert_close(half(blocks[:1]).logits, changed(blocks[:1]).logits, atol=1e-4, rtol=1e-4)
    assert half.model.layers[0].mlp.down_proj.weight.shape == (256, 256)
    with pytest.raises(ValueError, match="intermediate: got 513"):
        thinner(teacher, 513, blocks[:2])


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher, blocks, tmp_path):
    training = StudentTraining(RunFolder(tmp_path, {}), shallower(teacher, range(8)), teacher, blocks, SHORT)
    assert training.losses(torch.arange(2))["divergence"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["forward", "jsd"])
def test_the_first_loss_is_that_of_the_untaught_student(teacher, blocks, tmp_path, kind):
    lessons = Lessons(**vars(SHORT) | {"kind": kind, "hidden": 0.5, "temperature": 2.0})
    student = shallower(teacher, [0, 7])
    training = StudentTraining(RunFolder(tmp_path, {}), student, teacher, blocks, lessons)
    ids = blocks[lessons.numbers(0, len(blocks))]
    with torch.no_grad():
        ours, theirs = student(ids, output_hidden_states=True), teacher(ids, output_hidden_states=True)
        apart = divergence(ours.logits[:, :-1].flatten(0, 1), theirs.logits[:, :-1].flatten(0, 1), kind, 0.5, 2.0)
        truth = F.cross_entropy(ours.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        hidden = F.mse_loss(ours.hidden_states[-1][:, :-1], theirs.hidden_states[-1][:, :-1])
    first = training.step()
    assert first["divergence"] == pytest.approx(4 * apart.mean().item(), rel=1e-4)
    assert first["truth"] == pytest.approx(truth.item(), rel=1e-4)
    assert first["hidden"] == pytest.approx(hidden.item(), rel=1e-3)  # the linear map begins as the identity


def test_what_a_teacher_has_shown_is_taught_as_by_itself(teacher, blocks, tmp_path, monkeypatch):
    whole = Lessons(**vars(SHORT) | {"best": 4096})  # all of the vocabulary: the same loss, but for 16 bits
    numbers = whole.used(len(blocks))
    assert numbers == sorted({int(n) for step in range(whole.steps) for n in whole.numbers(step, len(blocks))})
    assert Lessons(tokens=10**9).used(7) == list(range(7))
    best_of_teacher, count = shown_room.best_of, 0

    def killed(*args):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return best_of_teacher(*args)

    monkeypatch.setattr(shown_room, "EVERY", 2)
    monkeypatch.setattr(shown_room, "best_of", killed)
    with pytest.raises(KeyboardInterrupt):
        show(teacher, blocks, numbers, 4096, tmp_path / "shown")
    shown = show(teacher, blocks, numbers, 4096, tmp_path / "shown")
    assert count == 1 + len(numbers)  # four were done, and noted
    asked = whole.numbers(0, len(blocks))
    logs, indices = shown.of(asked)
    with torch.no_grad():
        wanted = teacher(blocks[asked]).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    torch.testing.assert_close(logs, wanted.gather(-1, indices), atol=0.02, rtol=1e-3)
    losses = [
        StudentTraining(RunFolder(tmp_path / str(n), {}), shallower(teacher, [0, 7]), one, blocks, whole).losses(asked)
        for n, one in enumerate((shown, teacher))
    ]
    assert losses[0]["divergence"].item() == pytest.approx(losses[1]["divergence"].item(), rel=0.01)
    made = chain(str(distill.mini.path("llama")), [2], [TEXT], tmp_path / "out", Lessons(**vars(SHORT) | {"best": 8}))
    assert made["stages"][0]["perplexity"] < made["stages"][0]["perplexity_untaught"]
    assert not list((tmp_path / "out").glob("**/*.npy"))
    with pytest.raises(ValueError, match="best: got 8; allowed with another kind"):
        Lessons(best=8, kind="jsd")


def test_a_chain_and_one_that_was_killed(tmp_path, monkeypatch):
    path, layers = str(distill.mini.path("llama")), [4, 2]
    manifest = chain(path, layers, [TEXT], tmp_path / "straight", SHORT)
    assert [stage["layers"] for stage in manifest["stages"]] == layers
    assert all(stage["tokens"] == SHORT.tokens for stage in manifest["stages"])
    assert all(stage["perplexity"] < stage["perplexity_untaught"] for stage in manifest["stages"])
    step, count = StudentTraining.step, 0

    def killed(self):
        nonlocal count
        count += 1
        if count in (4, 11):
            raise KeyboardInterrupt
        found = step(self)
        self.save()
        return found

    monkeypatch.setattr(StudentTraining, "step", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            chain(path, layers, [TEXT], tmp_path / "killed", SHORT)
    again = chain(path, layers, [TEXT], tmp_path / "killed", SHORT)
    assert again == manifest and json.loads((tmp_path / "killed" / "manifest.json").read_text()) == manifest
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "2-2").state_dict() for name in ("straight", "killed")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert "2-2: " in described(manifest)
    with pytest.raises(ValueError, match=r"output: got .*another folder"):
        chain(path, layers, [TEXT], tmp_path / "killed", Lessons(**vars(SHORT) | {"rate": 1e-4}))


def test_two_processes_teach_what_one_does(tmp_path):
    path = str(distill.mini.path("llama"))
    (tmp_path / "text.txt").write_text(TEXT)
    lessons = Lessons(**vars(SHORT) | {"tokens": 3 * 2 * 24, "best": 16})
    one = chain(path, [2], [TEXT], tmp_path / "one", lessons)
    settings = [f"--{name}={value}" for name, value in vars(lessons).items()]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "distill.distillation.chain"]
    asked = [path, "--layers=2", f"--text={tmp_path / 'text.txt'}", f"--output={tmp_path / 'two'}", *settings]
    done = subprocess.run([sys.executable, *launch, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert done.stdout.count("1-2: ") == 1 and two["settings"] == one["settings"]
    assert two["stages"][0]["perplexity"] == pytest.approx(one["stages"][0]["perplexity"], rel=1e-4)
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "1-2").state_dict() for name in ("one", "two")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)
    watching = RunFolder(tmp_path / "two" / "1-2.run", {}, write=False)  # as the second process has it
    before = sorted(path.stat().st_mtime_ns for path in watching.path.iterdir())
    watching.save({}), watching.log({"step": 1}), watching.keep_rows(lambda row: False), watching.close()
    assert (
        sorted(path.stat().st_mtime_ns for path in watching.path.iterdir()) == before and watching.load() is not None
    )


def test_a_stage_below_the_floor_ends_the_chain(tmp_path):
    path = str(distill.mini.path("llama"))
    for _ in range(2):  # also when it is asked again
        manifest = chain(path, [2, 1], [TEXT], tmp_path, SHORT, worst_ratio=1.01)
        assert len(manifest["stages"]) == 1 and manifest["stages"][0]["ratio"] > 1.01
        assert "stopped: 1 more" in described(manifest)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
    ],
)
def test_logits_are_the_model_s_own(model_type, settings, blocks, tmp_path):
    config = AutoConfig.for_model(
        model_type, vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    student, teacher = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    ids = blocks[:2]
    with torch.no_grad():
        ours, theirs = (model(ids).logits[:, :-1].flatten(0, 1) for model in (student, teacher))
    found = StudentTraining(RunFolder(tmp_path, {}), student, teacher, blocks, SHORT).losses(torch.arange(2))
    assert found["divergence"].item() == pytest.approx(divergence(ours, theirs).mean().item(), rel=1e-4)
    assert found["truth"].item() == pytest.approx(F.cross_entropy(ours, ids[:, 1:].flatten()).item(), rel=1e-4)


def test_narrow_students(teacher, blocks):
    student, kept = cut_out(teacher, 3, 100, blocks)
    assert kept[0] == 0 and kept[-1] == 7 and student.config.intermediate_size == 100
    assert student.num_parameters() < teacher.num_parameters() and math.isfinite(surprise(student, blocks[:1])[0])


def test_what_cannot_be_taught(tmp_path):
    path = str(distill.mini.path("llama"))
    ours, theirs = (AutoTokenizer.from_pretrained(path) for _ in range(2))
    check_same_tokens(ours, theirs)
    theirs.add_tokens(["<unheard of>"])
    with pytest.raises(ValueError, match=r"student: got a tokenizer that differs in .*unheard"):
        check_same_tokens(ours, theirs)
    with pytest.raises(ValueError, match="layers, intermediate: got"):
        chain(path, [2, 4], [TEXT], tmp_path, SHORT)
    with pytest.raises(ValueError, match=r"text: got \d+ blocks of 512 tokens"):
        chain(path, [2], [TEXT], tmp_path)
    with pytest.raises(ValueError, match="truth: got 2"):
        Lessons(truth=2)
    with pytest.raises(ValueError, match="kind: got 'kl'"):
        Lessons(kind="kl")
