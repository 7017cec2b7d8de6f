"""vLLM in this process, for many prompts at once: `distill generate` and `distill eval` with `--engine vllm`."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.engines.layout import tokens_held
from distill.engines.retention import entries
from distill.engines.settings import QUESTION, check_version, engine_arguments, policy_of


@dataclass(frozen=True)
class Ask:
    """A prompt, and how it is to be answered, greedily.

    Attributes:
        ids: token ids of the prompt.
        new: tokens at most.
        stops: token ids that end the answer; the last token is then one of them.
        least: tokens before one of them may come.
        question: how many of the last prompt tokens ask, for policies with `question=True`.
    """

    ids: tuple[int, ...]
    new: int
    stops: tuple[int, ...] = ()
    least: int = 0
    question: int | None = None


@dataclass(frozen=True)
class Made:
    """An answer.

    Attributes:
        tokens: its token ids.
        first, seconds: from when the prompt came to the first and to the last token; others are answered meanwhile.
        prompt_bytes, cache_bytes: keys and values held behind the prompt and at the end, by the formula of the blocks
            (an upper bound where the layer is chosen for each prompt); blocks are rounded up.
    """

    tokens: list[int]
    first: float
    seconds: float
    prompt_bytes: int
    cache_bytes: int


class Offline:
    """An engine under a policy.

    Args:
        model: folder or Hub name of a checkpoint, stock or saved by distill.
        policy: as in `distill.load`; `None` for exactly the stock model.
        dtype: `"auto"` or the name of a dtype.
        arguments: further arguments of `vllm.LLM`, such as `max_model_len`.
    Raises:
        ValueError: vLLM is not installed, or another version; a model or policy that it cannot honour.
    """

    def __init__(self, model: str, policy: Any, dtype: str = "auto", **arguments: Any) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("engine: got 'vllm', which is not installed: pip install 'distill-llm[vllm]'")
        # one process: nothing is then left running behind a program that is stopped
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # vLLM would take nearly all memory of the machine, and refuse to start where others use some
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        import vllm

        check_version(vllm.__version__)
        self.version = vllm.__version__
        named = engine_arguments(model, policy)
        try:
            self.llm = vllm.LLM(**named, dtype=dtype, disable_log_stats=False, **arguments)
        except Exception as error:  # vLLM wraps a refusal of ours in a validation error of its own
            raise ValueError(f"engine: got a model or settings that vLLM refuses: {error}") from error
        self.config = self.llm.llm_engine.model_config.hf_config
        self.dtype = self.llm.llm_engine.model_config.dtype
        self.policy = policy_of(self.config)

    def answer(self, asks: Sequence[Ask], progress: bool = False) -> list[Made]:
        """Answers all prompts, many at a time."""
        import vllm

        keeps_question = self.policy is not None and self.policy.question
        settings = [
            vllm.SamplingParams(
                temperature=0,
                max_tokens=ask.new,
                min_tokens=ask.least,
                stop_token_ids=list(ask.stops),
                ignore_eos=True,
                detokenize=False,
                extra_args={QUESTION: ask.question} if keeps_question and ask.question is not None else None,
            )
            for ask in asks
        ]
        prompts = [{"prompt_token_ids": list(ask.ids)} for ask in asks]
        outputs = self.llm.generate(prompts, settings, use_tqdm=progress)
        return [self._made(ask, output) for ask, output in zip(asks, outputs, strict=True)]

    def _made(self, ask: Ask, output: Any) -> Made:
        tokens, length = list(output.outputs[0].token_ids), len(ask.ids)
        times = output.metrics
        spent = times.last_token_ts - times.first_token_ts
        return Made(
            tokens,
            times.first_token_latency,
            times.first_token_latency + spent,
            self.held_bytes(length, length),
            self.held_bytes(length, length + len(tokens) - 1),
        )

    def held_bytes(self, length: int, tokens: int) -> int:
        """Bytes of keys and values that the first `tokens` tokens of a request need; `length`: of its prompt."""
        if self.policy is None:
            return self.stock_bytes(tokens)
        depth = self.config.num_hidden_layers
        held = [tokens_held(self.policy, length, depth, layer) for layer in range(depth)]
        return sum(entries(tokens, length, count) for count in held) * self._entry

    def stock_bytes(self, tokens: int) -> int:
        """Bytes of keys and values of so many tokens in the stock model."""
        return tokens * self.config.num_hidden_layers * self._entry

    @property
    def _entry(self) -> int:
        """Bytes of the key and the value of one token in one layer."""
        config = self.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_key_value_heads * head * self.dtype.itemsize

    def close(self) -> None:
        """Gives the memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()
        gc.collect()
