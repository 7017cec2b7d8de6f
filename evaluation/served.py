"""Prompts answered by vLLM, many at a time, in place of a model of Transformers.

vLLM reads and generates under the policy; prompts, limits, stops and scores are the benchmark's own, as everywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from distill.engines.offline import Ask, Made, Offline
from distill.evaluation.generation import Decoding, Generation, Generator
from distill.evaluation.prompting import Encoder, Prompt

#: prompts given to the engine at once
BATCH = 64


class ServedModel:
    """What prediction reads of a model, of one that vLLM runs.

    Args:
        name: folder or Hub name of the checkpoint.
        policy: a distill policy, or None for the stock model.
        dtype: as in `distill eval --dtype`.
    Raises:
        ValueError: what vLLM cannot honour.
    """

    def __init__(self, name: str, policy: Any, dtype: str, **arguments: Any) -> None:
        self.offline = Offline(name, policy, dtype=dtype, **arguments)
        self.config, self.dtype = self.offline.config, self.offline.dtype
        self.config._attn_implementation = "vllm"
        self.engine = f"vllm {self.offline.version}"
        self.device = torch.device("cpu")
        try:
            self.generation_config = GenerationConfig.from_pretrained(name)
        except OSError:
            self.generation_config = SimpleNamespace(eos_token_id=None)

    def using(self, policy: Any) -> Any:
        """A served model keeps the policy that it was loaded with."""
        raise ValueError("policy: got another one for a served model; allowed is the one that it was loaded with")

    def close(self) -> None:
        """Gives the memory back."""
        self.offline.close()
        gc.collect()


class ServedGenerator(Generator):
    """As `Generator`, for a `ServedModel`; prompts that were told to `prepare` are answered together.

    Raises:
        ValueError: another protocol than query-aware: a cache that vLLM has read is not asked a second question.
    """

    def __init__(self, model: ServedModel, encoder: Encoder, policy: Any, protocol: str) -> None:
        if protocol != "query-aware":
            raise ValueError(f"--protocol: got {protocol!r}; allowed with --engine vllm is 'query-aware'")
        super().__init__(model, encoder, policy, protocol)
        self._ready: dict[Ask, Made] = {}

    def prepare(self, prompts: Sequence[tuple[Prompt, int, Decoding]]) -> None:
        """Answers prompts, each with its number of tokens and how it is decoded, before they are asked for."""
        asks = list(dict.fromkeys(self._ask(*prompt) for prompt in prompts))
        self._ready = dict(zip(asks, self.model.offline.answer(asks), strict=True))

    def _ask(self, prompt: Prompt, max_new_tokens: int, decoding: Decoding) -> Ask:
        ids, _ = self._ids(prompt)
        return Ask(
            tuple(ids),
            max_new_tokens,
            tuple(self._stops(decoding)),
            least=1 if decoding.stop_at_newline else 0,
            question=self._question_tokens(prompt, ids),
        )

    def __call__(
        self, prompt: Prompt, max_new_tokens: int, decoding: Decoding | None = None, keep: bool = False
    ) -> Generation:
        decoding = decoding or Decoding()
        if decoding.first_token_free:
            raise ValueError("--preset: got one that goes on behind an EOS; allowed with --engine vllm are others")
        if keep:
            raise ValueError("--drilldown: got samples to record; allowed with --engine vllm is 0")
        ask = self._ask(prompt, max_new_tokens, decoding)
        if ask not in self._ready:
            self.prepare([(prompt, max_new_tokens, decoding)])
        made = self._ready[ask]
        text = self.encoder.decode(made.tokens)
        return Generation(
            text=text.strip() if decoding.strip else text,
            prompt_tokens=len(ask.ids),
            new_tokens=len(made.tokens),
            seconds=made.seconds,
            ttft_seconds=made.first,
            cache_bytes=made.cache_bytes,
            peak_cache_bytes=max(made.prompt_bytes, made.cache_bytes),
        )
