"""The training loop: steps until enough is done; now and then a checkpoint, a line in the log and a measurement."""

from __future__ import annotations

import datetime
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from distill.training.folder import CHECKPOINT, RunFolder

LOG_STEPS = 20  # steps whose mean makes one line of the log


def processes() -> PartialState:
    """The processes that train together (`accelerate launch`, `torchrun`), this one's place among them, its device."""
    # others wait while one does what only one can do; the default limit is too short for that
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=datetime.timedelta(days=7))


class Training(ABC):
    """One run, which goes on from its last checkpoint if there is one.

    A subclass builds what it trains, and then calls `resume`. `unit` says what `done` counts, and names its column in
    the log.

    Args:
        folder: where the run is kept.
        total: how many units to train on.
        save_minutes: time between checkpoints.
        look_minutes: time between measurements (`look`).
    """

    unit = "samples"

    def __init__(self, folder: RunFolder, total: float, save_minutes: float = 5.0, look_minutes: float = 5.0) -> None:
        self.folder, self.total = folder, total
        self.save_minutes, self.look_minutes = save_minutes, look_minutes
        self.done: float = 0
        self.steps, self.seconds = 0, 0.0
        self._recent: list[dict[str, float]] = []  # figures of the steps since the last line of the log

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Trains one step, adds to `done` and `steps`, and returns figures for the log, the same ones every time."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next steps depend on: weights, optimizers, random generators. Tensors and plain values only."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""

    def look(self) -> dict[str, Any]:
        """Figures that are too expensive for every step, such as results on held-out data. None by default."""
        return {}

    def resume(self, device: str = "cpu") -> None:
        """Goes back to the last checkpoint, and removes from the log what came after it: it is done again.

        Args:
            device: where the checkpoint's tensors go.

        Raises:
            ValueError: the checkpoint or the log cannot be read.
        """
        state = self.folder.load(device)
        if state is not None:
            try:
                self.restore(state)
                self.done, self.steps, self.seconds = state[self.unit], state["steps"], state["seconds"]
            except (KeyError, RuntimeError, TypeError) as error:
                file = self.folder.path / CHECKPOINT
                raise ValueError(f"{file}: got a checkpoint of another kind; allowed are those of this run") from error
            self._recent = state.get("recent", [])
        self.folder.keep_rows(lambda row: row.get("step", 0) <= self.steps)

    def save(self) -> None:
        """Writes a checkpoint."""
        counted = {self.unit: self.done, "steps": self.steps, "seconds": self.seconds, "recent": self._recent}
        self.folder.save({**self.state(), **counted})

    def log(self, **figures: Any) -> None:
        """Writes one line of the log: where the run stands, and these figures, to four decimals."""
        line = {"step": self.steps, self.unit: self.done, "seconds": round(self.seconds), **figures}
        self.folder.log({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})

    def train(self) -> None:
        """Trains to the end; the last checkpoint and the last measurement are always made."""
        saved = looked = time.perf_counter()
        with tqdm(total=self.total, initial=self.done, unit=f" {self.unit}", unit_scale=True, leave=False) as bar:
            while self.done < self.total:
                began, before = time.perf_counter(), self.done
                self._recent.append(self.step())
                self.seconds += time.perf_counter() - began
                bar.update(self.done - before)
                if self.steps % LOG_STEPS == 0:
                    count = len(self._recent)
                    means = {key: sum(row[key] for row in self._recent) / count for key in self._recent[0]}
                    bar.set_postfix({key: f"{value:.2f}" for key, value in means.items()})
                    self.log(**means)
                    self._recent.clear()
                if time.perf_counter() - looked > self.look_minutes * 60:
                    self._look()
                    looked = time.perf_counter()
                if time.perf_counter() - saved > self.save_minutes * 60:
                    self.save()
                    saved = time.perf_counter()
        self.save()
        self._look()

    def _look(self) -> None:
        figures = self.look()
        if figures:
            self.log(**figures)
