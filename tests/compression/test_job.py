"""`distill shrink`: killed anywhere and continued it writes the same file; what it says is what is there."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct

import pytest
import torch

import distill
from distill.cli import main
from distill.compression import LatentCache, spec_of
from distill.compression import job as job_module
from distill.compression.recover import Recipe, Recovery, distillation_loss, factor_parameters
from distill.training import RunFolder, write_whole

from ..tiny import prompt, tiny

SMALL = ["--windows", "4", "--length", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The shipped mini-llama, cut to two layers so that a run takes seconds, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    found, tokenizer = distill.mini("llama")
    found.model.layers = found.model.layers[:2]
    found.config.num_hidden_layers = 2
    found.config.layer_types = None
    found.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text((distill.mini.FOLDER / "story.txt").read_text()[:6000])
    return file


def shrink(model, text, out, *more):
    return main(["shrink", "--model", str(model), "--calibration", str(text), "-o", str(out), *SMALL, *more])


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def done(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    assert shrink(model, text, out, "--ratio", "1.6", "--config", "recovered", "--recover-steps", "3") == 0
    return out


def test_the_summary_is_what_is_there(done, model, text, capsys):
    summary = json.loads((done / "summary.json").read_text())
    size = (done / "model.safetensors").stat().st_size
    assert summary["bytes"]["after"] == size <= summary["bytes"]["target"] and summary["target met"]
    assert summary["ratio"] == summary["bytes"]["before"] / size >= 1.6
    assert [receipt["transform"] for receipt in summary["receipts"]] == ["low_rank", "recover"]
    again = distill.load(done)
    assert sum(p.numel() for p in again.parameters()) == summary["weights"]["after"]["parameters"]
    assert spec_of(again) == again.config.compression and again.config.compression["low_rank"]
    assert f"{summary['ratio']:.3f}x" in (done / "summary.md").read_text()
    assert f"{summary['ratio']:.3f}x" in (done / "summary.html").read_text()
    assert not (done / "work").exists()
    assert main(["shrink", "check", str(done)]) == 0
    assert "logits: bit for bit" in capsys.readouterr().out
    more = ["--ratio", "1.6", "--config", "recovered", "--recover-steps", "3"]
    assert shrink(model, text, done, *more) == 0 and "finished already" in capsys.readouterr().out
    assert shrink(model, text, done, *more, "--floor", "4") == 2
    assert "the result of another run" in capsys.readouterr().err


def test_a_finished_run_is_handed_to_trackers(done, model, text, tmp_path, capsys):
    """TensorBoard's files hold the figures of the summary, and each loss that was logged."""
    shutil.copytree(done, tmp_path / "copy")
    out, more = tmp_path / "copy", ["--ratio", "1.6", "--config", "recovered", "--recover-steps", "3"]
    assert shrink(model, text, out, *more, "--report-to", "nothing") == 2
    assert "report_to: got 'nothing'; allowed are" in capsys.readouterr().err and not (out / "shrink").exists()
    summary = json.loads((out / "summary.json").read_text())
    summary["receipts"][1]["details"]["losses"] = [[20, 0.5], [40, 0.25]]
    (out / "summary.json").write_text(json.dumps(summary))
    assert shrink(model, text, out, *more, "--report-to", "tensorboard") == 0
    found = dict(events(out / "shrink"))
    assert found["recover/loss", 20] == 0.5 and found["recover/loss", 40] == 0.25
    for step, side in ((0, "before"), (41, "after")):
        assert found["weights/file_bytes", step] == pytest.approx(summary["bytes"][side])
        assert found["weights/perplexity", step] == pytest.approx(summary["quality"][side]["token"])


def events(folder):
    """`((name, step), number)` of each figure in TensorBoard's files: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                yield (value.tag, event.step), value.simple_value


def test_check_finds_what_is_wrong(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-400] ^= 0x40
    file.write_bytes(bytes(data))
    assert main(["shrink", "check", str(tmp_path / "copy")]) == 1
    assert "WRONG  model.safetensors" in capsys.readouterr().out
    assert main(["shrink", "check", str(tmp_path)]) == 2
    assert main(["shrink", "look", str(done)]) == 2


def test_killed_at_every_write_and_continued_is_the_same_file(done, model, text, tmp_path, monkeypatch):
    """Each file that a phase leaves is a place to be killed at: before it is written, and after."""

    class Killed(BaseException):
        pass

    more = ["--ratio", "1.6", "--config", "recovered", "--recover-steps", "3"]
    writes = 0
    place = 0
    while True:
        out, count = tmp_path / str(place), 0

        def dying(file, write, at=place):
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            write_whole(file, write)

        monkeypatch.setattr(job_module, "write_whole", dying)
        if place == 0:
            assert shrink(model, text, out, *more) == 0
            writes = count
            assert weights(out) == weights(done) and writes >= 6
        else:
            with pytest.raises(Killed):
                shrink(model, text, out, *more)
            monkeypatch.setattr(job_module, "write_whole", write_whole)
            assert shrink(model, text, out, *more) == 0
            assert weights(out) == weights(done)
        place += 1
        if place > writes:
            break


def test_a_smaller_cache_is_written_continued_and_used(model, text, tmp_path, monkeypatch):
    more = ["--ratio", "1.3", "--config", "cache", "--ranks", "uniform"]
    assert shrink(model, text, tmp_path / "a", *more) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    after = summary["weights"]["after"]
    assert after["latent_kv_bytes"] == after["kv_bytes"] / 2 and summary["target met"]

    def dying(file, write):
        if file.name == "low_rank-0000.safetensors":
            raise KeyboardInterrupt
        write_whole(file, write)

    monkeypatch.setattr(job_module, "write_whole", dying)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, text, tmp_path / "b", *more)
    monkeypatch.setattr(job_module, "write_whole", write_whole)
    assert shrink(model, text, tmp_path / "b", *more) == 0 and weights(tmp_path / "b") == weights(tmp_path / "a")
    again, ids = distill.load(tmp_path / "a"), prompt(30, 2)
    asked = {"max_new_tokens": 8, "pad_token_id": 0}
    expected = again.generate(ids, **asked)
    assert torch.equal(again.generate(ids, past_key_values=LatentCache(again), **asked), expected)


def test_targets_and_floors_that_cannot_be_kept_stop_the_run(model, text, tmp_path, capsys):
    assert shrink(model, text, tmp_path / "a", "--bytes", "10KB") == 2
    shown = capsys.readouterr()
    assert "bytes: got 10,000; allowed here are" in shown.err and "every rank at its floor" in shown.err
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert shrink(model, text, tmp_path / "b", "--ratio", "1.8", "--method", "plain", "--quality", "1.0") == 1
    assert "quality: got a perplexity of" in capsys.readouterr().out
    assert not (tmp_path / "b" / "model.safetensors").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    assert shrink(model, text, tmp_path / "c", "--ratio", "1.8") == 2
    assert main(["shrink", "--model", str(model), "--ratio", "2", "-o", str(tmp_path / "d")]) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_and_a_factorised_embedding(dtype, model, text, tmp_path):
    more = ["--ratio", "1.5", "--config", "hybrid", "--dtype", dtype]
    assert shrink(model, text, tmp_path / "out", *more) == 0
    assert main(["shrink", "check", str(tmp_path / "out")]) == 0
    found = distill.load(tmp_path / "out", dtype="auto")
    assert found.dtype == getattr(torch, dtype)


def test_student_and_teacher_that_are_the_same_have_no_loss():
    model, ids = tiny("llama"), prompt(40, 2)
    loss = distillation_loss(model, model, ids, Recipe(hidden=1.0))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("arch", ["llama", "granite", "gemma2"])
@torch.no_grad()
def test_the_first_loss_is_the_divergence_of_the_untrained_student(arch):
    student, teacher, ids = tiny(arch, seed=1), tiny(arch, seed=2), prompt(300, 2)
    one, other = (model(ids).logits[:, :-1].float().log_softmax(-1) for model in (student, teacher))
    expected = (other.exp() * (other - one)).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, ids, Recipe()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("lora", "restart"), [(0, 0), (4, 0), (2, 10)])
def test_recovery_lowers_the_loss_and_keeps_the_size(lora, restart, tmp_path):
    from distill.compression.low_rank import embedding_factorization, low_rank
    from distill.compression.receipts import weigh

    ids = prompt(64, 4)
    student, teacher = tiny("llama", tie_word_embeddings=True), tiny("llama", tie_word_embeddings=True)
    low_rank(student, 8, ids)
    embedding_factorization(student, 24)
    before, spec = weigh(student), spec_of(student)
    assert len(factor_parameters(student)) == 2 * 28 + 2
    recipe = Recipe(rate=3e-3, lora=lora, restart=restart)
    run = Recovery(student, teacher, ids, 30, RunFolder(tmp_path, {}), recipe)
    first = float(distillation_loss(student, teacher, ids, recipe).detach())
    run.train()
    run.finish()
    assert float(distillation_loss(student, teacher, ids, recipe).detach()) < 0.9 * first
    after = weigh(student)
    assert spec_of(student) == spec and (after.bytes, after.parameters) == (before.bytes, before.parameters)
    with pytest.raises(ValueError, match="recover: got a model without factors"):
        Recovery(teacher, student, ids, 3, RunFolder(tmp_path / "other", {}), Recipe())


def test_restarted_adapters_add_up_to_more_than_their_rank_and_go_on_after_a_kill(tmp_path):
    from distill.compression.low_rank import low_rank

    ids, recipe = prompt(64, 4), Recipe(rate=3e-3, lora=1, restart=4)

    def run(folder):
        student, teacher = tiny("llama"), tiny("llama")
        low_rank(student, 8, ids)
        return student, Recovery(student, teacher, ids, 12, RunFolder(folder, {}), recipe)

    whole, first = run(tmp_path / "whole")
    before = {n.replace(".base_layer", ""): p.detach().clone() for n, p in factor_parameters(whole).items()}
    first.train()
    first.finish()
    after = factor_parameters(whole)
    ranks = [torch.linalg.matrix_rank(new - before[name], rtol=1e-4) for name, new in after.items()]
    assert max(ranks) > 1  # one adapter alone changes a matrix by rank 1
    _, killed = run(tmp_path / "killed")
    for _ in range(6):
        killed.step()
    killed.save()
    killed.folder.close()
    again, second = run(tmp_path / "killed")
    assert second.steps == 6
    second.train()
    second.finish()
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    rates = [recipe.rate_at(step, 100) for step in range(100)]
    assert rates[0] < rates[8] and max(rates) <= recipe.rate and rates[-1] < 0.01 * recipe.rate
    half, teacher = tiny("llama", dtype=torch.bfloat16), tiny("llama", dtype=torch.bfloat16)
    low_rank(half, 8, ids)
    small = Recovery(half, teacher, ids, 9, RunFolder(tmp_path / "half", {}), Recipe(rate=1e-4, lora=1, restart=2))
    begun = [weight.clone() for weight in small.merged]
    small.train()  # steps too small for bfloat16 are not lost at each restart
    moved = [(weight != old).float().mean() for weight, old in zip(small.merged, begun, strict=True)]
    assert min(moved) > 0.9
    with pytest.raises(ValueError, match="restart: got 5 without lora"):
        Recipe(restart=5)
    with pytest.raises(ValueError, match="rate: got 0; allowed are numbers above 0"):
        Recipe(rate=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_written_weighed_and_read_again(bits, model, text, tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    assert shrink(model, text, tmp_path / "alone", "--bits", str(bits), "--dtype", "bfloat16") == 0
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    size = (tmp_path / "alone" / "model.safetensors").stat().st_size
    assert [receipt["transform"] for receipt in summary["receipts"]] == ["quantize"]
    assert summary["bytes"]["after"] == size < summary["bytes"]["before"] * (0.8 if bits == 8 else 0.65)
    weights = summary["weights"]
    assert weights["after"]["parameters"] == weights["before"]["parameters"]
    assert weights["after"]["flops"] == weights["before"]["flops"]
    assert main(["shrink", "check", str(tmp_path / "alone")]) == 0
    assert "logits: bit for bit" in capsys.readouterr().out
    more = ["--bits", str(bits), "--ratio", "1.3", "--ranks", "uniform", "--dtype", "bfloat16"]
    if bits == 4:
        assert shrink(model, text, tmp_path / "both", *more) == 2
        assert "bits: got 4 with a target; allowed is 8, or 4 alone" in capsys.readouterr().err
        return
    assert shrink(model, text, tmp_path / "both", *more) == 0
    both = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert both["bytes"]["after"] < size and both["target met"]
    assert main(["shrink", "check", str(tmp_path / "both")]) == 0
    assert shrink(model, text, tmp_path / "other", "--bits", "3") == 2
    assert "bits: got 3; allowed are 8 and 4" in capsys.readouterr().err


def test_norms_of_a_quantized_model_are_taught_and_add_no_byte(model, text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("bitsandbytes")
    common = ["--dtype", "bfloat16", "--bits", "4"]
    taught = [*common, "--config", "int4", "--recover-steps", "24"]
    assert shrink(model, text, tmp_path / "alone", *common) == 0
    assert shrink(model, text, tmp_path / "taught", *taught) == 0
    alone, found = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("alone", "taught"))
    assert [receipt["transform"] for receipt in found["receipts"]] == ["quantize", "recover"]
    assert found["weights"]["after"]["bytes"] == alone["weights"]["after"]["bytes"]
    assert found["plan"] == alone["plan"]  # nothing is factored
    assert found["quality"]["after"]["token"] < alone["quality"]["after"]["token"]  # on text that was not read
    assert main(["shrink", "check", str(tmp_path / "taught")]) == 0

    for at in ("after.json", "summary.json"):

        def dying(file, write, at=at):
            if file.name == at:
                raise KeyboardInterrupt
            write_whole(file, write)

        monkeypatch.setattr(job_module, "write_whole", dying)
        with pytest.raises(KeyboardInterrupt):
            shrink(model, text, tmp_path / at, *taught)
        monkeypatch.setattr(job_module, "write_whole", write_whole)
        assert shrink(model, text, tmp_path / at, *taught) == 0
        assert weights(tmp_path / at) == weights(tmp_path / "taught")
    capsys.readouterr()
    assert shrink(model, text, tmp_path / "other", "--config", "int4", "--lora", "4") == 2
    assert "lora: got 4 without a target" in capsys.readouterr().err
