"""Trained caches: keys and values of a small cache as parameters, taught by the whole cache on what the model asks.

Paper: "Cartridges: Lightweight and general-purpose long context representations via self-study",
https://arxiv.org/abs/2506.06266. There, a cache begins with the keys and values of a text's first tokens. Here it
begins with any small cache, such as one of `AttentionMatching`, and goes on from where the fit ends.

No label is needed. The model reads a part of the document and writes a question about it; with the whole cache it
answers; and the small cache is taught to give every token of question and answer the probabilities that the whole
cache gives. Every other lesson is to repeat a part of the document, since questions of a small model leave much out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from distill.distillation.document import copied
from distill.distillation.scorer import hash_of
from distill.models.asking import Encoder, Prompt, chat, generate_behind, lengths_of
from distill.patches.cache import KeptLayer
from distill.patches.checks import check_integer, check_number
from distill.training import RunFolder, Training, write_whole

PART = 64  # tokens of the document that a lesson is about
CUE = 8  # of these, what "repeat" begins with
BATCH = 8  # conversations that are made at a time
REPEAT = "\n\nRepeat the part of the text that begins with these words: {cue}\n"
ASK = "\n\nWrite one short question that this text answers. Write nothing but the question.\n"
_ANY = "x"

Lesson = tuple[list[int], list[int]]  # token ids of a question and of its answer


@torch.no_grad()
def lessons(
    model: Any, tokenizer: Any, whole: Any, ids: Tensor, in_chat: bool, count: int, new: int = 48, seed: int = 0
) -> list[Lesson]:
    """Questions about a document, and what the model says with the whole document in its cache.

    Args:
        whole: the whole cache of the document, which stays as it is.
        ids: `(1, tokens)` the document.
        in_chat: the document stands in an open message of the chat template.
        count: how many; every other one asks to repeat a part of the document, and is answered by the document itself.
        new: most tokens of an answer.
    Raises:
        ValueError: a document of a few tokens only.
    """
    encoder, rng = Encoder(tokenizer), random.Random(seed)
    special = set(tokenizer.all_special_ids)
    words = [token for token in ids[0].tolist() if token not in special]
    if len(words) < 2 * CUE:
        raise ValueError(f"document: got {len(words)} tokens; allowed are documents of {2 * CUE} or more")
    ends = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    generator = torch.Generator().manual_seed(seed)

    def closed(question: str) -> list[int]:
        return encoder.plain(chat(tokenizer, Prompt(_ANY, question)).question if in_chat else question)

    def parts(number: int) -> list[list[int]]:
        starts = [rng.randrange(max(len(words) - PART, 1)) for _ in range(number)]
        return [words[start : start + PART] for start in starts]

    found: list[Lesson] = []
    for part in parts((count + 1) // 2):
        found.append((closed(REPEAT.format(cue=encoder.decode(part[:CUE]).strip())), part[CUE:]))
    asked = parts(count // 2)
    for first in tqdm(range(0, len(asked), BATCH), desc="questions", leave=False):
        some = asked[first : first + BATCH]
        read = [Prompt(encoder.decode(part), ASK) for part in some]
        prompts = [encoder.encode(chat(tokenizer, each).text if in_chat else each.text) for each in read]
        questions = _sampled(model, prompts, PART // 2, stops, generator)
        texts = ["\n\n" + (encoder.decode(question).strip() or "?") + "\n" for question in questions]
        behind = [closed(text) for text in texts]
        made = generate_behind(
            model, copied(whole), behind, ids, max_new_tokens=new, do_sample=False, pad_token_id=min(stops)
        )
        answers = made.sequences[:, ids.shape[1] + max(map(len, behind)) :].tolist()
        found += [(question, _until(answer, stops)) for question, answer in zip(behind, answers, strict=True)]
    rng.shuffle(found)
    return found


def _sampled(
    model: Any, prompts: Sequence[list[int]], new: int, stops: set[int], generator: torch.Generator
) -> list[list[int]]:
    """What the model writes behind each prompt, drawn with a generator of its own."""
    width = max(map(len, prompts))
    ids = torch.tensor([[min(stops)] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache, step, written = None, ids, []
    for _ in range(new):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
        out = model(
            step.to(model.device), attention_mask=mask.to(model.device), position_ids=positions.to(model.device),
            past_key_values=cache, use_cache=True, logits_to_keep=1, policy=None,
        )  # fmt: skip
        cache = out.past_key_values
        step = torch.multinomial(out.logits[:, -1].float().cpu().softmax(-1), 1, generator=generator)
        mask = F.pad(mask, (0, 1), value=1)
        written.append(step)
    return [_until(row, stops) for row in torch.cat(written, dim=1).tolist()]


def _until(ids: list[int], stops: set[int]) -> list[int]:
    """Up to the end of the text, this included; never nothing."""
    stop = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: stop + 1]


class CacheTraining(Training):
    """One run, which goes on from its last checkpoint.

    Args:
        model: a causal LM; it is not changed.
        small: the cache to begin with, of a policy, one row. It is not changed.
        whole: the whole cache, one row.
        taught: the lessons.
        folder: the folder of the run.
        steps, batch, rate: of the optimizer (Adam); the rate falls to zero along a cosine. Keys and values of a layer
            move by `rate` times the root mean square of what the layer held at first.
        sinks: the first tokens of the document, whose entries stay as they are. (Cartridges: the first one, or
            training is not stable.)
    """

    unit = "conversations"

    def __init__(
        self,
        model: Any,
        small: Any,
        whole: Any,
        taught: list[Lesson],
        folder: RunFolder,
        steps: int = 200,
        batch: int = 8,
        rate: float = 0.02,
        sinks: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(folder, steps * batch)
        if not all(isinstance(layer, KeptLayer) for layer in small.layers) or len(lengths_of(small)) != 1:
            raise ValueError("cache: got one that no policy has made, or of several rows; allowed is a document's")
        self.model, self.small, self.whole, self.taught = model, small, whole, taught
        self.batch, self.rate, self.seed = batch, rate, seed
        self.values: list[Tensor] = []
        self.frozen: list[Tensor] = []
        self.scales: list[float] = []
        for layer in small.layers:
            real = layer.real.expand(*layer.keys.shape[:3])
            still = (layer.layout < sinks).expand_as(real)
            for stored in (vars(layer)["_keys"], vars(layer)["_values"]):
                start = stored.detach().float().clone()
                scale = float(start.square().mean().sqrt().clamp(min=1e-6))
                self.scales.append(scale)
                self.values.append((start / scale).requires_grad_())
                self.frozen.append((still[real] if layer.ragged else still)[..., None].to(start.device))
        self.optimizer = torch.optim.Adam(self.values, lr=rate, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def cache(self, grad: bool = False) -> Any:
        """The small cache as it is now; with `grad`, as a function of what is trained."""
        made = copied(self.small)
        values = zip(self.values, self.scales, strict=True)
        for layer in made.layers:
            for name in ("_keys", "_values"):
                value, scale = next(values)
                value = value if grad else value.detach().clone()
                vars(layer)[name] = (value * scale).to(vars(layer)[name].dtype)
        return made

    def step(self) -> dict[str, float]:
        rng = random.Random(f"{self.seed} {self.steps}")
        loss = self._loss([self.taught[rng.randrange(len(self.taught))] for _ in range(self.batch)])
        for value, grad, still in zip(self.values, torch.autograd.grad(loss, self.values), self.frozen, strict=True):
            value.grad = grad.masked_fill(still, 0.0)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        self.done += self.batch
        return {"kl": float(loss.detach())}

    def _loss(self, some: list[Lesson]) -> Tensor:
        """Mean KL, in nats a token, from what the whole cache says, over the tokens of the answers."""
        rows = [question + answer[:-1] for question, answer in some]
        width = max(map(len, rows))
        asked = torch.tensor([[-1] * (width - len(row)) + row for row in rows])
        counted = torch.zeros_like(asked, dtype=torch.bool)
        for row, (_, answer) in enumerate(some):
            counted[row, -len(answer) :] = True
        with torch.no_grad():
            whole = self._logs(copied(self.whole), asked)[counted]
        small = self._logs(self.cache(grad=True), asked)[counted]
        return F.kl_div(small, whole, log_target=True, reduction="batchmean")

    def _logs(self, cache: Any, asked: Tensor) -> Tensor:
        """Log-probabilities `(batch, tokens, vocabulary)` behind a cache."""
        seen = cache.get_seq_length()
        cache.batch_repeat_interleave(len(asked))
        mask = torch.cat([torch.ones(len(asked), seen, dtype=torch.long), (asked >= 0).long()], dim=1)
        device = self.model.device
        out = self.model(
            asked.clamp(min=0).to(device), attention_mask=mask.to(device),
            position_ids=(mask.cumsum(1) - 1)[:, seen:].clamp(min=0).to(device),
            past_key_values=cache, use_cache=True, policy=None,
        )  # fmt: skip
        return out.logits.float().log_softmax(-1)

    def state(self) -> dict[str, Any]:
        optimizer, schedule = self.optimizer.state_dict(), self.schedule.state_dict()
        return {"values": [v.detach() for v in self.values], "optimizer": optimizer, "schedule": schedule}

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for value, saved in zip(self.values, state["values"], strict=True):
                value.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def train_cache(
    model: Any,
    tokenizer: Any,
    cache: Any,
    folder: str | Path,
    *,
    steps: int = 200,
    count: int = 128,
    new: int = 48,
    batch: int = 8,
    rate: float = 0.02,
    sinks: int = 4,
    seed: int = 0,
) -> Any:
    """Teaches a small cache of a document to say what the whole one says; for documents that are asked many times.

    The price is about `steps * batch` short conversations forwards, twice, and backwards, once: see
    docs/distillation.md. A run that was killed goes on from its last checkpoint.

    Args:
        model: the model that filled the cache, from `distill.load`.
        tokenizer: its tokenizer.
        cache: a `DocumentCache` of `read_document` or `load_cache`, under a policy. It stays as it is.
        folder: of the run: its lessons, checkpoint and log.
        steps: of the optimizer.
        count: conversations that the model makes up about the document, see `lessons`.
        new: most tokens of an answer.
        batch: conversations a step.
        rate: learning rate at first, as a share of the size of keys and of values.
        sinks: first tokens of the document whose entries stay as they are.
        seed: of lessons and steps.
    Returns:
        a new cache: the same entries at the same positions, with other keys and values.
    Raises:
        ValueError: a cache that does not know its document, settings that are not allowed, or a folder that holds
            another run.
    """
    for name, value, least in (("steps", steps, 1), ("count", count, 2), ("new", new, 1), ("batch", batch, 1)):
        check_integer(name, value, least)
    check_integer("sinks", sinks, 0)
    check_number("rate", rate, 1e-9, 10)
    origin = getattr(cache, "origin", None)
    if origin is None or origin.ids is None or bool((origin.ids < 0).any()) or len(origin.lengths) != 1:
        raise ValueError("cache: got one that does not know its document; allowed are those of read_document")
    settings = {
        "steps": steps, "count": count, "new": new, "batch": batch, "rate": rate, "sinks": sinks, "seed": seed,
        "model": origin.model, "policy": origin.policy, "document": hash_of(origin.ids),
    }  # fmt: skip
    run = RunFolder(folder, settings)
    try:
        with torch.no_grad():
            ids = origin.ids.to(model.device)
            whole = model(ids, use_cache=True, logits_to_keep=1, policy=None).past_key_values
        file = run.path / "lessons.json"
        if not file.exists():
            made = lessons(model, tokenizer, whole, origin.ids, bool(origin.chat), count, new, seed)
            write_whole(file, lambda path: path.write_text(json.dumps(made)))
        taught = [(question, answer) for question, answer in json.loads(file.read_text())]
        training = CacheTraining(model, cache, whole, taught, run, steps, batch, rate, sinks, seed)
        training.resume(str(model.device))
        training.train()
        return training.cache()
    finally:
        run.close()
