"""Trains a small model from nothing, or goes on with one:

    python -m distill.mini.recipe.train --arch llama --out outputs/mini-llama

A run that was cut off goes on where it last saved (`--every`) when it is started again with the same options; those
that decide the weights lie in `options.json`, beside the checkpoint, `log.jsonl` and `curves.png`. Two CPU cores learn
from 5,000 to 7,000 tokens a second; with a GPU, `--device cuda --scale 8` takes eight times the sequences a step.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.mini import tokenizer_of
from distill.mini.recipe import books, convert, guide, start, tokenizer, wording
from distill.mini.recipe.episodes import Batch, Maker
from distill.mini.recipe.measure import progress
from distill.mini.recipe.skills import Draw
from distill.training import Panel, RunFolder, Training, plot, write_whole

#: up to which share of the run, sequences of which lengths, and how often each; a step is about 8,192 tokens
CURRICULUM = (
    (0.05, {256: 1.0}),
    (0.55, {512: 0.9, 1024: 0.1}),
    (0.85, {512: 0.4, 1024: 0.4, 2048: 0.2}),
    (1.00, {512: 0.2, 1024: 0.2, 2048: 0.4, 4096: 0.2}),
)
STEP_TOKENS, REACH, WINDOW, LOCAL, PLAIN = 8192, 8192, 128, 0.6, 0.15
FREE = ("out", "device", "every", "look")  # options that may change when a run goes on
MUON, EMBEDDING, ADAM = 0.006, 0.01, 0.002  # learning rates: matrices, embeddings, norms and biases


class SparseLoss(torch.autograd.Function):
    """Weighted cross-entropy of `(tokens, hidden)` against `(tokens,)`, never holding all logits at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        to_hidden, to_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        for i in range(0, hidden.shape[0], 512):
            part, target, weight = hidden[i : i + 512], targets[i : i + 512, None], weights[i : i + 512, None]
            logits = (part @ head.t()).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += ((norm - logits.gather(1, target)) * weight).sum()
            slope = logits.sub_(norm).exp_()
            slope.scatter_add_(1, target, -torch.ones_like(weight))
            slope = slope.mul_(weight).to(hidden.dtype)
            to_hidden[i : i + 512] = slope @ head
            to_head += slope.t() @ part
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        to_hidden, to_head = ctx.saved_tensors
        return to_hidden * grads[0], to_head * grads[0], None, None


def loss_of(model: Any, batch: Batch, window: int | None, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy per weight (nats), and the two losses of the guide."""
    plan = guide.Plan(guides=batch.guides, window=window)
    guide.set_plan(plan)
    ids = batch.ids.to(device)
    with torch.autocast(device, torch.bfloat16):
        hidden = model.model(ids, position_ids=batch.positions.to(device), use_cache=False).last_hidden_state
    guide.set_plan(guide.Plan())
    head = model.lm_head.weight.to(torch.bfloat16)
    weights = batch.weights[:, 1:].flatten().to(device)
    flat = hidden[:, :-1].to(torch.bfloat16).reshape(-1, hidden.shape[-1])
    text = SparseLoss.apply(flat, head, ids[:, 1:].flatten(), weights / weights.sum())
    none = torch.zeros((), device=device)
    return text, sum(plan.find, none), sum(plan.fetch, none) / max(1, len(plan.fetch))


def optimizers(model: Any) -> list[Any]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases; each group knows its `top` rate."""
    groups: dict[str, list[Any]] = {"matrices": [], "embeddings": [], "others": []}
    for name, parameter in model.named_parameters():
        kind = "embeddings" if "embed" in name else "matrices" if parameter.ndim == 2 else "others"
        groups[kind].append(parameter)
    adam = [
        {"params": groups["embeddings"], "top": EMBEDDING},
        {"params": groups["others"], "top": ADAM},
    ]
    return [
        torch.optim.Muon([{"params": groups["matrices"], "top": MUON}], lr=MUON, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(adam, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(done: float, warm: float) -> float:
    """Share of the learning rate: a short rise, a plateau, and from half of the run on a line down to a twentieth."""
    return min(1.0, done / warm if warm else 1.0, 1.0 - 0.95 * max(0.0, done - 0.5) / 0.5)


def check(args: argparse.Namespace) -> None:
    """Refuses options that make no run.

    Raises:
        ValueError: naming the option, what came and what is allowed.
    """
    for name in ("find", "fetch", "every", "look"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"{name}: got {getattr(args, name)}; allowed are numbers from 0")
    if not 0 < args.rate < math.inf:
        raise ValueError(f"rate: got {args.rate}; allowed are numbers above 0")
    if not 1 <= args.tokens < math.inf:
        raise ValueError(f"tokens: got {args.tokens}; allowed are numbers from 1")
    if args.scale < 1:
        raise ValueError(f"scale: got {args.scale}; allowed are integers from 1")
    if args.min_length % WINDOW or not 0 <= args.min_length <= REACH:
        raise ValueError(f"min_length: got {args.min_length}; allowed are multiples of {WINDOW} from 0 to {REACH}")


class Run(Training):
    """The training of one small model, all of it in one folder.

    Args:
        args: the options of the command (`parser`).

    Raises:
        ValueError: an option that is not allowed, or that is not the one with which the run in this folder began; a
            model to start from that has no tokenizer or another vocabulary.
    """

    unit = "tokens"

    def __init__(self, args: argparse.Namespace) -> None:
        check(args)
        options = {name: value for name, value in vars(args).items() if name not in FREE}
        folder = RunFolder(args.out, options)
        super().__init__(folder, args.tokens, args.every, args.look)
        self.args, self.out = args, folder.path
        try:
            self._build()
        except BaseException:
            folder.close()
            raise

    @property
    def tokens(self) -> float:
        """How many tokens the model has learnt from."""
        return self.done

    def _build(self) -> None:
        self.texts = books.read("train")
        self.tokenizer = self._tokenizer()
        words, names = books.vocabulary(self.texts)
        self.rng = random.Random(self.args.seed)
        draw = Draw(self.rng, words, names, phrases=books.phrases(self.texts))
        self.maker = Maker(self.tokenizer, self._tokens(), draw)
        self.model = self._model().to(self.args.device)
        self.model.set_attn_implementation(guide.NAME)
        self.optimizers = optimizers(self.model)
        self.resume(self.args.device)

    def _tokenizer(self) -> Any:
        folder = Path(self.args.init or self.out)
        if (folder / "tokenizer.json").exists():
            found = tokenizer_of(folder)
        elif self.args.init:
            raise ValueError(f"init: got {self.args.init}; allowed is the folder of a model with its tokenizer.json")
        else:
            found = tokenizer.train([*self.texts.values(), *wording.corpus() * 300])
        found.save_pretrained(self.out)
        return found

    def _tokens(self) -> np.ndarray:
        file = self.out / "tokens.npy"
        if not file.exists():
            write_whole(file, lambda new: np.save(new, books.encode(self.tokenizer, "train")))
        return np.load(file)

    def _model(self) -> Any:
        if not self.args.init:
            return convert.convert(start.build(len(self.tokenizer), self.args.seed), self.args.arch)
        found = AutoModelForCausalLM.from_pretrained(self.args.init, dtype=torch.float32)
        if found.config.vocab_size != len(self.tokenizer):
            raise ValueError(
                f"init: got {self.args.init}, a model of {found.config.vocab_size} tokens with a tokenizer of "
                f"{len(self.tokenizer)}; allowed are equal numbers"
            )
        return convert.convert(found, self.args.arch)

    def state(self) -> dict[str, Any]:
        """Weights, both optimizers, and the generator of sequences."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.setstate(state["rng"])

    def step(self) -> dict[str, float]:
        """One step of both optimizers; the three losses."""
        done = self.done / self.args.tokens
        lengths = next(mix for until, mix in CURRICULUM if done <= until or until == 1.0)
        length = self.rng.choices(list(lengths), list(lengths.values()))[0]
        if self.args.min_length:
            length = max(length, self.args.min_length)
        rows = max(1, STEP_TOKENS * self.args.scale // length)
        batch = self.maker.batch(rows, length, PLAIN, REACH)
        window = WINDOW if self.rng.random() < LOCAL else None
        text, find, fetch = loss_of(self.model, batch, window, self.args.device)
        share = rate(done, 0.0 if self.args.init else 0.03)
        (text + self.args.find * find + self.args.fetch * (0.2 + 0.8 * share) * fetch).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not math.isfinite(norm):  # before it reaches the weights, and these the checkpoint
            raise ArithmeticError(f"the gradient is {norm} after {self.steps} steps, the loss {text.item()}")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * self.args.rate * share
            optimizer.step()
            optimizer.zero_grad()
        self.done += rows * length
        self.steps += 1
        return {"loss": text.item(), "find": find.item(), "fetch": fetch.item()}

    def look(self) -> dict[str, Any]:
        """What the model makes of held-out text, and which facts it finds."""
        return progress(self.model, self.tokenizer, self.args.device)

    def train(self) -> None:
        """Trains to the end, then exports the model and draws the curves."""
        super().train()
        convert.export(self.model, self.tokenizer, self.out / "model")
        rows = self.folder.rows()
        plot(self.out / "curves.png", rows, self.unit, panels(rows))
        self.folder.close()


def panels(rows: list[dict[str, Any]]) -> list[Panel]:
    """The diagrams of `curves.png`: losses, held-out text, and right answers about it."""
    looks = [row for row in rows if "bits_per_byte" in row]
    answers = [key for key in (looks[-1] if looks else {}) if "@" in key]
    return [
        Panel("training losses (nats)", ("loss", "find", "fetch"), (0, 6)),
        Panel("bits per byte of the validation book", ("bits_per_byte",)),
        Panel("answers right (held-out text, words and values)", answers, (0, 1.02)),
    ]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", default="llama", choices=convert.ARCHITECTURES)
    p.add_argument("--out", default="outputs/mini", help="folder of the run; made if absent")
    p.add_argument("--init", help="a folder of a trained model to start from: a Llama, or one of --arch")
    p.add_argument("--tokens", type=float, default=36e6, help="how many tokens to learn from (default: 36e6)")
    p.add_argument("--min-length", type=int, default=0, help="no shorter sequences than this")
    p.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    p.add_argument("--find", type=float, default=0.2, help="weight of the guide's loss where facts are found")
    p.add_argument("--fetch", type=float, default=0.3, help="weight of its loss where words are fetched (it falls)")
    p.add_argument("--scale", type=int, default=1, help="factor on the sequences of a step (for a GPU)")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    p.add_argument("--look", type=float, default=5, help="minutes between looks at held-out text")
    return p


def main() -> None:
    p = parser()
    args = p.parse_args()
    try:
        run = Run(args)
    except ValueError as error:
        p.error(str(error))
    run.train()


if __name__ == "__main__":
    main()
