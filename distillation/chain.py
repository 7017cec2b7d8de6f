"""A chain of students: each is cut out of its teacher, taught by it, measured, and is the next one's teacher.

    python -m distill.distillation.chain TEACHER --layers 15 8 --text book.txt notes.txt.gz --tokens 400000 -o OUT

Every stage is a checkpoint of Transformers in a folder of its own. `OUT/manifest.json` says what each was taught by,
on what, for how long, and how well it predicts text that was kept apart. A stage that falls below the floor
(`--worst-ratio`) ends the chain. A run that was killed goes on. It uses the GPU if there is one, and several under
`accelerate launch -m distill.distillation.chain ...`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.distillation.lessons import Lessons, StudentTraining
from distill.distillation.scorer import read
from distill.distillation.shown import show
from distill.distillation.students import layer_influence, shallower, thinner
from distill.patches.checks import check_integer
from distill.training import RunFolder, processes, write_whole

MEASURED = 8  # blocks by which layers and neurons are measured
APART = 16  # blocks that are kept apart, for perplexity


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


def perplexity_on(model: Any, blocks: Tensor) -> float:
    """The exponential of the mean of -log p over blocks `(blocks, length)`."""
    return math.exp(sum(surprise(model, blocks)) / len(blocks))


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
    together = processes()
    if lessons.batch % together.num_processes:
        count = together.num_processes
        raise ValueError(f"batch: got {lessons.batch}; allowed are multiples of {count}, the number of processes")
    blocks, apart = blocks_of(tokenizer, texts, lessons.length)
    data = hashlib.sha256(blocks.numpy().tobytes()).hexdigest()
    current = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype).eval().to(together.device)
    settings = {"teacher": str(teacher), "layers": list(layers), "intermediate": widths, "data": data,
                "lessons": asdict(lessons), "dtype": dtype}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    file = output / "manifest.json"
    manifest = agreed(json.loads(file.read_text()) if file.exists() else {"settings": settings, "stages": []})
    if manifest["settings"] != settings:
        raise ValueError(f"output: got {output}, which holds a chain of other settings; allowed is another folder")
    if "perplexity" not in manifest:
        manifest["perplexity"] = agreed(perplexity_on(current, apart))
        _write(file, manifest)
    perplexity = manifest["perplexity"]
    for number, (count, width) in enumerate(zip(layers, widths, strict=True)):
        folder = output / f"{number + 1}-{count}"
        if number < len(manifest["stages"]):
            if together.is_main_process:  # a kill may have come before this
                shutil.rmtree(output / f"{folder.name}.run" / "shown", ignore_errors=True)
            if manifest["stages"][number]["ratio"] > worst_ratio:
                break
            current = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(together.device)
            check_same_tokens(tokenizer, AutoTokenizer.from_pretrained(folder))
            continue
        student, kept = cut_out(current, count, width, blocks)
        kept = agreed(kept)
        for weight in student.state_dict().values():  # what is measured on several GPUs may differ by rounding
            broadcast(weight)
        before = perplexity_on(student, apart)
        with together.main_process_first():
            run = RunFolder(output / f"{folder.name}.run", settings | {"stage": number}, together.is_main_process)
        try:
            shows = current
            if lessons.best and lessons.truth < 1:
                with together.main_process_first():  # who comes later finds all of it there
                    shows = show(current, blocks, lessons.used(len(blocks)), lessons.best, run.path / "shown")
            training = StudentTraining(run, student, shows, blocks, lessons)
            training.resume(str(student.device))
            together.wait_for_everyone()
            training.train()
            losses = run.rows()
        finally:
            run.close()
        student.eval()
        if together.is_main_process:
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        together.wait_for_everyone()
        reached = perplexity_on(student, apart)
        stage = {
            "folder": folder.name, "layers": count, "intermediate": student.config.intermediate_size,
            "teacher": fingerprint(current), "layers_of_teacher": kept, "parameters": student.num_parameters(),
            "tokens": int(training.done), "log": losses[-1:], "perplexity_untaught": before,
            "perplexity": reached, "ratio": reached / perplexity,
        }  # fmt: skip
        stage = agreed(stage)
        manifest["stages"].append(stage)
        _write(file, manifest)
        if together.is_main_process:
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


def agreed(value: Any) -> Any:
    """The value that the first of all processes has."""
    found = [value]
    broadcast_object_list(found)
    return found[0]


def _write(file: Path, manifest: dict[str, Any]) -> None:
    if processes().is_main_process:
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
    if processes().is_main_process:
        print(described(manifest))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
