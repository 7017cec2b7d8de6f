"""From a sample to token ids: middle truncation, chat template, and exactly one BOS.

Every benchmark cuts long prompts in the middle, each a little differently; `truncate` has their three rules. Lengths
are in tokens and count the BOS that the tokenizer adds, as the official code does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """`template.format(**values)` split after the field named `context`.

    Raises:
        ValueError: the template does not have that field exactly once.
    """
    marker = "{" + context + "}"
    if template.count(marker) != 1:
        raise ValueError(f"template must have the field {marker} once: {template[:80]!r}")
    before, after = template.split(marker)
    return Prompt(before.format(**values) + values[context], after.format(**values))


class Encoder:
    """Encodes and decodes text with one tokenizer.

    Raises:
        ValueError: `tokenizer` is None (a model folder without a tokenizer).
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer must be a Transformers tokenizer, not None: the model has none, name one")
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        # what the tokenizer itself puts before a text: BOS, nothing, or (GLM) several special tokens
        self.prefix: list[int] = list(itertools.takewhile(special.__contains__, tokenizer("x").input_ids))
        self.opening = "".join(tokenizer.convert_ids_to_tokens(self.prefix))

    def plain(self, text: str) -> list[int]:
        """Ids of `text` alone: no BOS is added, and a spelled-out BOS inside the text stays text."""
        bos = self.tokenizer.bos_token
        if not self.prefix or bos is None or bos not in text:
            return list(self._ids(text))
        literal = self.tokenizer(bos, add_special_tokens=False, split_special_tokens=True).input_ids
        ids: list[int] = []
        for number, piece in enumerate(text.split(bos)):
            ids += (literal if number else []) + self._ids(piece)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a whole prompt, with the BOS that the tokenizer is used to exactly once, at the start.

        A chat template often writes the BOS itself, and documents can spell it out; neither adds a second one.
        """
        return self.prefix + self.plain(text.removeprefix(self.opening))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens, as the official code decodes: with the tokenizer's own defaults."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) if text else []


def truncate(encoder: Encoder, text: str, limit: int | None, rule: str) -> tuple[str, bool]:
    """`text` cut in the middle to `limit` tokens, and whether it was cut.

    Args:
        limit: most tokens, BOS included; None never cuts.
        rule: "longbench" keeps `limit // 2` ids at each end and joins the two decoded halves as strings (an odd limit
            keeps one token less); "infinitebench" keeps the same ids and decodes them as one sequence; "longbench2"
            keeps `limit // 2` at the start and the rest of the limit at the end, decoded as one sequence.
            Encoding the result again can give a few tokens more or less: the rules cut text, not ids.

    Raises:
        ValueError: unknown `rule`, or `limit` below 2 (a half of 0 would keep everything).
    """
    if rule not in TRUNCATIONS:
        raise ValueError(f"rule must be one of {', '.join(TRUNCATIONS)}, not {rule!r}")
    if limit is None:
        return text, False
    if limit < 2:
        raise ValueError(f"limit must be at least 2 tokens, not {limit}")
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
    """`truncate` for a prompt in two pieces.

    Args:
        split: the pieces are needed. Without it a limit that cuts into the question gives one piece, as in the
            official code, which knows no pieces.

    Raises:
        ValueError: as `truncate`; or `split`, and the limit is so low that the question itself was cut.
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
            raise ValueError(f"limit of {limit} tokens cuts into the question {prompt.question[-60:]!r}: allow more")
    return Prompt(text[: len(text) - len(question)], question), True


def chat(tokenizer: Any, prompt: Prompt) -> Prompt:
    """`prompt` as one user message in the tokenizer's chat template, ending where the answer begins.

    Raises:
        ValueError: the tokenizer has no chat template, or its template changes the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template: choose another preset")
    messages = [{"role": "user", "content": prompt.text}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # many templates trim the message
    body = prompt.text.strip()
    start = text.rfind(body)
    if not body or start < 0:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} does not keep the message as it is")
    lead = len(prompt.text) - len(prompt.text.lstrip())
    split = start + max(0, min(len(prompt.context) - lead, len(body)))
    return Prompt(text[:split], text[split:])
