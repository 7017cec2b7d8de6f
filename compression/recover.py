"""Recovery: a compressed model is taught the original's predictions on the calibration text.

The loss is the KL divergence of the student's next-token distribution from the teacher's (Hinton et al.,
arXiv 1503.02531), plus, if asked for, cross-entropy on the text and the squared distance of hidden states. It
is summed up in chunks of the sequence, so that the logits of a large vocabulary are never held twice. What is
trained are the factors; or LoRA adapters of PEFT on them, which are merged in the end, or every few steps, after
which new ones begin (ReLoRA, Lialin et al., arXiv 2307.05695). Of a quantized model without factors the norms are
trained (after Norm Tweaking, Li et al., arXiv 2309.02784, whose loss is of each layer's output), which adds no byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.compression.modules import LowRankEmbedding, LowRankLinear
from distill.training import RunFolder, Training
from distill.training.losses import divergence, in_pieces, scaled_logits

#: tokens whose logits are computed at once
CHUNK = 128


@dataclass(frozen=True)
class Recipe:
    """How it is trained.

    Attributes:
        rate: highest learning rate of AdamW; it rises over the first tenth of the steps, and falls as a cosine.
        temperature: of both distributions.
        text: weight of the cross-entropy on the text.
        hidden: weight of the squared distance of last hidden states, relative to their size.
        lora: rank of LoRA adapters that are trained in place of the factors; 0 for none.
        restart: after so many steps adapters are merged and begin anew, with a new optimizer and a warm-up of its own
            (the paper keeps a small random part of the optimizer's state); 0 for never.
        clip: of the norm of the gradient.
    Raises:
        ValueError: restarts without adapters, or numbers that are not allowed.
    """

    rate: float = 1e-4
    temperature: float = 1.0
    text: float = 0.0
    hidden: float = 0.0
    lora: int = 0
    restart: int = 0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.restart and not self.lora:
            raise ValueError(f"restart: got {self.restart} without lora; allowed then is 0")
        for name in ("rate", "temperature", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are numbers above 0")
        for name in ("text", "hidden", "lora", "restart"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are numbers from 0 on")

    def rate_at(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0, of `total`."""
        warm = max(1, int(total * 0.1))
        progress = min(1.0, (step + 1 - warm) / max(1.0, total - warm))
        share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * progress))
        if self.restart:
            share *= min(1.0, (step % self.restart + 1) / max(1, self.restart // 10))
        return self.rate * share


def distillation_loss(student: Any, teacher: Any, ids: Tensor, recipe: Recipe) -> Tensor:
    """The loss of one batch, `()`: nats a token. It is 0 where student and teacher are the same.

    Args:
        student, teacher: causal LMs with the same vocabulary.
        ids: `(batch, tokens)`.
    """
    own = student.base_model(ids, use_cache=False).last_hidden_state
    with torch.no_grad():
        theirs = teacher.base_model(ids, use_cache=False).last_hidden_state

    def of_tokens(rows: Tensor, shown: Tensor, labels: Tensor) -> Tensor:
        made = scaled_logits(student, rows)
        with torch.no_grad():
            wanted = scaled_logits(teacher, shown)
        loss = divergence(made, wanted, temperature=recipe.temperature) * recipe.temperature**2
        return loss + recipe.text * F.cross_entropy(made, labels, reduction="none") if recipe.text else loss

    before = [hidden[:, :-1].flatten(0, 1) for hidden in (own, theirs)]  # (tokens, hidden) each
    loss = in_pieces(of_tokens, *before, ids[:, 1:].flatten(), size=CHUNK) / len(before[0])
    if recipe.hidden:
        apart = (own.float() - theirs.float()).square().mean() / theirs.float().square().mean()
        loss = loss + recipe.hidden * apart
    return loss


def factor_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all factors, by name; shared ones once."""
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (LowRankLinear, LowRankEmbedding))
        for parameter in module.parameters()
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in inside}


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights and biases of all norms, by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for own, parameter in module.named_parameters(recurse=False)
    }


class Recovery(Training):
    """One run: `total` steps of one window each, in an order that is drawn anew for each round.

    Weights are kept in float32 while they are trained; the model computes in its own dtype.

    Args:
        student: the compressed model; changed in place. Trained are its factors, or norms, if it has only int weights.
        teacher: the original.
        inputs: `(windows, length)` token ids.
        steps: how many.
        folder: of the run.
        recipe: how it is trained.
    """

    unit = "steps_done"

    def __init__(
        self, student: Any, teacher: Any, inputs: Tensor, steps: int, folder: RunFolder, recipe: Recipe | None = None
    ) -> None:
        super().__init__(folder, steps)
        self.student, self.teacher, self.inputs, self.recipe = student, teacher, inputs, recipe or Recipe()
        student.requires_grad_(False)
        factors = factor_parameters(student)
        if not factors and getattr(student, "quantization_method", None) is None:
            raise ValueError("recover: got a model without factors; allowed are compressed ones, and quantized ones")
        if not factors and self.recipe.lora:
            raise ValueError(f"lora: got {self.recipe.lora} for a model without factors; allowed then is 0")
        self.trained = self._adapted() if self.recipe.lora else factors or norm_parameters(student)
        if not self.trained:
            raise ValueError(
                "recover: got a model whose norms have no weights; allowed are norms with weights, or factors"
            )
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        # what adapters have learnt is added up here: most of it is too small for a weight of 16 bits
        self.merged = [module.get_base_layer().weight.detach().float() for module in self._adapters()]
        self._begin()
        self.resume()

    def _begin(self) -> None:
        self.master = [parameter.detach().float().clone() for parameter in self.trained.values()]
        self.optimizer = torch.optim.AdamW(self.master, lr=self.recipe.rate, weight_decay=0.0)

    def _adapted(self) -> dict[str, nn.Parameter]:
        from peft import LoraConfig, inject_adapter_in_model

        names = [
            f"{name}.{side}"
            for name, module in self.student.named_modules()
            if isinstance(module, LowRankLinear) and module is not self.student.get_output_embeddings()
            for side in ("down", "up")
        ]
        torch.manual_seed(0)
        config = LoraConfig(r=self.recipe.lora, lora_alpha=2 * self.recipe.lora, target_modules=names)
        inject_adapter_in_model(config, self.student)
        return {name: p for name, p in self.student.named_parameters() if "lora_" in name}

    def step(self) -> dict[str, float]:
        round_, place = divmod(self.steps, len(self.inputs))
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(round_))
        ids = self.inputs[order[place]][None].to(self.student.device)
        loss = distillation_loss(self.student, self.teacher, ids, self.recipe)
        loss.backward()
        for master, parameter in zip(self.master, self.trained.values(), strict=True):
            master.grad, parameter.grad = parameter.grad.float() if parameter.grad is not None else None, None
        nn.utils.clip_grad_norm_(self.master, self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.steps, int(self.total))
        self.optimizer.step()
        self._store()
        self.steps += 1
        self.done += 1
        if self.recipe.restart and self.steps % self.recipe.restart == 0 and self.steps < self.total:
            self._restart()
        return {"loss": float(loss.detach())}

    @torch.no_grad()
    def _store(self) -> None:
        for master, parameter in zip(self.master, self.trained.values(), strict=True):
            parameter.copy_(master)

    @torch.no_grad()
    def _restart(self) -> None:
        """Adds what the adapters have learnt to the factors, and begins new ones."""
        with torch.random.fork_rng():
            torch.manual_seed(self.steps)
            self._merge()
            for module in self._adapters():
                (name,) = module.lora_A
                module.reset_lora_parameters(name, init_lora_weights=True)
        self._begin()

    @torch.no_grad()
    def _merge(self) -> None:
        for module, weight in zip(self._adapters(), self.merged, strict=True):
            (name,) = module.lora_A
            weight += module.get_delta_weight(name).float()
            module.get_base_layer().weight.copy_(weight)

    def _adapters(self) -> list[Any]:
        if not self.recipe.lora:
            return []
        from peft.tuners.lora import LoraLayer

        return [module for module in self.student.modules() if isinstance(module, LoraLayer)]

    def state(self) -> dict[str, Any]:
        return {"master": self.master, "optimizer": self.optimizer.state_dict(), "merged": self.merged}

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for module, own, saved in zip(self._adapters(), self.merged, state["merged"], strict=True):
                module.get_base_layer().weight.copy_(own.copy_(saved))
            for own, saved in zip(self.master, state["master"], strict=True):
                own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self._store()

    def finish(self) -> None:
        """Merges adapters, if there are any."""
        if self.recipe.lora:
            from peft.tuners.lora import LoraLayer

            self._merge()
            for name, module in list(self.student.named_modules()):
                if isinstance(module, LoraLayer):
                    parent, _, last = name.rpartition(".")
                    setattr(self.student.get_submodule(parent), last, module.get_base_layer())
        self.student.requires_grad_(False)


def recover(
    student: Any, teacher: Any, inputs: Tensor, steps: int, folder: RunFolder, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Teaches a compressed model; a run that was killed goes on from its last checkpoint.

    Args:
        student: the compressed model; changed in place.
        teacher: the original.
        inputs: `(windows, length)` token ids of calibration text.
        steps: how many windows are read.
        folder: for checkpoints and the log; it is closed in the end.
        recipe: how it is trained.
    Returns:
        settings, and by step the losses that the log has, each the mean of the steps since the one before.
    Raises:
        ValueError: neither factors nor quantized weights, unequal vocabularies, or a folder of another run.
    """
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"teacher: got one with {teacher.config.vocab_size} tokens; allowed are {student.config.vocab_size}"
        )
    run = Recovery(student, teacher, inputs, steps, folder, recipe)
    try:
        run.train()
        run.finish()
        losses = [(row["step"], row["loss"]) for row in folder.rows() if "loss" in row]
    finally:
        folder.close()
    return {"steps": steps, **vars(run.recipe), "losses": losses}
