"""Runs `distill tune`: measures the layers, tries the candidates, keeps what came in."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from distill.evaluation.generation import Decoding, Generator
from distill.evaluation.prompting import Encoder
from distill.evaluation.tune.candidates import Candidate, propose, recall
from distill.evaluation.tune.probe import SCORES, attended, encode, needed_shares
from distill.evaluation.tune.prompts import Sample, built_in, from_file
from distill.evaluation.tune.result import Trial, TuneResult
from distill.patches.checks import check_integer, check_number
from distill.patches.policy import Policy

BUDGETS = (1 / 8, 1 / 16, 1 / 32)
#: so many times the wanted number of prompts are drawn at most; one that stock cannot answer says nothing of layers
MOST_DRAWN = 3


def tune(
    model: Any,
    tokenizer: Any,
    samples: int = 32,
    length: int = 1000,
    budgets: Sequence[float] = BUDGETS,
    target: float = 0.95,
    data: Path | str | None = None,
    text: str | None = None,
    folder: Path | str | None = None,
    max_new_tokens: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> TuneResult:
    """Finds the fastest PromptDistill policy that keeps a model's answers.

    Args:
        model: a causal LM from `distill.load`; its own policy is not used.
        tokenizer: the model's.
        samples: number of built-in prompts that stock answers; at most three times as many are drawn to find them.
        length: their tokens.
        budgets: shares of the context to try.
        target: share of stock's right answers that a policy must keep.
        data: the user's own prompts instead, JSON lines with `context`, `question` and, if known, `answer`; see
            `distill.evaluation.tune.prompts.from_file`.
        text: prose for the built-in prompts.
        folder: where results go as they come in; a run that was killed is continued from there.
        max_new_tokens: length of an answer.
        seed: of the built-in prompts.
        progress: show progress bars.
    Raises:
        ValueError: an argument that is not allowed, or a folder that belongs to other settings.
    """
    if not hasattr(model, "using"):
        raise ValueError(f"model: got a {type(model).__name__}; allowed are models from distill.load")
    check_number("target", target, 0, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    for budget in budgets:
        check_number("budgets", budget, 1e-6, 1)
    if data is None:
        drawn = built_in(tokenizer, MOST_DRAWN * samples, length, seed, text)
    else:
        drawn = from_file(tokenizer, Path(data))
        samples = len(drawn)
    if not drawn:
        raise ValueError(f"data: got no prompts in {data}; allowed are files with one or more")
    prompts = hashlib.sha256("\0".join(sample.prompt.text + sample.answer for sample in drawn).encode()).hexdigest()
    settings = {
        "model": str(model.config.name_or_path), "samples": samples, "length": length, "budgets": list(budgets),
        "target": target, "data": None if data is None else str(data), "seed": seed, "new": max_new_tokens,
        "dtype": str(model.dtype), "ways": list(SCORES), "prompts": prompts,
    }  # fmt: skip
    store = _Store(None if folder is None else Path(folder), settings)
    return _Tuning(model, tokenizer, drawn, store, max_new_tokens, progress).run(samples, budgets, target)


class _Store:
    """Results by key, each written to a line of `results.jsonl` as it comes in."""

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.path = None if folder is None else folder / "results.jsonl"
        self.known: dict[str, Any] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith("\n"):  # the run was killed while it wrote this line
            lines.pop()
            self.path.write_text("".join(lines))
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.known[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"folder: got {self.path} with a bad line {number}; allowed is a new folder"
                ) from error
        if self.known.setdefault("settings", settings) != settings:
            raise ValueError(
                f"folder: got {self.path.parent}, which holds a run with other settings; allowed are a new folder and "
                f"the settings {self.known['settings']}"
            )
        if not lines:
            self._append("settings", settings)

    def __call__(self, key: str, compute: Any) -> Any:
        """The value stored for a key; else the one that is computed now."""
        if key not in self.known:
            self.known[key] = compute()
            self._append(key, self.known[key])
        return self.known[key]

    def _append(self, key: str, value: Any) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")


class _Tuning:
    def __init__(
        self, model: Any, tokenizer: Any, samples: list[Sample], store: _Store, new_tokens: int, progress: bool
    ) -> None:
        self.model, self.tokenizer, self.samples, self.store = model, tokenizer, samples, store
        self.new_tokens, self.progress = new_tokens, progress
        self.encoder = Encoder(tokenizer)
        self.stock: dict[int, dict[str, Any]] = {}  # its right answers, by prompt
        self.asked: list[int] = []
        self.encoded = [encode(tokenizer, sample, model.device) for sample in samples]
        self.length = round(statistics.mean(item.ids.shape[1] for item in self.encoded))

    def run(self, wanted: int, budgets: Sequence[float], target: float) -> TuneResult:
        drawn = self._ask_stock(wanted)
        if not self.asked:
            raise ValueError("data: got prompts of which stock answers none; allowed are prompts that it can answer")
        shares: dict[str, list[list[float]]] = {way: [] for way in SCORES}
        for i in self._bar(self.asked, "layers measured"):
            measured = self.store(f"layers/{i}", lambda i=i: self._measure(i))
            for way in SCORES:
                shares[way].append(measured[way])
        chosen: Candidate | None = None
        tried: list[tuple[Trial, Candidate]] = []
        for budget in sorted(budgets):
            for candidate in propose(shares, budget, target, self.length, self.model.config):
                if chosen is not None and candidate.bound <= chosen.bound:
                    continue
                tried.append((self._trial(candidate, target), candidate))
                if self._keeps(tried[-1][0], target):
                    chosen = candidate
                    break
        if chosen is not None:  # the same tokens in fewer bytes, if the answers bear it
            smaller = replace(chosen, cut=True)
            tried.append((self._trial(smaller, target), smaller))
            if self._keeps(tried[-1][0], target):
                chosen = smaller
        best = max(tried, key=lambda pair: (pair[0].kept, pair[0].bound), default=None)
        rows = {
            way: {
                f"1/{round(1 / b)}": [recall(shares[way], at, b) for at in range(len(shares[way][0]))] for b in budgets
            }
            for way in SCORES
        }
        first = statistics.median(answer["first"] for answer in self.stock.values())
        reference = Trial("stock", None, 1.0, len(self.asked), len(self.asked), first)
        return TuneResult(
            None if chosen is None else chosen.policy,
            None if best is None else best[1].policy,
            target,
            drawn,
            rows,
            (reference, *[trial for trial, _ in tried]),
        )

    def _ask_stock(self, wanted: int) -> int:
        """Asks the stock model until it has answered as many prompts as wanted: the number of prompts asked."""
        drawn = 0
        with tqdm(total=wanted, desc="stock answers", disable=not self.progress) as bar:
            while drawn < len(self.samples) and len(self.stock) < wanted:
                answer = self._answer(drawn, None, "stock")
                if answer["right"]:
                    self.stock[drawn] = answer
                    bar.update()
                drawn += 1
        self.asked = list(self.stock)
        return drawn

    def _keeps(self, trial: Trial, target: float) -> bool:
        return trial.kept >= target * len(self.asked)

    def _bar(self, which: Sequence[int], what: str) -> Any:
        return tqdm(which, desc=what, disable=not self.progress)

    def _measure(self, index: int) -> dict[str, list[float]]:
        encoded = self.encoded[index]
        if not encoded.needed:
            answer = torch.tensor([self.stock[index]["ids"] or [0]], device=encoded.ids.device)
            encoded = replace(encoded, needed=attended(self.model, encoded, answer))
        return needed_shares(self.model, encoded, tuple(SCORES))

    def _trial(self, candidate: Candidate, target: float) -> Trial:
        """Asks what stock answers, up to the prompt after which the candidate can no longer keep as many as needed."""
        key = json.dumps(candidate.policy.to_dict(), sort_keys=True)
        answers, kept = [], 0
        for i in self._bar(self.asked, candidate.label):
            answers.append(self._answer(i, candidate.policy, key))
            kept += self._agrees(answers[-1], i)
            if len(answers) - kept > (1 - target) * len(self.asked):
                break
        first = statistics.median(answer["first"] for answer in answers)
        return Trial(candidate.label, candidate.policy.to_dict(), candidate.bound, kept, len(answers), first)

    def _answer(self, index: int, chosen: Policy | None, key: str) -> dict[str, Any]:
        return self.store(f"{key}/{index}", lambda: self._generate(index, chosen))

    def _generate(self, index: int, chosen: Policy | None) -> dict[str, Any]:
        generate = Generator(self.model, self.encoder, chosen)
        made = generate(self.samples[index].prompt, self.new_tokens, Decoding())
        answer = self.samples[index].answer
        ids = self.encoder.plain(made.text)
        # without a known answer, whatever stock answers is right
        return {"text": made.text, "ids": ids, "right": answer in made.text, "first": made.ttft_seconds}

    def _agrees(self, answer: dict[str, Any], index: int) -> bool:
        if self.samples[index].answer:
            return bool(answer["right"])
        return bool(answer["text"].split() == self.stock[index]["text"].split())
