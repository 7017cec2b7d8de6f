"""How one student is taught by its teacher: the settings, and the training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor

from distill.distillation.shown import Shown
from distill.patches.checks import check_choice, check_integer, check_number
from distill.training import RunFolder, Training, processes
from distill.training.losses import KINDS, divergence, divergence_from_best, in_pieces, scaled_logits


@dataclass(frozen=True)
class Lessons:
    """How students are taught.

    Args:
        tokens: that each student is taught on.
        length: tokens of a block.
        batch: blocks a step.
        rate: learning rate at its height; it rises over the first tenth of the steps, and falls to a tenth.
        kind: the divergence, see `distill.training.losses.divergence`.
        beta, temperature: of the divergence, which is multiplied by the square of the temperature.
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


class StudentTraining(Training):
    """Teaches one student. Of several processes (`accelerate launch`), each is taught a part of every batch.

    Args:
        folder: of the run.
        student: is trained, in place.
        teacher: stays as it is; or what it has `Shown`; `None` if `lessons.truth` is 1.
        blocks: `(blocks, length)` ids.
    """

    unit = "tokens"

    def __init__(self, folder: RunFolder, student: Any, teacher: Any, blocks: Tensor, lessons: Lessons) -> None:
        self.processes = processes()
        super().__init__(folder, lessons.steps * lessons.batch * lessons.length)
        self.student, self.teacher, self.blocks, self.lessons = student.train(), teacher, blocks, lessons
        self.weights = list(student.parameters())
        self.bridge: torch.nn.Linear | None = None
        if lessons.hidden and teacher is not None:
            sizes = student.config.hidden_size, teacher.config.hidden_size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(lessons.seed)
                self.bridge = torch.nn.Linear(*sizes, bias=False).to(student.device, student.dtype)
            if sizes[0] == sizes[1]:
                torch.nn.init.eye_(self.bridge.weight)
            self.weights += list(self.bridge.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=lessons.rate, betas=(0.9, 0.95), weight_decay=0.0)
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
        own = slice(self.processes.process_index, None, self.processes.num_processes)
        found = self.losses(lessons.numbers(self.steps, len(self.blocks))[own])
        weights = {"truth": lessons.truth, "divergence": 1 - lessons.truth, "hidden": lessons.hidden}
        loss = torch.stack([weights[name] * value for name, value in found.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.processes.num_processes > 1:
            for weight in self.weights:
                weight.grad = reduce(weight.grad, "mean")
            found = reduce({name: value.detach() for name, value in found.items()}, "mean")
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
