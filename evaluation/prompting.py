"""From a sample to token ids: middle truncation, chat template, and exactly one BOS.

Every benchmark cuts long prompts in the middle, each a little differently; `truncate` has their three rules. Lengths
are in tokens and count the BOS that the tokenizer adds, as the official code does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.patches.checks import check_choice, check_integer

TRUNCATIONS = ("longbench", "longbench2", "infinitebench")


@dataclass(frozen=True)
class Prompt:
    """One prompt in two pieces, so that a method can be shown the first without the second.

    Attributes:
        context: everything up to and including the long text.
        question: everything after it: the question, instructions, the cue for the answer.
    """

    context: str
    question: str

    @property
    def text(self) -> str:
        return self.context + self.question


def fill(template: str, values: dict[str, str], context: str) -> Prompt:
    """Fills in a template and cuts the text in two behind the field named `context`.

    Args:
        template: a template for `str.format`.
        values: text by field.
        context: name of the field that holds the long text.

    Raises:
        ValueError: the template does not have that field exactly once.
    """
    marker = "{" + context + "}"
    if template.count(marker) != 1:
        raise ValueError(f"template: got {template[:80]!r}; allowed are texts that have the field {marker} once")
    before, after = template.split(marker)
    return Prompt(before.format(**values) + values[context], after.format(**values))


class Encoder:
    """Encodes and decodes text with one tokenizer.

    Raises:
        ValueError: `tokenizer` is None (a model folder without a tokenizer).
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer: got None; allowed is a Transformers tokenizer (the model has none: name one)")
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        # what the tokenizer itself puts before a text: BOS, nothing, or (GLM) several special tokens
        self.prefix: list[int] = list(itertools.takewhile(special.__contains__, tokenizer("x").input_ids))
        self.opening = "".join(tokenizer.convert_ids_to_tokens(self.prefix))

    def plain(self, text: str) -> list[int]:
        """Ids of `text` alone: no BOS is added, and if the text contains the BOS as text, it is read as text."""
        bos = self.tokenizer.bos_token
        if not self.prefix or bos is None or bos not in text:
            return list(self._ids(text))
        literal = self.tokenizer(bos, add_special_tokens=False, split_special_tokens=True).input_ids
        ids: list[int] = []
        for number, piece in enumerate(text.split(bos)):
            ids += (literal if number else []) + self._ids(piece)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a whole prompt. It begins with the tokenizer's BOS (if it uses one), which occurs nowhere else.

        A chat template often writes the BOS itself, and a document can contain it as text; neither adds a second one.
        """
        return self.prefix + self.plain(text.removeprefix(self.opening))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens, decoded with the tokenizer's defaults as the official code does."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) if text else []


def truncate(encoder: Encoder, text: str, limit: int | None, rule: str) -> tuple[str, bool]:
    """Cuts a text in the middle if it is longer than the limit.

    Args:
        encoder: the tokenizer that counts the tokens.
        text: the text.
        limit: most tokens, BOS included; None never cuts.
        rule: "longbench" keeps `limit // 2` ids at each end and joins the two decoded halves as strings (an odd limit
            keeps one token less); "infinitebench" keeps the same ids and decodes them as one sequence; "longbench2"
            keeps `limit // 2` at the start and the rest of the limit at the end, decoded as one sequence.
            The result is text again, and encoding it can give a few tokens more or less than the limit.

    Returns:
        The text, and whether it was cut.

    Raises:
        ValueError: unknown `rule`, or `limit` below 2 (a half of 0 would keep everything).
    """
    check_choice("rule", rule, TRUNCATIONS)
    if limit is None:
        return text, False
    check_integer("limit", limit, 2)
    ids = encoder.encode(text)
    if len(ids) <= limit:
        return text, False
    half = limit // 2
    if rule == "longbench":
        return encoder.decode(ids[:half]) + encoder.decode(ids[-half:]), True
    tail = limit - half if rule == "longbench2" else half
    return encoder.decode(ids[:half] + ids[-tail:]), True


def truncate_prompt(
    encoder: Encoder, prompt: Prompt, limit: int | None, rule: str, split: bool = False
) -> tuple[Prompt, bool]:
    """`truncate` for a prompt in two pieces, context and question.

    Args:
        encoder, limit, rule: as for `truncate`.
        prompt: the prompt.
        split: whether both pieces are needed afterwards. If they are not, and the limit is so low that the question is
            cut too, the whole prompt becomes one piece; the official code knows no pieces.

    Returns:
        The prompt, and whether it was cut.

    Raises:
        ValueError: as `truncate`; or the pieces are needed and the question would be cut.
    """
    text, cut = truncate(encoder, prompt.text, limit, rule)
    if not cut:
        return prompt, False
    question = prompt.question
    if not text.endswith(question):
        # the tokenizer's decoding may change blanks inside the question (SentencePiece), so compare through it
        question = encoder.decode(encoder.plain(question))
        if not question or not text.endswith(question):
            if not split:
                return Prompt(text, ""), True
            raise ValueError(
                f"limit: got {limit} tokens; allowed are enough not to cut the question {prompt.question[-60:]!r}"
            )
    return Prompt(text[: len(text) - len(question)], question), True


def chat(tokenizer: Any, prompt: Prompt) -> Prompt:
    """`prompt` as one user message in the tokenizer's chat template, ending where the answer begins.

    Raises:
        ValueError: the tokenizer has no chat template, or its template changes the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"tokenizer: got {tokenizer.name_or_path!r}; allowed are tokenizers with a chat template")
    messages = [{"role": "user", "content": prompt.text}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # many templates trim the message
    body = prompt.text.strip()
    start = text.rfind(body)
    if not body or start < 0:
        raise ValueError(
            f"tokenizer: got {tokenizer.name_or_path!r}; allowed are tokenizers whose chat template leaves a message "
            "as it is"
        )
    lead = len(prompt.text) - len(prompt.text.lstrip())
    split = start + max(0, min(len(prompt.context) - lead, len(body)))
    return Prompt(text[:split], text[split:])
