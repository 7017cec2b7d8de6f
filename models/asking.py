"""A question behind a text that has been read: the ids of both, and what `generate` cannot guess of a filled cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.patches.cache import KeptLayer, holds_kept_layers


@dataclass(frozen=True)
class Prompt:
    """One prompt in two pieces, so that a method can be shown the first without the second.

    Attributes:
        context: everything up to and including the long text.
        question: everything after it: the question, instructions, the cue for the answer.
    """

    context: str
    question: str

    @property
    def text(self) -> str:
        return self.context + self.question


class Encoder:
    """Encodes and decodes text with one tokenizer.

    Raises:
        ValueError: `tokenizer` is None (a model folder without a tokenizer).
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer: got None; allowed is a Transformers tokenizer (the model has none: name one)")
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        # what the tokenizer itself puts before a text: BOS, nothing, or (GLM) several special tokens
        self.prefix: list[int] = list(itertools.takewhile(special.__contains__, tokenizer("x").input_ids))
        self.opening = "".join(tokenizer.convert_ids_to_tokens(self.prefix))

    def plain(self, text: str) -> list[int]:
        """Ids of `text` alone: no BOS is added, and if the text contains the BOS as text, it is read as text."""
        bos = self.tokenizer.bos_token
        if not self.prefix or bos is None or bos not in text:
            return list(self._ids(text))
        literal = self.tokenizer(bos, add_special_tokens=False, split_special_tokens=True).input_ids
        ids: list[int] = []
        for number, piece in enumerate(text.split(bos)):
            ids += (literal if number else []) + self._ids(piece)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a whole prompt. It begins with the tokenizer's BOS (if it uses one), which occurs nowhere else.

        A chat template often writes the BOS itself, and a document can contain it as text; neither adds a second one.
        """
        return self.prefix + self.plain(text.removeprefix(self.opening))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens, decoded with the tokenizer's defaults as the official code does."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) if text else []


def chat(tokenizer: Any, prompt: Prompt) -> Prompt:
    """`prompt` as one user message in the tokenizer's chat template, ending where the answer begins.

    Raises:
        ValueError: the tokenizer has no chat template, or its template changes the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"tokenizer: got {tokenizer.name_or_path!r}; allowed are tokenizers with a chat template")
    messages = [{"role": "user", "content": prompt.text}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # many templates trim the message
    body = prompt.text.strip()
    start = text.rfind(body)
    if not body or start < 0:
        raise ValueError(
            f"tokenizer: got {tokenizer.name_or_path!r}; allowed are tokenizers whose chat template leaves a message "
            "as it is"
        )
    lead = len(prompt.text) - len(prompt.text.lstrip())
    split = start + max(0, min(len(prompt.context) - lead, len(body)))
    return Prompt(text[:split], text[split:])


def lengths_of(cache: Any) -> Tensor:
    """How many real tokens each row of a filled cache has seen, `(batch,)`; padding does not count.

    A stock cache does not know its padding: all that it has seen counts.

    Raises:
        ValueError: nothing has been read.
    """
    if not cache.get_seq_length():
        raise ValueError("cache: got one that is empty; allowed are caches that hold a text")
    first = cache.layers[0]
    if isinstance(first, KeptLayer):
        return first.lengths.cpu()
    return torch.full((len(first.keys),), cache.get_seq_length())


def generate_behind(
    model: Any,
    cache: Any,
    questions: Sequence[Sequence[int]],
    known: Tensor | None = None,
    mask: Tensor | None = None,
    policy: Any = None,
    **settings: Any,
) -> Any:
    """Runs `generate` for questions behind a filled cache. The cache is written to.

    `generate` needs ids as long as what the cache has seen, a mask from which it counts positions, and under beam
    search a cache that has been repeated already.

    Args:
        model: a causal LM; of distill, unless the cache is a stock one.
        cache: a filled cache; with one row and several questions, its row is repeated.
        questions: token ids, one question a row. They are padded on the left, which changes no answer.
        known: `(batch, seen)` ids of what was read, `-1` for unknown ones. Only rules such as `repetition_penalty`
            look at them; unknown ones are given as the first token of the question, on which these rules act anyway.
        mask: `(batch, seen)` 1 for real tokens, of a stock cache with padding; other caches know.
        policy: what drops entries while the question is read; `None` drops none.
        settings: further arguments of `generate`.
    Returns:
        what `generate` returns, with `return_dict_in_generate`. New tokens begin at column `seen + longest question`.
    Raises:
        ValueError: an empty question, numbers of rows that do not fit, or a model that cannot use this cache.
    """
    ours = hasattr(model, "using")
    if not ours and (policy is not None or holds_kept_layers(cache)):
        raise ValueError(
            f"model: got a {type(model).__name__}; allowed with a policy, and with a cache from which one has dropped "
            "entries, are models from distill.load"
        )
    if not questions or not all(map(len, questions)):
        raise ValueError("question: got one without tokens; allowed are texts of at least one token")
    if settings.get("prefill_chunk_size") is not None:
        # before Transformers 5.23 at the latest, `generate` cuts the mask of such chunks as if the cache were empty
        raise ValueError(
            f"prefill_chunk_size: got {settings['prefill_chunk_size']!r}; allowed behind a filled cache is None"
        )
    seen, rows = cache.get_seq_length(), len(questions)
    if mask is None or isinstance(cache.layers[0], KeptLayer):
        past = _columns(lengths_of(cache), seen)
    else:
        past = mask.cpu().long()
    ids = torch.full_like(past, -1) if known is None else known.cpu()
    for name, given in (("attention_mask", past), ("ids", ids)):
        if given.shape != (held := (len(past), seen)):
            raise ValueError(f"{name}: got shape {tuple(given.shape)}; allowed for this cache is {held}")
    if len(past) == 1 < rows:
        cache.batch_repeat_interleave(rows)
        past, ids = past.expand(rows, -1), ids.expand(rows, -1)
    if len(past) != rows:
        raise ValueError(f"question: got {rows} questions; allowed for this cache are {len(past)}, one a row")
    width = max(map(len, questions))
    asked = torch.tensor([[-1] * (width - len(question)) + [*question] for question in questions])
    ids, first = torch.cat([ids, asked], dim=1), torch.tensor([[question[0]] for question in questions])
    inputs = {
        "input_ids": torch.where(ids < 0, first, ids).to(model.device),
        "attention_mask": torch.cat([past, (asked >= 0).long()], dim=1).to(model.device),
    }
    config = settings.get("generation_config") or model.generation_config
    counts = (settings.get(name, getattr(config, name, None)) or 1 for name in ("num_beams", "num_return_sequences"))
    if (copies := max(counts)) > 1:  # generate repeats the ids for that, and not the cache
        cache.batch_repeat_interleave(copies)
    extra = {"policy": policy} if ours else {}
    return model.generate(**inputs, past_key_values=cache, return_dict_in_generate=True, **extra, **settings)


def _columns(lengths: Tensor, seen: int) -> Tensor:
    """A mask `(batch, seen)` with so many ones at the end of each row."""
    return (torch.arange(seen) >= seen - lengths[:, None]).long()
