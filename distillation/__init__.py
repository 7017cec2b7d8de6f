"""Caches that stand for longer ones: fitted, scored by something learnt, trained; saved, loaded and asked."""

from __future__ import annotations

from distill.distillation.matching import AttentionMatching

__all__ = ["AttentionMatching"]
