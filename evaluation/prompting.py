"""From a sample to token ids: middle truncation; chat template and BOS are those of `distill.models.asking`.

Every benchmark cuts long prompts in the middle, each a little differently; `truncate` has their three rules. Lengths
are in tokens and count the BOS that the tokenizer adds, as the official code does.
"""

from __future__ import annotations

from distill.models.asking import Encoder, Prompt, chat
from distill.patches.checks import check_choice, check_integer

__all__ = ["TRUNCATIONS", "Encoder", "Prompt", "chat", "fill", "truncate", "truncate_prompt"]

TRUNCATIONS = ("longbench", "longbench2", "infinitebench")


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
