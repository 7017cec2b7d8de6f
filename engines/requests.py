"""Looks at the parameters of each request where it comes in, so that what cannot be honoured is refused there.

vLLM lets a logits processor check them; this one changes no logits.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from distill.engines.checks import PROMPT_SCORES, check_request
from distill.engines.prefix import CACHE, Caches


class RequestCheck(LogitsProcessor):
    """A logits processor that only checks.

    Attributes:
        question: whether the model's policy keeps a question; vLLM asks the class, which knows no model.
    """

    question: ClassVar[bool] = False

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        check_request(sampling_params, cls.question)

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass


class QuestionCheck(RequestCheck):
    """For a model whose policy has `question=True`."""

    question = True


class CacheCheck(RequestCheck):
    """For an engine with saved caches: the cache that a request names exists, and can begin a prompt.

    Attributes:
        caches: those of the engines of this process, by folder; vLLM asks the class, which knows no engine.
    """

    caches: ClassVar[dict[str, Caches]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        name = (sampling_params.extra_args or {}).get(CACHE)
        if name is None:
            return
        if sampling_params.skip_reading_prefix_cache:  # vLLM would read the whole prompt, and no cache
            raise ValueError(
                f"extra_args.{CACHE}: got {name!r}; allowed without {' and '.join(PROMPT_SCORES)}, which want "
                "the whole prompt computed"
            )
        errors = []
        for caches in cls.caches.values():
            try:
                caches.prefix(name)
                return
            except ValueError as error:
                errors.append(error)
        raise errors[-1]
