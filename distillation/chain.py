"""A chain of students: each is cut out of its teacher, taught by it, measured, and is the next one's teacher.

    python -m distill.distillation.chain TEACHER --layers 15 8 --text book.txt notes.txt.gz --tokens 400000 -o OUT

Every stage is a checkpoint of Transformers in a folder of its own. `OUT/manifest.json` says what each was taught by,
on what, for how long, and how well it predicts text that was kept apart. A stage that falls below the floor
(`--worst-ratio`) ends the chain. A run that was killed goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.distillation.scorer import read
from distill.distillation.shown import Shown, show
from distill.distillation.students import layer_influence, shallower, thinner
from distill.patches.checks import check_choice, check_integer, check_number
from distill.training import RunFolder, Training, write_whole
from distill.training.losses import KINDS, divergence, divergence_from_best, in_pieces, scaled_logits

MEASURED = 8  # blocks by which layers and neurons are measured
APART = 16  # blocks that are kept apart, for perplexity


@dataclass(frozen=True)
class Lessons:
    """How students are taught.

    Args:
        tokens: that each student is taught on.
        length: tokens of a block.
        batch: blocks a step.
        rate: learning rate at its height; it rises over the first tenth of the steps, and falls to a tenth.
        kind: the divergence, see `distill.training.losses.divergence`.
        beta, temperature: of the divergence, whose square the temperature's gradient is multiplied by.
        truth: weight of the cross entropy with the text itself; the divergence has the rest. With 1 there is no
            teacher.
        hidden: weight of the mean squared error between the last hidden states, the student's through a linear map
            that is taught with it; 0 for none.
        best: how many of the teacher's most likely tokens are taught, from a file that is written before the lessons
            (`distill.distillation.shown`); all others are one class. 0: all tokens, by the teacher beside the student.
        seed: of the order of blocks.
    """

    tokens: int = 400_000
    length: int = 512
    batch: int = 4
    rate: float = 3e-4
    kind: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    truth: float = 0.2
    hidden: float = 0.0
    best: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("length", 8), ("batch", 1), ("best", 0), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        check_number("rate", self.rate, 1e-9, 1)
        check_choice("kind", self.kind, KINDS)
        check_number("beta", self.beta, 0, 1)
        check_number("truth", self.truth, 0, 1)
        check_number("temperature", self.temperature, 1e-3, 1e3)
        check_number("hidden", self.hidden, 0, 1e6)
        if self.best and (self.kind, self.temperature, self.hidden) != ("forward", 1.0, 0.0):
            raise ValueError(f"best: got {self.best}; allowed with another kind, temperature or hidden is 0")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.length * self.batch))

    def numbers(self, step: int, count: int) -> Tensor:
        """`(batch,)`: which of `count` blocks a step is taught: all in a random order, then in another one."""
        places = range(step * self.batch, (step + 1) * self.batch)
        orders = {
            turn: torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 10_007 + turn))
            for turn in {place // count for place in places}
        }
        return torch.stack([orders[place // count][place % count] for place in places])

    def used(self, count: int) -> list[int]:
        """The blocks, of `count`, that are taught at all, rising."""
        if self.steps * self.batch >= count:
            return list(range(count))
        return sorted({int(number) for step in range(self.steps) for number in self.numbers(step, count)})


def check_same_tokens(teacher: Any, student: Any) -> None:
    """Raises a `ValueError` unless two tokenizers give every token the same id: others teach nonsense."""
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours != theirs:
        wrong = sorted(set(ours.items()) ^ set(theirs.items()))[:3]
        raise ValueError(f"student: got a tokenizer that differs in {wrong}; allowed is that of the teacher")


def blocks_of(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """The texts as blocks `(blocks, length)` of token ids: those to learn from, and those kept apart.

    Of each text every `n`-th block is kept apart, so that there are about `APART` of these.

    Raises:
        ValueError: texts of fewer than `3 * APART` blocks.
    """
    rows = []
    for text in texts:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        rows.append(ids[: len(ids) // length * length].view(-1, length))
    found = torch.cat(rows)
    if len(found) < 3 * APART:
        raise ValueError(f"text: got {len(found)} blocks of {length} tokens; allowed are {3 * APART} or more")
    apart = torch.zeros(len(found), dtype=torch.bool)
    apart[:: len(found) // APART] = True
    return found[~apart], found[apart]


@torch.no_grad()
def surprise(model: Any, blocks: Tensor) -> list[float]:
    """The mean of -log p of the tokens of each block, in nats; perplexity is the exponential of their mean."""
    found = []
    for ids in blocks:
        logits = model(ids[None].to(model.device), use_cache=False).logits[0, :-1].float()
        found.append(float(F.cross_entropy(logits, ids[1:].to(logits.device))))
    return found


class StudentTraining(Training):
    """Teaches one student.

    Args:
        folder: of the run.
        student: is trained, in place.
        teacher: stays as it is; or what it has `Shown`; `None` if `lessons.truth` is 1.
        blocks: `(blocks, length)` ids.
    """

    unit = "tokens"

    def __init__(self, folder: RunFolder, student: Any, teacher: Any, blocks: Tensor, lessons: Lessons) -> None:
        super().__init__(folder, lessons.steps * lessons.batch * lessons.length)
        self.student, self.teacher, self.blocks, self.lessons = student.train(), teacher, blocks, lessons
        weights = list(student.parameters())
        self.bridge: torch.nn.Linear | None = None
        if lessons.hidden and teacher is not None:
            sizes = student.config.hidden_size, teacher.config.hidden_size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(lessons.seed)
                self.bridge = torch.nn.Linear(*sizes, bias=False).to(student.device, student.dtype)
            if sizes[0] == sizes[1]:
                torch.nn.init.eye_(self.bridge.weight)
            weights += list(self.bridge.parameters())
        self.optimizer = torch.optim.AdamW(weights, lr=lessons.rate, betas=(0.9, 0.95), weight_decay=0.0)
        warm = max(1, lessons.steps // 10)
        rest = max(1, lessons.steps - warm)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * min(max(step - warm, 0) / rest, 1))),
        )

    def losses(self, numbers: Tensor) -> dict[str, Tensor]:
        """Means over the tokens of some blocks: `divergence`, `truth`, `hidden`, as far as they are used."""
        lessons, ids = self.lessons, self.blocks[numbers].to(self.student.device)
        own = self.student.get_decoder()(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        next_ids, found = ids[:, 1:].flatten(), {}
        if lessons.truth:

            def missed(rows: Tensor, wanted: Tensor) -> Tensor:
                return F.cross_entropy(scaled_logits(self.student, rows), wanted, reduction="none")

            found["truth"] = in_pieces(missed, own, next_ids) / len(own)
        if isinstance(self.teacher, Shown):
            logs, indices = (tensor.to(own.device) for tensor in self.teacher.of(numbers))

            def apart_from_best(rows: Tensor, best: Tensor, which: Tensor) -> Tensor:
                return divergence_from_best(scaled_logits(self.student, rows), best, which)

            found["divergence"] = in_pieces(apart_from_best, own, logs, indices) / len(own)
        elif self.teacher is not None and (lessons.truth < 1 or lessons.hidden):
            with torch.no_grad():
                shown = self.teacher.get_decoder()(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)

            def apart(rows: Tensor, theirs: Tensor) -> Tensor:
                with torch.no_grad():
                    wanted = scaled_logits(self.teacher, theirs)
                return divergence(
                    scaled_logits(self.student, rows), wanted, lessons.kind, lessons.beta, lessons.temperature
                )

            if lessons.truth < 1:
                found["divergence"] = in_pieces(apart, own, shown) / len(own) * lessons.temperature**2
            if self.bridge is not None:
                found["hidden"] = F.mse_loss(self.bridge(own).float(), shown.float())
        return found

    def step(self) -> dict[str, float]:
        lessons = self.lessons
        found = self.losses(lessons.numbers(self.steps, len(self.blocks)))
        weights = {"truth": lessons.truth, "divergence": 1 - lessons.truth, "hidden": lessons.hidden}
        loss = torch.stack([weights[name] * value for name, value in found.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        self.done += lessons.batch * lessons.length
        return {name: float(value.detach()) for name, value in found.items()}

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "bridge": None if self.bridge is None else self.bridge.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        if self.bridge is not None:
            self.bridge.load_state_dict(state["bridge"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def cut_out(teacher: Any, layers: int, intermediate: int | None, blocks: Tensor) -> tuple[Any, list[int]]:
    """A student of so many layers, those with the most influence, and of narrower MLPs; and which layers these are.

    The first and the last layer stay in any case.
    """
    depth = teacher.config.num_hidden_layers
    check_integer("layers", layers, 1, depth)
    influence = layer_influence(teacher, blocks[:MEASURED])
    influence[0] = influence[-1] = torch.inf
    keep = sorted(influence.topk(layers).indices.tolist())
    student = shallower(teacher, keep)
    if intermediate is not None and intermediate < student.config.intermediate_size:
        student = thinner(student, intermediate, blocks[:MEASURED])
    return student, keep


def chain(
    teacher: str,
    layers: Sequence[int],
    texts: Sequence[str],
    output: Path,
    lessons: Lessons | None = None,
    intermediate: Sequence[int] | None = None,
    worst_ratio: float = math.inf,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Makes a student of each number of layers, each taught by the one before it.

    Args:
        teacher: folder or Hub name of a checkpoint.
        layers: of each student, falling.
        texts: what they are taught on, and measured by.
        output: a folder; each student is a checkpoint in it, `1-LAYERS`, `2-LAYERS`, ...
        lessons: how; the defaults are for minutes on a CPU, not for a model that anybody wants to use.
        intermediate: width of the MLPs of each student, if they shall be narrower too.
        worst_ratio: a student whose perplexity is more than so many times that of the first teacher ends the chain.
    Returns:
        the manifest.
    Raises:
        ValueError: numbers that do not fall, an output of other settings, or too little text.
    """
    lessons = Lessons() if lessons is None else lessons
    widths = list(intermediate) if intermediate is not None else [None] * len(layers)
    if not layers or len(widths) != len(layers) or any(a < b for a, b in pairwise(layers)):
        raise ValueError(f"layers, intermediate: got {list(layers)}, {widths}; allowed are equally many, falling")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    blocks, apart = blocks_of(tokenizer, texts, lessons.length)
    data = hashlib.sha256(blocks.numpy().tobytes()).hexdigest()
    current = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype).eval()
    settings = {"teacher": str(teacher), "layers": list(layers), "intermediate": widths, "data": data,
                "lessons": asdict(lessons), "dtype": dtype}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    file = output / "manifest.json"
    manifest: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"settings": settings, "stages": []}
    if manifest["settings"] != settings:
        raise ValueError(f"output: got {output}, which holds a chain of other settings; allowed is another folder")
    if "perplexity" not in manifest:
        manifest["perplexity"] = perplexity = math.exp(sum(surprise(current, apart)) / len(apart))
        _write(file, manifest)
    perplexity = manifest["perplexity"]
    for number, (count, width) in enumerate(zip(layers, widths, strict=True)):
        folder = output / f"{number + 1}-{count}"
        if number < len(manifest["stages"]):
            if manifest["stages"][number]["ratio"] > worst_ratio:
                break
            current = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            check_same_tokens(tokenizer, AutoTokenizer.from_pretrained(folder))
            continue
        student, kept = cut_out(current, count, width, blocks)
        before = math.exp(sum(surprise(student, apart)) / len(apart))
        run = RunFolder(output / f"{folder.name}.run", settings | {"stage": number})
        try:
            shows = current
            if lessons.best and lessons.truth < 1:
                shows = show(current, blocks, lessons.used(len(blocks)), lessons.best, run.path / "shown")
            training = StudentTraining(run, student, shows, blocks, lessons)
            training.resume(str(student.device))
            training.train()
            losses = run.rows()
        finally:
            run.close()
        student.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reached = math.exp(sum(surprise(student, apart)) / len(apart))
        stage = {
            "folder": folder.name, "layers": count, "intermediate": student.config.intermediate_size,
            "teacher": fingerprint(current), "layers_of_teacher": kept, "parameters": student.num_parameters(),
            "tokens": int(training.done), "log": losses[-1:], "perplexity_untaught": before,
            "perplexity": reached, "ratio": reached / perplexity,
        }  # fmt: skip
        manifest["stages"].append(stage)
        _write(file, manifest)
        shutil.rmtree(run.path / "shown", ignore_errors=True)
        if stage["ratio"] > worst_ratio:
            break
        current = student
    return manifest


def fingerprint(model: Any) -> str:
    """SHA-256 of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(file: Path, manifest: dict[str, Any]) -> None:
    write_whole(file, lambda new: new.write_text(json.dumps(manifest, indent=1) + "\n"))


def described(manifest: dict[str, Any]) -> str:
    """The chain as a table."""
    lines = [f"teacher: perplexity {manifest['perplexity']:.2f}"]
    lines += [
        f"{stage['folder']}: {stage['parameters']:,} parameters, perplexity {stage['perplexity_untaught']:.2f} "
        f"untaught, {stage['perplexity']:.2f} after {stage['tokens']:,} tokens ({stage['ratio']:.2f} of the teacher's)"
        for stage in manifest["stages"]
    ]
    left = len(manifest["settings"]["layers"]) - len(manifest["stages"])
    return "\n".join([*lines, *([f"stopped: {left} more would have come"] if left else [])])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.distillation.chain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("teacher", help="folder or name of a checkpoint")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="of each student, falling")
    parser.add_argument("--intermediate", type=int, nargs="+", help="width of each student's MLPs")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, .gz or not")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--worst-ratio", type=float, default=math.inf, help="of perplexities, at which to stop")
    for name, default in asdict(Lessons()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default: {default})")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    try:
        lessons = Lessons(**{name: getattr(args, name) for name in asdict(Lessons())})
        texts = [read(path) for path in args.text]
        manifest = chain(
            args.teacher, args.layers, texts, args.output, lessons, args.intermediate, args.worst_ratio, args.dtype
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(described(manifest))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
