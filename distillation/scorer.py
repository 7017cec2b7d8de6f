"""Fits the scorer of KVzap: what KVzip would say of an entry, from the hidden state that it was made of.

    python -m distill.distillation.scorer MODEL --text book.txt notes.txt.gz --output MODEL/kvzap.safetensors

reads `--samples` parts of the texts, each with KVzip beside it, and solves a ridge regression in each layer. It prints
how much of the variance of KVzip's scores (their logarithms) the map explains in parts that it was not fitted to.
What has been summed up so far is kept beside the output, and a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, DynamicCache

from distill.baselines.jointly import JointRun
from distill.baselines.kvzip import KVzip
from distill.models import load
from distill.patches.checks import check_integer, check_number
from distill.patches.policy import Policy
from distill.patches.run import Call, Observation, Run
from distill.patches.weights import fingerprint
from distill.training.folder import write_whole

#: KVzip's scores are probabilities; below this they are all alike
LEAST = 1e-5
#: one part in so many is kept apart to measure by
HELD_OUT = 8


class _Teacher(Policy):
    """KVzip, which also shows what went into attention and its scores, and drops nothing that matters.

    Attributes:
        inputs: by layer, `(1, tokens, hidden)`.
        scores: by layer, `(kv_heads, tokens)`.
    """

    name = "kvzap-teacher"

    def __init__(self, teacher: KVzip) -> None:
        object.__setattr__(self, "teacher", teacher)
        object.__setattr__(self, "inputs", {})
        object.__setattr__(self, "scores", {})

    def check(self, config: Any) -> None:
        self.teacher.check(config)  # type: ignore[attr-defined]

    def begin(self, call: Call) -> Run | None:
        run = self.teacher.begin(call)  # type: ignore[attr-defined]
        return None if run is None else _Lesson(self, run)


class _Lesson(Run):
    def __init__(self, teacher: Any, run: JointRun) -> None:
        self.teacher, self.run = teacher, run

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.run.competing

    def observe(self, layer_idx: int, seen: Observation) -> None:
        self.teacher.inputs[layer_idx] = seen.attended

    def review(self, replay: Any) -> None:
        self.run.review(replay)
        for layer, scores in self.run.scores.items():
            self.teacher.scores[layer] = scores[0, :, :-1]


@dataclass
class Sums:
    """What the regression of each layer needs: products of inputs with themselves and with the scores.

    Attributes:
        gram: by layer, `(hidden + 1, hidden + 1)`; the last input is always 1.
        moment: by layer, `(hidden + 1, kv_heads)`.
        parts: how many parts of texts have been read.
        apart: by part kept apart, a list of inputs and scores by layer.
    """

    gram: dict[int, Tensor] = field(default_factory=dict)
    moment: dict[int, Tensor] = field(default_factory=dict)
    parts: int = 0
    apart: list[dict[int, tuple[Tensor, Tensor]]] = field(default_factory=list)

    def add(self, lesson: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Adds a part: by layer, inputs `(tokens, hidden + 1)` and scores `(tokens, kv_heads)`."""
        self.parts += 1
        if self.parts % HELD_OUT == 0:
            self.apart.append(lesson)
            return
        for layer, (x, y) in lesson.items():
            gram, moment = x.T @ x, x.T @ y
            self.gram[layer] = self.gram[layer] + gram if layer in self.gram else gram
            self.moment[layer] = self.moment[layer] + moment if layer in self.moment else moment

    def solve(self, layers: int, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight `(layers, kv_heads, hidden)` and bias `(layers, kv_heads)`; zeros in layers without scores."""
        some = next(iter(self.moment.values()))
        found = some.new_zeros(layers, *some.T.shape)
        for layer, gram in self.gram.items():
            eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            strength = gram.diagonal().mean() * ridge
            found[layer] = torch.linalg.solve(gram + eye * strength, self.moment[layer]).T
        return found[..., :-1].float(), found[..., -1].float()

    def explained(self, weight: Tensor, bias: Tensor) -> float:
        """Share of the variance of the scores of the parts kept apart that the map explains; 1 at best."""
        left = total = 0.0
        scores = torch.cat([y.flatten() for lesson in self.apart for _, y in lesson.values()])
        for lesson in self.apart:
            for layer, (x, y) in lesson.items():
                guess = x[:, :-1] @ weight[layer].T.to(x) + bias[layer].to(x)
                left += float(((y - guess) ** 2).sum())
        total = float(((scores - scores.mean()) ** 2).sum())
        return 1 - left / max(total, torch.finfo(scores.dtype).tiny)


@torch.no_grad()
def lesson_of(model: Any, ids: Tensor, teacher: KVzip) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer, inputs `(tokens, hidden + 1)` and the logarithms of KVzip's scores `(tokens, kv_heads)`, float64.

    Args:
        ids: `(1, tokens)`.
        teacher: the first `sinks` tokens, which it keeps anyway, are left out.
    """
    watching = _Teacher(teacher)
    model(ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1, policy=watching)
    found = {}
    for layer, scores in watching.scores.items():  # type: ignore[attr-defined]
        x = watching.inputs[layer][0, teacher.sinks :].double()  # type: ignore[attr-defined]
        y = scores[:, teacher.sinks :].clamp(min=LEAST).log().double().T
        found[layer] = torch.cat([x, x.new_ones(len(x), 1)], dim=1), y
    return found


def parts_of(tokenizer: Any, texts: Sequence[str], length: int, samples: int, seed: int) -> list[Tensor]:
    """`samples` parts of `length` tokens `(1, length)`, from random places of the texts in turn.

    Raises:
        ValueError: a text of fewer tokens.
    """
    check_integer("samples", samples, HELD_OUT)
    check_integer("length", length, 16)
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    for number, ids in enumerate(encoded):
        if len(ids) < length:
            raise ValueError(f"text: got {len(ids)} tokens in text {number}; allowed are texts of {length} or more")
    rng, found = random.Random(seed), []
    first = [tokenizer.bos_token_id] if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else []
    for number in range(samples):
        ids = encoded[number % len(encoded)]
        start = rng.randrange(len(ids) - length + 1)
        found.append(torch.tensor([[*first, *ids[start : start + length - len(first)]]]))
    return found


def fit(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    output: Path,
    samples: int = 32,
    length: int = 768,
    ridge: float = 0.01,
    seed: int = 0,
) -> float:
    """Fits a scorer and writes it.

    Args:
        model: from `distill.load`.
        texts: what the parts are taken from; a model's own kind of texts is best.
        output: the safetensors file; a file of the same name with `.part` behind it holds what was summed up so far.
        samples, length: parts, and tokens of each; one part in 8 is kept apart.
        ridge: as a share of the mean square of the inputs.
    Returns:
        the share of the variance of KVzip's scores that is explained in the parts kept apart.
    Raises:
        ValueError: settings that are not allowed, or a `.part` file of other settings.
    """
    check_number("ridge", ridge, 1e-9, 1e3)
    ids, part = parts_of(tokenizer, texts, length, samples, seed), output.with_name(output.name + ".part")
    settings = json.dumps([fingerprint(model.model), length, seed, [hash_of(each) for each in ids[:HELD_OUT]]])
    sums = _resumed(part, settings)
    teacher = KVzip.with_tokenizer(tokenizer, budget=0.5)
    for number in tqdm(range(sums.parts, samples), initial=sums.parts, total=samples, desc="parts read"):
        sums.add(lesson_of(model, ids[number].to(model.device), teacher))
        if number % 4 == 3:
            state = {"settings": settings, "sums": vars(sums)}
            write_whole(part, lambda new, state=state: torch.save(state, new))  # type: ignore[misc]
    weight, bias = sums.solve(model.config.num_hidden_layers, ridge)
    # one key, since safetensors writes several in any order
    metadata = {"model": json.dumps(fingerprint(model.model) | {"samples": samples, "length": length})}
    tensors = {"weight": weight.contiguous().cpu(), "bias": bias.contiguous().cpu()}
    write_whole(output, lambda new: save_file(tensors, new, metadata))
    part.unlink(missing_ok=True)
    return sums.explained(weight, bias)


def hash_of(ids: Tensor) -> int:
    """A number that tells one part from another."""
    return int((ids * torch.arange(1, ids.shape[1] + 1)).sum())


def _resumed(part: Path, settings: str) -> Sums:
    if not part.exists():
        return Sums()
    state = torch.load(part, weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"output: got {str(part)!r}, begun with another model, other texts or settings; allowed are the same "
            "ones, or another output"
        )
    return Sums(**state["sums"])


def read(path: Path) -> str:
    """A text file, unpacked where its name ends in .gz."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")


def main() -> int:

    parser = argparse.ArgumentParser(
        prog="python -m distill.distillation.scorer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder or name of a checkpoint")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, .gz or not")
    parser.add_argument("--output", type=Path, required=True, help="such as MODEL/kvzap.safetensors")
    parser.add_argument("--samples", type=int, default=32, help="parts of the texts (default: 32)")
    parser.add_argument("--length", type=int, default=768, help="tokens of a part (default: 768)")
    parser.add_argument("--ridge", type=float, default=0.01)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    try:
        model = load(args.model, policy=None, dtype=args.dtype).eval()
        texts = [read(path) for path in args.text]
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        explained = fit(model, tokenizer, texts, args.output, args.samples, args.length, args.ridge)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{args.output}: explains {explained:.2f} of the variance of KVzip's scores in parts kept apart")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
