"""Input pruning and in-layer retention in one step: prune the context, then ask a model.

The model is whatever the caller has: any Transformers model that generates, or one from `distill.load(path,
policy=...)`, which goes on to drop tokens inside its layers. Nothing here knows which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from distill.pruning.engine import Distill
from distill.pruning.result import Result
from distill.pruning.tokenization import Counter, make_counter


@dataclass(frozen=True)
class Answer:
    """`text`: what the model generated. `prompt_tokens`: what it read, special tokens included. `pruned`: the
    context's result. `timings`: seconds, pruning apart from generation ("prune", "generate")."""

    text: str
    prompt_tokens: int
    pruned: Result
    timings: dict[str, float]


class PruneThenGenerate:
    """Prunes the context with `distill`, counting with the reader's own tokenizer, and generates from the rest.

    `model` and `tokenizer`: the reader. The prompt is instruction, context and question with an empty line between, or
    `template`, a format string with `{context}`, `{instruction}` and `{question}`; only the context is ever pruned.
    With `chat=True` the prompt is the user's turn in the tokenizer's chat template. ValueError for a template without
    `{context}`, or `chat` without a chat template.
    """

    def __init__(
        self, distill: Distill, model: Any, tokenizer: Any, *, template: str | None = None, chat: bool = False
    ) -> None:
        if template is not None and "{context}" not in template:
            raise ValueError(f"template must contain {{context}}; got {template!r}")
        if chat and not tokenizer.chat_template:
            raise ValueError("chat=True needs a tokenizer with a chat template")
        self.model, self.tokenizer = model, tokenizer
        self.template, self.chat = template, chat
        self.distill = distill
        self.counter: Counter = make_counter(tokenizer)

    def __call__(
        self,
        context: str,
        question: str = "",
        *,
        instruction: str = "",
        rate: float | None = None,
        query_aware: bool = True,
        prune: dict[str, Any] | None = None,
        **generation: Any,
    ) -> Answer:
        """Prunes `context` and generates.

        `query_aware`: whether the question also decides what stays. `prune`: further options of `Distill.compress`.
        `generation`: options of `model.generate` (`max_new_tokens`, ...). ValueError as `Distill.compress` raises it.
        """
        began = time.perf_counter()
        options = dict(prune or {})
        if question and query_aware:
            options["question"] = question
        pruned = self.distill.counting_with(self.counter).compress(context, rate, **options)
        after = time.perf_counter()
        prompt = self._prompt(instruction, pruned.text, question)
        inputs = self._tokens(prompt)
        length = inputs["input_ids"].shape[1]
        out = self.model.generate(**inputs.to(self.model.device), **generation)
        text = self.tokenizer.decode(out[0, length:], skip_special_tokens=True)
        timings = {"prune": after - began, "generate": time.perf_counter() - after}
        return Answer(text, length, pruned, timings)

    def _prompt(self, instruction: str, context: str, question: str) -> str:
        if self.template is not None:
            return self.template.format(context=context, question=question, instruction=instruction)
        return "\n\n".join(part for part in (instruction, context, question) if part)

    def _tokens(self, prompt: str) -> Any:
        if not self.chat:
            return self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        turn = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
