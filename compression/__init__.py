"""Smaller weights, with receipts in bytes: transforms, a planner, and the field of the config that brings them back.

Importing this package does nothing else; it knows neither policies nor caches.
"""

from __future__ import annotations

from distill.compression.latent import LatentCache
from distill.compression.modules import LowRankEmbedding, LowRankLinear, break_even
from distill.compression.spec import rebuilt, spec_of

__all__ = ["LatentCache", "LowRankEmbedding", "LowRankLinear", "break_even", "rebuilt", "spec_of"]
