"""Looks at the parameters of each request where it comes in, so that what cannot be honoured is refused there.

vLLM lets a logits processor check them; this one changes no logits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from distill.engines.checks import check_request


class RequestCheck(LogitsProcessor):
    """A logits processor that only checks."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        check_request(sampling_params)

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass
