"""What a server is told at its start."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

API_KEY_VARIABLE = "DISTILL_API_KEY"


@dataclass(frozen=True)
class Settings:
    """`queue`: requests that may wait or run at once; more get 503. `timeout`: seconds a request may take, waiting
    included; then 504. `max_body`: bytes; larger bodies get 413. `api_key`: if set, every request but /healthz and the
    documentation must carry it; by default what the environment variable DISTILL_API_KEY says.

    ValueError for a bound that is not positive.
    """

    queue: int = 64
    timeout: float = 30.0
    max_body: int = 4 * 2**20
    api_key: str | None = field(default_factory=lambda: os.environ.get(API_KEY_VARIABLE) or None, repr=False)

    def __post_init__(self) -> None:
        for name in ("queue", "timeout", "max_body"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)!r}")
