"""Which policy applies to a call of a model: the call's own, that of a `using` block, or the config's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from distill.patches.policy import Policy, as_policy

CONFIGURED: Any = "configured"  # the policy of the config, or the one set by `using`


@dataclass(frozen=True)
class Override:
    """What `using` and `generate` set for the calls of one model, in one thread.

    Attributes:
        policy: the policy of the calls.
        partial_logits: whether the caller reads the last rows of the logits only, so that fewer rows are no surprise.
    """

    policy: Policy | None
    partial_logits: bool = False


_overrides: ContextVar[dict[int, Override]] = ContextVar("distill_overrides", default={})  # noqa: B039
# Number of contexts open anywhere. While there are none, `forward` does not read a ContextVar, at which torch.compile
# would have to stop.
_open = 0
_lock = Lock()


class PolicyMixin:
    """Resolves which policy applies to a call: the argument, else the innermost `using`, else the config's."""

    config: Any

    @contextmanager
    def using(self, policy: Any) -> Iterator[None]:
        """Within the `with` block, in this thread, calls of this model run under `policy` (`None`: exactly stock).

        Threads started inside the block do not inherit it; pass `policy=` to `generate()` there.
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
        if policy is not CONFIGURED:
            return self._checked(policy)
        override = self._override()
        if override is not None:
            return override.policy
        return self._checked(self.config.policy)

    def _partial_logits(self) -> bool:
        override = self._override()
        return override is not None and override.partial_logits

    def _override(self) -> Override | None:
        return _overrides.get().get(id(self)) if _open else None
