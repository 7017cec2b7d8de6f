"""The published methods, one file each. Importing this package registers them all by name.

Each one is a policy that runs on the mechanism of `distill.patches`.
"""

from distill.baselines.adakv import AdaKV
from distill.baselines.chunkkv import ChunkKV
from distill.baselines.criticalkv import CriticalKV
from distill.baselines.decoding import Decoding
from distill.baselines.expected_attention import ExpectedAttention
from distill.baselines.fastkv import FastKV
from distill.baselines.gemfilter import GemFilter
from distill.baselines.h2o import H2O
from distill.baselines.keydiff import KeyDiff
from distill.baselines.knorm import Knorm
from distill.baselines.kvzap import KVzap
from distill.baselines.kvzip import KVzip
from distill.baselines.lagkv import LagKV
from distill.baselines.observed import ObservedAttention
from distill.baselines.pyramidkv import PyramidKV
from distill.baselines.random import Random
from distill.baselines.snapkv import SnapKV
from distill.baselines.streamingllm import StreamingLLM
from distill.baselines.tova import TOVA

__all__ = [
    "H2O",
    "TOVA",
    "AdaKV",
    "ChunkKV",
    "CriticalKV",
    "Decoding",
    "ExpectedAttention",
    "FastKV",
    "GemFilter",
    "KVzap",
    "KVzip",
    "KeyDiff",
    "Knorm",
    "LagKV",
    "ObservedAttention",
    "PyramidKV",
    "Random",
    "SnapKV",
    "StreamingLLM",
]
