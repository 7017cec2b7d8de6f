"""vLLM's scheduler, which tells the managers of later layers how long a request's prompt is, and what it asks for."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from distill.engines.blocks import LaterManager


class _TellingMixin:
    """A scheduler under a policy."""

    kv_cache_manager: Any

    def add_request(self, request: Any) -> None:
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            if isinstance(manager, LaterManager):
                manager.requests[request.request_id] = request
        super().add_request(request)  # type: ignore[misc]


class DistillScheduler(_TellingMixin, Scheduler):
    """vLLM's scheduler under a policy."""


class DistillAsyncScheduler(_TellingMixin, AsyncScheduler):
    """vLLM's scheduler for overlapping steps, under a policy."""


def make_scheduler(*args: Any, vllm_config: Any, **kwargs: Any) -> Scheduler:
    """The one of the two that vLLM would use; which, is only known after the plugin has been asked."""
    made = DistillAsyncScheduler if vllm_config.scheduler_config.async_scheduling else DistillScheduler
    return made(*args, vllm_config=vllm_config, **kwargs)
