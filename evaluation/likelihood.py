"""Likelihoods of given texts: of the choices behind a prompt, and of windows of running text.

They are those of the stock model. A policy drops entries of the cache that later tokens would read; the logits of all
tokens, which a likelihood needs, come from one pass without any (`evaluation/harness.py` has the same rule).
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill.compression.perplexity import nats
from distill.evaluation.benchmark import Sample
from distill.evaluation.generation import Generator
from distill.evaluation.prompting import Prompt
from distill.patches.meter import now

if TYPE_CHECKING:
    from distill.evaluation.methods import Method
    from distill.evaluation.predict import Plan


@dataclass(frozen=True)
class Measured:
    """What was measured of one sample.

    Attributes:
        nats: -log p of each choice, or of the window.
        scored: tokens that have been scored, of all choices together.
        prompt_tokens: of the prompt without a choice, or of the window.
        seconds: of all passes.
    """

    nats: list[float]
    scored: int
    prompt_tokens: int
    seconds: float


def measure(generator: Generator, sample: Sample, prompt: Prompt) -> Measured:
    """Measures one sample.

    Args:
        generator: model and tokenizer; its policy is off while this runs.
        sample: with `choices` or `window`.
        prompt: as the model gets it; not used for a window.

    Raises:
        ValueError: a choice that adds no token.
    """
    model, encoder = generator.model, generator.encoder
    if sample.window is not None:
        pairs, context = [(list(sample.window.ids), sample.window.fresh)], len(sample.window.ids)
    else:
        # white space at the end belongs to the choices, as in lm-eval: tokenizers join it with the word behind it
        text = prompt.text.rstrip()
        rest = prompt.text[len(text) :]
        context = len(encoder.encode(text))
        pairs = []
        for choice in sample.choices:
            ids = encoder.encode(text + rest + choice)
            if len(ids) <= context:
                raise ValueError(f"choice: got {choice!r}, which adds no token; allowed are texts that add one")
            pairs.append((ids, len(ids) - context))
    start = now(model.device)
    with torch.inference_mode(), ExitStack() as stack:
        if generator.obeys:
            stack.enter_context(model.using(None))
        found = [nats(model, ids, fresh) for ids, fresh in pairs]
    return Measured(found, sum(fresh for _, fresh in pairs), context, now(model.device) - start)


def record(generator: Generator, sample: Sample, prompt: Prompt, cut: bool) -> dict[str, Any]:
    """The record of a sample whose likelihood is measured; the prediction is the likeliest choice, first of equals.

    No cache is held, and there is no first token: both costs are those of the passes alone.

    Args:
        generator, sample, prompt: as for `measure`.
        cut: whether the prompt was cut.

    Raises:
        ValueError: as `measure`.
    """
    found = measure(generator, sample, prompt)
    best = sample.choices[found.nats.index(min(found.nats))] if sample.choices else ""
    seen = " ".join(map(str, sample.window.ids)) if sample.window else prompt.text
    return {
        "id": sample.id,
        "prediction": best,
        "nats": found.nats,
        "scored": found.scored,
        "reference": sample.reference,
        "group": sample.group,
        "prompt_tokens": found.prompt_tokens,
        "prompt_sha256": hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest(),
        "new_tokens": 0,
        "truncated": cut,
        "cost": {"seconds": found.seconds, "ttft_seconds": found.seconds, "cache_bytes": 0, "peak_cache_bytes": 0},
    }


def check(plan: Plan, method: Method, served: bool) -> None:
    """Refuses settings that would be ignored where likelihoods are measured.

    Args:
        plan: what is run.
        method: the method, or the stock model.
        served: whether an engine runs the model.

    Raises:
        ValueError: a method, another protocol than query-aware, an engine, or samples to drill down into.
    """
    name = plan.benchmark.name
    if method.policy is not None:
        raise ValueError(
            f"--edition: got {method.label!r}; allowed for {name} is 'default': it measures likelihoods, which need "
            "the logits of every token, and a model that drops tokens has fewer"
        )
    if plan.protocol != "query-aware":
        raise ValueError(f"--protocol: got {plan.protocol!r}; allowed for {name} is 'query-aware'")
    if served:
        raise ValueError(f"--engine: got vllm; allowed for {name}, which measures likelihoods, is transformers")
    if plan.drilldown:
        raise ValueError(f"--drilldown: got {plan.drilldown}; allowed for {name} is 0: no token is dropped")
