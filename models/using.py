"""Which policy a call of a model runs under: its argument, that of a `using` block, or the config's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from distill.patches.asked import Asked
from distill.patches.cache import holds_kept_layers
from distill.patches.policy import Policy, as_policy

CONFIGURED: Any = "configured"  # default of `policy=`: the one set by `using`, else that of the config


@dataclass(frozen=True)
class Override:
    """What `using` or `generate` has set for the calls of one model, in one thread.

    Attributes:
        policy: the policy of these calls.
        partial_logits: whether the caller reads only the last rows of the logits, and so accepts logits of fewer
            tokens than it put in.
    """

    policy: Policy | None
    partial_logits: bool = False


_overrides: ContextVar[dict[int, Override]] = ContextVar("distill_overrides", default={})  # noqa: B039
# How many overrides are in force, in all threads. While there are none, `forward` does not read the ContextVar: that
# would make torch.compile break its graph.
_open = 0
_lock = Lock()


class PolicyMixin:
    """Finds the policy of a call: its argument `policy`, else that of the innermost `using`, else the config's."""

    config: Any
    _device_mesh: Any

    @contextmanager
    def using(self, policy: Any) -> Iterator[None]:
        """Within the `with` block, all calls of this model in this thread run under `policy`.

        Threads started inside the block do not inherit it; there, pass `policy=` to `generate()`.

        Args:
            policy: a `Policy`, its name, its JSON form, or `None` for exactly the stock model.
        """
        with self._overriding(Override(self._checked(policy), self._partial_logits())):
            yield

    @contextmanager
    def _overriding(self, override: Override) -> Iterator[None]:
        global _open
        models = (self, self.base_model)  # type: ignore[attr-defined]
        token = _overrides.set(_overrides.get() | {id(model): override for model in models})
        with _lock:
            _open += 1
        try:
            yield
        finally:
            with _lock:
                _open -= 1
            _overrides.reset(token)

    def _checked(self, policy: Any) -> Policy | None:
        policy = as_policy(policy)
        if policy is not None:
            policy.check(self.config)
        return policy

    def _resolve(self, policy: Any) -> Policy | None:
        return self._checked(self._override().policy if policy is CONFIGURED else policy)

    def _asked(
        self, policy: Any, cache: Any, prompt_ends: Any, after_prompt: int, question_tokens: Any, chunk: int | None
    ) -> Asked | None:
        """What a call of `forward` asks for, by its arguments; `None` if the stock `forward` does all of it."""
        chosen = self._resolve(policy)
        if chosen is None and chunk is None and not holds_kept_layers(cache):
            return None
        return Asked(chosen, prompt_ends, after_prompt, question_tokens, chunk, mesh=self._device_mesh)

    def _partial_logits(self) -> bool:
        return self._override().partial_logits

    def _override(self) -> Override:
        """What is set for calls of this model now; by default, the policy of its config."""
        found = _overrides.get().get(id(self)) if _open else None
        return found or Override(self.config.policy)
