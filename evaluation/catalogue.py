"""The benchmarks by name; each module is imported only when its benchmark is asked for."""

from __future__ import annotations

import importlib

from distill.evaluation.benchmark import Benchmark
from distill.patches.checks import check_choice

# name: (module, class, one line of help)
BENCHMARKS = {
    "needle": ("needle", "Needle", "Needle in a Haystack: lengths x depths, classic or random needles"),
    "longbench": ("longbench", "LongBench", "LongBench v1, 21 tasks, and LongBench-E (--e), 13 tasks"),
    "longbench2": ("longbench2", "LongBench2", "LongBench v2, 503 four-choice questions"),
    "infbench": ("infbench", "InfiniteBench", "InfiniteBench, 12 tasks of 100k tokens and more"),
    "ruler": ("ruler", "Ruler", "RULER, 13 tasks generated for the model's tokenizer"),
    "babilong": ("babilong", "BABILong", "BABILong, qa1-qa10 at 0k to 1M tokens"),
    "longchat": ("longchat", "LongChat", "LongChat line retrieval"),
    "kv": ("kv", "KeyValue", "key-value retrieval of Lost in the Middle"),
    "squad": ("squad", "Squad", "SQuAD v1.1: official F1 and exact match"),
    "commongen": ("commongen", "CommonGen", "CommonGen: a sentence with given concepts; coverage, ROUGE-L, BLEU-4"),
    "gsm8k": ("gsm8k", "GSM8K", "GSM8K: the exact number, with worked examples (--prompt cot) or without (zero)"),
    "perplexity": ("perplexity", "PerplexityOfText", "perplexity a token and a word: WikiText-2, or any text"),
    "glue": ("multiple_choice", "Glue", "GLUE, 9 tasks, with the prompts of lm-eval"),
    "mmlu": ("multiple_choice", "Mmlu", "MMLU, 57 subjects, with the prompts of lm-eval"),
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name, as on the command line.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    check_choice("benchmark", name, tuple(BENCHMARKS))
    module, cls, _ = BENCHMARKS[name]
    made: Benchmark = getattr(importlib.import_module(f"distill.evaluation.{module}"), cls)()
    return made
