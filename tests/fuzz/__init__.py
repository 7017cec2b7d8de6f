"""Seeded random cases. Each module has `run(seed)`, which fails where something is wrong."""

from __future__ import annotations


class Fault(AssertionError):
    """What a case found."""
