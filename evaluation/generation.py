"""Greedy decoding of one prompt, with the times and cache sizes that every result file reports.

Two protocols. *Query-aware*: the whole prompt, question included, is read in one call under the policy.
*Query-agnostic*: the context alone is read under the policy, then the question is fed on that cache with the policy
off. They are different products: only the second cache can serve another question.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from distill.evaluation.prompting import Encoder, Prompt
from distill.models.asking import generate_behind
from distill.patches.meter import FirstToken, cache_bytes, cache_peak, now

PROTOCOLS = ("query-aware", "query-agnostic")
# on the command line: first the one, then the other
BOTH = "both"


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded; always greedy, one prompt at a time.

    Attributes:
        stop_at_newline: end at the first newline, after at least one token (LongBench's samsum).
        tokenizer_eos_only: stop at the tokenizer's EOS alone, not at all the model's generation config lists.
        first_token_free: an EOS that comes first does not end the answer (PromptDistill's loop).
        strip: white space around the answer is removed.
    """

    stop_at_newline: bool = False
    tokenizer_eos_only: bool = False
    first_token_free: bool = False
    strip: bool = False


@dataclass(frozen=True)
class Generation:
    """An answer and what it cost.

    Attributes:
        prompt_tokens, new_tokens: numbers of tokens.
        seconds: from the first token read to the last token decoded.
        ttft_seconds: time to first token, reading of the context included.
        cache_bytes: bytes of keys and values held when decoding ended.
        peak_cache_bytes: the most held after any layer of any step.
        kept: share of (layer, KV head) caches that hold each prompt token at the end, 0..1; None if not asked for.
        tokens: the prompt's tokens as text; None if not asked for.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    ttft_seconds: float
    cache_bytes: int
    peak_cache_bytes: int
    kept: list[float] | None = None
    tokens: list[str] | None = None


class Generator:
    """A model, its tokenizer, and the policy and protocol that all prompts run under.

    Args:
        model: a causal LM of Transformers; with `policy`, one of distill's.
        encoder: its tokenizer.
        policy: a distill policy, or None for the stock model.

    Raises:
        ValueError: unknown `protocol`, or a policy on a model that cannot obey one.
    """

    def __init__(self, model: Any, encoder: Encoder, policy: Any = None, protocol: str = "query-aware") -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {protocol!r}; allowed are {', '.join(map(repr, PROTOCOLS))}")
        self.obeys = hasattr(model, "using")
        if policy is not None and not self.obeys:
            raise ValueError(
                f"model: got a {type(model).__name__}; allowed with a policy are models from distill.load"
            )
        self.policy = None if policy is None else policy.for_tokenizer(encoder.tokenizer)
        self.model, self.encoder, self.protocol = model, encoder, protocol

    def __call__(
        self, prompt: Prompt, max_new_tokens: int, decoding: Decoding | None = None, keep: bool = False
    ) -> Generation:
        """Answers one prompt.

        Args:
            keep: also report which prompt tokens the cache holds at the end.

        Raises:
            ValueError: an empty context under the query-agnostic protocol, or `max_new_tokens` below 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {max_new_tokens!r}; allowed are integers >= 1")
        decoding = decoding or Decoding()
        ids, read_first = self._ids(prompt)
        prompt_ids = torch.tensor([ids], device=self.model.device)
        start = now(self.model.device)
        with torch.inference_mode(), cache_peak(self.model) as meter:
            cache = self._read(prompt_ids[:, :read_first]) if read_first else None
            clock = FirstToken(self.model.device)
            asking = self._question_tokens(prompt, ids)
            new, cache = self._decode(prompt_ids, cache, max_new_tokens, decoding, clock, asking)
            end = now(self.model.device)
        text = self.encoder.decode(new)
        return Generation(
            text=text.strip() if decoding.strip else text,
            prompt_tokens=len(ids),
            new_tokens=len(new),
            seconds=end - start,
            ttft_seconds=clock.first - start,
            cache_bytes=cache_bytes(cache),
            peak_cache_bytes=max(meter.peak, cache_bytes(cache)),
            kept=kept_shares(cache, len(ids)) if keep else None,
            tokens=pieces_of(self.encoder.tokenizer, ids) if keep else None,
        )

    def _ids(self, prompt: Prompt) -> tuple[list[int], int]:
        """Prompt ids, and how many of them are read before the question is known (0: all at once)."""
        if self.protocol == "query-aware":
            return self.encoder.encode(prompt.text), 0
        context = self.encoder.encode(prompt.context)
        question = self.encoder.plain(prompt.question)
        if not prompt.context or not question:
            raise ValueError(
                "prompt: got one without a context or without a question behind it; allowed under the query-agnostic "
                "protocol are prompts with both"
            )
        return context + question, len(context)

    def _question_tokens(self, prompt: Prompt, ids: list[int]) -> int | None:
        """How many of the last tokens come after the context, for policies that treat them apart."""
        if self.policy is None or not prompt.context or not prompt.question:
            return None
        context = self.encoder.encode(prompt.context)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, context, strict=False))
        return max(1, len(ids) - sum(1 for _ in same))

    def _read(self, ids: Tensor) -> Any:
        with ExitStack() as stack:
            if self.obeys:
                stack.enter_context(self.model.using(self.policy))
            return self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _decode(
        self,
        ids: Tensor,
        cache: Any,
        max_new_tokens: int,
        decoding: Decoding,
        clock: FirstToken,
        question_tokens: int | None,
    ) -> tuple[list[int], Any]:
        extra = {} if cache is not None or question_tokens is None else {"question_tokens": question_tokens}
        new, cache = self._generate(ids, cache, max_new_tokens, decoding, clock, **extra)
        eos = self.encoder.tokenizer.eos_token_id
        if decoding.first_token_free and new == [eos] and max_new_tokens > 1:
            ids = torch.cat([ids, torch.tensor([new], device=ids.device)], dim=1)
            more, cache = self._generate(ids, cache, max_new_tokens - 1, decoding, clock)
            new = new + more
        return new, cache

    def _generate(
        self, ids: Tensor, cache: Any, count: int, decoding: Decoding, clock: FirstToken, **extra: Any
    ) -> tuple[list[int], Any]:
        config = GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=1 if decoding.stop_at_newline else None,
            eos_token_id=self._stops(decoding),
            pad_token_id=self._padding(),
            do_sample=False,
            num_beams=1,
            # the library's defaults, spelled out, because what is left open comes from the model's own settings
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            return_dict_in_generate=True,
        )
        settings: dict[str, Any] = {"generation_config": config, "streamer": clock}
        if cache is not None:
            read = cache.get_seq_length()
            output = generate_behind(self.model, cache, [ids[0, read:].tolist()], known=ids[:, :read], **settings)
        else:
            inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)} | extra
            if self.obeys:
                inputs["policy"] = self.policy
            output = self.model.generate(ids, **inputs, **settings)
        return output.sequences[0, ids.shape[1] :].tolist(), output.past_key_values

    def _stops(self, decoding: Decoding) -> list[int]:
        tokenizer = self.encoder.tokenizer
        configured = None if decoding.tokenizer_eos_only else self.model.generation_config.eos_token_id
        stops = tokenizer.eos_token_id if configured is None else configured
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        if decoding.stop_at_newline:
            # the official code takes the last token of an encoded newline
            stops = [*stops, self.encoder.plain("\n")[-1]]
        return list(dict.fromkeys(stops))

    def _padding(self) -> int:
        tokenizer = self.encoder.tokenizer
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
            if token is not None:
                return int(token)
        raise AssertionError


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token such that the pieces join to the text; bytes of one character go to its last token."""
    pieces: list[str] = []
    pending: list[int] = []
    for i, token in enumerate(ids, 1):
        pending.append(token)
        text = str(tokenizer.decode(pending, clean_up_tokenization_spaces=False))
        if text.endswith("\ufffd") and len(pending) < 8 and i < len(ids):
            pieces.append("")
            continue
        pieces.append(text)
        pending = []
    return pieces


def kept_shares(cache: Any, prompt_tokens: int) -> list[float]:
    """For each prompt token the share of (layer, KV head) caches that hold it, 0..1, of the first batch row.

    A layer that does not tell positions (a stock cache) holds everything.
    """
    total = torch.zeros(prompt_tokens)
    for layer in cache.layers:
        positions = getattr(layer, "positions", None)
        if positions is None:
            total += 1
            continue
        rows = positions[0].cpu()
        rows = rows[None] if rows.dim() == 1 else rows
        held = rows[(rows >= 0) & (rows < prompt_tokens)]
        total += torch.bincount(held, minlength=prompt_tokens).float() / len(rows)
    return (total / max(1, len(cache.layers))).tolist()
