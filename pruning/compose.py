"""Prune a context, then ask a model about it.

The model may be any Transformers model that generates. One from `distill.load(path, policy=...)` goes on to drop
tokens inside its layers, so that both ways of saving work together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from string import Formatter
from typing import Any

from distill.pruning.checks import bad, check_text, flag
from distill.pruning.engine import Distill
from distill.pruning.result import Result
from distill.pruning.tokenization import Counter, make_counter


@dataclass(frozen=True)
class Answer:
    """What `PruneThenGenerate` returns.

    Args:
        text: what the model generated.
        prompt_tokens: how many tokens it read, special tokens included.
        pruned: the shortened context.
        timings: seconds of both steps ("prune", "generate").
    """

    text: str
    prompt_tokens: int
    pruned: Result
    timings: dict[str, float]


def _check_template(template: object) -> None:
    fields = ("context", "instruction", "question")
    try:
        parts = [part[1:] for part in Formatter().parse(check_text(template, "template")) if part[1] is not None]
    except ValueError:
        parts = []
    # a width such as {context:9999999999} or an attribute such as {context.x} has no place in a prompt
    plain = all(field in fields and not spec and not conversion for field, spec, conversion in parts)
    if not plain or "context" not in [field for field, *_ in parts]:
        raise bad("template", template, "format strings with {context}, and if wanted {instruction} and {question}")


class PruneThenGenerate:
    """Shortens a context, and lets a model answer a question about what is left.

    Only the context is shortened. Its budget is counted with the tokenizer of the model that reads it.

    Args:
        distill: shortens the context.
        model: reads the prompt and generates.
        tokenizer: the tokenizer of `model`.
        template: the prompt, with the fields `{context}`, `{instruction}` and `{question}`. Without one, instruction,
            context and question follow each other, with an empty line between.
        chat: whether the prompt becomes the user's turn in the tokenizer's chat template.

    Raises:
        ValueError: a template without `{context}` or with other fields, or `chat` without a chat template.
    """

    def __init__(
        self, distill: Distill, model: Any, tokenizer: Any, *, template: str | None = None, chat: bool = False
    ) -> None:
        if template is not None:
            _check_template(template)
        if flag("chat", chat) and not tokenizer.chat_template:
            raise bad("chat", chat, "False for a tokenizer without a chat template")
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
        """Shortens the context and generates an answer.

        Args:
            context: the text to shorten.
            question: what is asked.
            instruction: what else the prompt says.
            rate: share of the context's tokens to keep.
            query_aware: whether the question also decides what stays of the context.
            prune: further options of `Distill.compress`.
            **generation: options of `model.generate`, such as `max_new_tokens`.

        Raises:
            ValueError: an argument that is not allowed, by name.
        """
        for name, value in (("context", context), ("question", question), ("instruction", instruction)):
            check_text(value, name)
        flag("query_aware", query_aware)
        if prune is not None and not isinstance(prune, dict):
            raise bad("prune", prune, "dicts of options of Distill.compress")
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
