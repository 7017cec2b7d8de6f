"""Likelihoods of given texts: of the choices behind a prompt, and of windows of running text.

They are those of the stock model. A policy drops entries of the cache that later tokens would read; the logits of all
tokens, which a likelihood needs, come from one pass without any (`evaluation/harness.py` has the same rule).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from distill.compression.perplexity import nats
from distill.evaluation.benchmark import Sample
from distill.evaluation.generation import Generator
from distill.evaluation.prompting import Prompt
from distill.patches.meter import now


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
