"""One run of `distill shrink`: phases that each leave a file, from which a run that was killed goes on.

measure -> plan -> transforms (a file for each decoder layer) -> recover -> quantize -> evaluate -> save -> summary;
recovery comes behind quantization where there are no factors to teach. What the phases leave lies in `OUT/work` until
the run is finished; the folder belongs to one process at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.compression.calibration import layers_of, windows
from distill.compression.latent import check_latents
from distill.compression.low_rank import embedding_factorization, factorize_in_order, head_moments, kv_ranks
from distill.compression.measure import EMBEDDING, measured, planner
from distill.compression.modules import LowRankLinear
from distill.compression.perplexity import perplexity
from distill.compression.plan import Plan
from distill.compression.quantize import quantization
from distill.compression.receipts import Receipt, weigh
from distill.compression.report import write_reports
from distill.compression.settings import Settings
from distill.compression.spec import empty_like, factorize_embedding_modules, name_of, replace_module, spec_of
from distill.training import RunFolder, write_whole

SUMMARY, WORK = "summary.json", "work"
#: share of the calibration text, at its end, that is measured and not calibrated on; and of how many tokens at most
HELD_OUT, MOST_HELD_OUT = 0.1, 8192
#: nats a token up to which a sum of second-order terms says something (docs/compression.md: 0.75 predicted, 1.4 found)
MOST_LOSS = 0.5
#: token ids whose logits are written down, for `distill shrink check`
PROBE = 16


class TooFarBelow(ValueError):
    """The compressed model is worse than the quality that was asked for; nothing has been written."""


class Job:
    """A run.

    Args:
        model: folder of the checkpoint.
        out: folder for the result.
        settings: what is asked for.
        text: the calibration text.
        load: makes a causal LM from a folder, `load(folder, dtype=...)`.
        tokenizer: of the model.
        say: gets lines for the user.
    Raises:
        ValueError: `out` holds something else, or a run with other settings.
    """

    def __init__(
        self,
        model: str,
        out: Path,
        settings: Settings,
        text: str,
        load: Callable[..., Any],
        tokenizer: Any,
        say: Callable[[str], None] = print,
    ) -> None:
        self.path, self.out, self.settings, self.load, self.say = model, out, settings, load, say
        self.tokenizer, self.text = tokenizer, text
        ids = list(tokenizer(text, verbose=False).input_ids)
        cut = int(len(ids) * (1 - HELD_OUT))
        self.inputs = windows(ids[:cut], settings.length, settings.windows)
        # recovery reads all of the text, once or more
        self.reading = windows(ids[:cut], settings.length, min(cut // settings.length, settings.recover_steps))
        self.held_out = ids[cut:][:MOST_HELD_OUT]
        self.options = {
            "model": str(model),
            "calibration": hashlib.sha256(text.encode()).hexdigest(),
            "settings": settings.to_dict(),
        }
        self.work = out / WORK
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Runs what has not been run yet; returns the summary.

        Raises:
            Infeasible: the target is below what the limits allow.
            TooFarBelow: the quality is below the floor.
            ValueError: a folder with other contents, or another run.
        """
        file = self.out / SUMMARY
        if file.exists():
            found = json.loads(file.read_text())
            if found.get("options") != json.loads(json.dumps(self.options)):
                raise ValueError(f"out: got {self.out}, the result of another run; allowed is a new folder")
            self.say(f"{self.out} is finished already")
            return dict(found)
        if self.out.exists() and any(path.name != WORK for path in self.out.iterdir()) and not self.work.exists():
            raise ValueError(f"out: got {self.out}, which holds other files; allowed are new and empty folders")
        folder = RunFolder(self.work, self.options)
        try:
            return self._phases()
        finally:
            folder.close()
            if file.exists():
                shutil.rmtree(self.work, ignore_errors=True)

    def _phases(self) -> dict[str, Any]:
        named = self.settings.dtype
        dtype = named if named == "auto" else getattr(torch, named)
        self._check_installed()
        model = self.load(self.path, dtype=dtype).eval()  # what is stored is what is measured
        if getattr(model.config, "compression", None) is not None:
            raise ValueError(f"model: got {self.path}, which is compressed already; allowed is the original")
        model.requires_grad_(False)
        if "kv_low_rank" in self.settings.transforms:
            check_latents(model)
        plan = self._plan(model, model.dtype)
        before = self._once("before.json", lambda: self._quality(model))
        receipts, first = [], weigh(model)
        for name in self._in_order():
            at = weigh(model)
            if name == "quantize":
                model, details = self._quantized(model)
            else:
                details = getattr(self, f"_{name}")(model, plan)
            receipts.append(Receipt(name, at, weigh(model), details))
            self.say(f"  {receipts[-1]}")
        after = self._once("after.json", lambda: self._quality(model))
        self._check_quality(before, after)
        model.config.compression = spec_of(model)
        return self._save(model, plan, {"before": before, "after": after}, receipts, first)

    def _in_order(self) -> list[str]:
        names = [*self.settings.transforms, *([] if self.settings.bits is None else ["quantize"])]
        return names if "low_rank" in names else names[::-1]  # without factors norms are taught, of quantized weights

    def _check_installed(self) -> None:
        """Raises a `ValueError` if a package is missing that is needed later."""
        if self.settings.bits is not None:
            quantization(self.settings.bits, torch.float32)
        if self.settings.lora and importlib.util.find_spec("peft") is None:
            raise ValueError(f"lora: got {self.settings.lora} without peft; allowed after `pip install peft`")

    def _plan(self, model: Any, dtype: torch.dtype) -> Plan:
        wanted, embedding = self.settings, "embedding_factorization" in self.settings.transforms
        errors = None
        if "low_rank" not in wanted.transforms:
            return planner(model, dtype.itemsize).plan({})
        if wanted.ranks == "adaptive":
            self.say("measure: what each singular value is worth")
            whitened = wanted.method == "whitened"
            errors = self._once("errors.json", lambda: measured(model, self.inputs, embedding, whitened, wanted.seed))
        fixed = kv_ranks(model, wanted.kv_share) if "kv_low_rank" in wanted.transforms else {}
        made = planner(model, dtype.itemsize, errors, embedding, wanted.limits, fixed)
        whole = made.plan({}).bytes
        target = wanted.bytes if wanted.bytes is not None else int(whole / (wanted.ratio or 1))
        self.say(f"plan: {target:,} of {whole:,} bytes of weights, as {str(dtype).removeprefix('torch.')}")
        plan = made.adaptive(target) if wanted.ranks == "adaptive" else made.uniform(target)
        self.say(plan.table())
        if plan.loss > MOST_LOSS:
            self.say(
                f"note: a predicted growth of {plan.loss:.2f} nats a token is above {MOST_LOSS}, where the prediction "
                "is no forecast any more; --ranks uniform may be better, and int8 or int4 nearly always"
            )
        return plan

    def _kv_low_rank(self, model: Any, plan: Plan) -> dict[str, Any]:
        ranks = kv_ranks(model, self.settings.kv_share)
        return {"share": self.settings.kv_share} | self._factorize(model, ranks, "kv_low_rank", larger=True)

    def _low_rank(self, model: Any, plan: Plan) -> dict[str, Any]:
        made = {name for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
        ranks = {name: rank for name, rank in plan.ranks.items() if name != EMBEDDING and name not in made}
        return self._factorize(model, ranks, "low_rank")

    def _factorize(self, model: Any, ranks: dict[str, int], phase: str, larger: bool = False) -> dict[str, Any]:
        layers = layers_of(model)
        prefix = name_of(model, layers)

        def file(index: int) -> Path:
            return self.work / f"{phase}-{index:04}.safetensors"

        def known(index: int) -> bool:
            if not file(index).exists():
                return False
            tensors = load_file(file(index))
            for name, rank in ranks.items():
                if name.startswith(f"{prefix}.{index}."):
                    replace_module(model, name, empty_like(model.get_submodule(name), rank))
            layers[index].load_state_dict(tensors, strict=True)
            return True

        inputs = self.inputs if self.settings.method == "whitened" else None
        self.say(f"{phase}: {len(ranks)} matrices, layer by layer")
        for index in factorize_in_order(model, ranks, inputs, larger, known):
            if not file(index).exists():
                tensors = {name: tensor.contiguous() for name, tensor in layers[index].state_dict().items()}
                write_whole(file(index), lambda new, tensors=tensors: save_file(tensors, new))  # type: ignore[misc]
                self.say(f"  layer {index + 1} of {len(layers)}")
        return {"method": self.settings.method, "ranks": ranks}

    def _embedding_factorization(self, model: Any, plan: Plan) -> dict[str, Any]:
        rank = plan.ranks.get(EMBEDDING)
        if rank is None:
            return {"rank": None, "left whole": True}
        file = self.work / "embedding.safetensors"
        if file.exists():
            factorize_embedding_modules(model, rank)
            model.get_input_embeddings().load_state_dict(load_file(file))
        else:
            metric = head_moments(model, self.inputs) if self.settings.method == "whitened" else None
            embedding_factorization(model, rank, metric)
            tensors = {name: tensor.contiguous() for name, tensor in model.get_input_embeddings().state_dict().items()}
            write_whole(file, lambda new: save_file(tensors, new))
        return {"rank": rank}

    def _quantized(self, model: Any) -> tuple[Any, dict[str, Any]]:
        """The model with int8 or int4 weights; bitsandbytes makes them while it is loaded."""
        bits, dtype = self.settings.bits, model.dtype
        assert bits is not None
        folder: Any = self.path
        if "low_rank" in self.settings.transforms:
            folder = self.work / "whole"
            model.config.compression = spec_of(model)
            model.save_pretrained(folder)
        self.say(f"quantize: {bits} bits, by bitsandbytes")
        made = self.load(folder, dtype=dtype, quantization_config=quantization(bits, dtype)).eval()
        return made, {"bits": bits}

    def _recover(self, model: Any, plan: Plan) -> dict[str, Any]:
        from distill.compression.recover import recover

        teacher = self.load(self.path, dtype=model.dtype).eval().to(model.device)
        steps = self.settings.recover_steps
        self.say(f"recover: {steps} steps of distillation from the original model")
        options = {**self.options, "steps": steps}
        found = recover(
            model, teacher, self.reading, steps, RunFolder(self.work / "recover", options), self.settings.recipe
        )
        return found

    def _quality(self, model: Any) -> dict[str, Any]:
        text = self.tokenizer.decode(self.held_out)
        found = perplexity(model, self.held_out, len(text.split()), self.settings.length)
        return vars(found)

    def _check_quality(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        floor, ratio = self.settings.quality, after["token"] / before["token"]
        if floor is not None and ratio > floor:
            raise TooFarBelow(
                f"quality: got a perplexity of {after['token']:.2f}, {ratio:.2f} times the original's "
                f"{before['token']:.2f} on {after['tokens']:,} held-out tokens; allowed are {floor:g} times. Nothing "
                f"was written. A larger target is needed, or recover, or a quantized model"
            )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, from the file of an earlier run if there is one."""
        file = self.work / name
        if not file.exists():
            began, value = time.perf_counter(), make()
            write_whole(file, lambda new: new.write_text(json.dumps(value)))
            self.seconds[name] = time.perf_counter() - began
        return json.loads(file.read_text())

    def _save(
        self, model: Any, plan: Plan, quality: dict[str, Any], receipts: list[Receipt], before: Any
    ) -> dict[str, Any]:
        made = self.work / "made"
        shutil.rmtree(made, ignore_errors=True)
        # bitsandbytes may repack 4-bit weights at the first forward call: with or without a resume, one comes before
        probe(model)
        model.save_pretrained(made)
        self.tokenizer.save_pretrained(made)
        after = weigh(model)
        files = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
        weights = sum(count for name, count in files.items() if name.endswith(".safetensors"))
        target = self.settings.bytes or int(plan.before / (self.settings.ratio or 1))
        summary = {
            "options": self.options,
            "ratio": plan.before / weights,
            "bytes": {
                "before": plan.before,
                "after": weights,
                "target": target,
                "all files": sum(files.values()),
            },
            "target met": (plan.bytes if self.settings.bits else weights) <= target,
            "weights": {"before": vars(before), "after": vars(after)},
            "bits of each original weight": 8 * weights / before.parameters,
            "quality": quality,
            "receipts": [receipt.to_dict() for receipt in receipts],
            "plan": plan.table(),
            "files": {name: {"bytes": count, "sha256": digest(made / name)} for name, count in files.items()},
            "probe": probe(model),
        }
        for path in made.iterdir():
            path.replace(self.out / path.name)
        write_reports(summary, self.out)
        write_whole(self.out / SUMMARY, lambda new: new.write_text(json.dumps(summary, indent=1) + "\n"))
        return summary


@torch.no_grad()
def probe(model: Any) -> list[float]:
    """Logits of the last of a few tokens, by which a copy can be compared: `PROBE` of them, evenly spread."""
    count = model.config.vocab_size
    ids = torch.tensor([[(i * 7919) % count for i in range(PROBE)]], device=model.device)
    logits: Tensor = model(ids, use_cache=False).logits[0, -1].float().cpu()
    return [float(logits[i * (len(logits) - 1) // (PROBE - 1)]) for i in range(PROBE)]


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as handle:
        found = hashlib.sha256()
        while block := handle.read(1 << 20):
            found.update(block)
    return found.hexdigest()
