"""The calls of LLMLingua's `PromptCompressor`, answered by `Distill`.

A program that imports `PromptCompressor` from here gets our budgets and anchors with its own calls and result
dictionary. An argument that means nothing here is accepted with the value that LLMLingua has by default; any other
value is a `ValueError` that names what to use in its place.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill.pruning.budget import BudgetWarning
from distill.pruning.checks import BadArgument, bad, check_text, check_texts, choice, flag, number, strings
from distill.pruning.engine import Distill
from distill.pruning.options import LLMLINGUA
from distill.pruning.result import Result
from distill.pruning.units import split_units

_GPT4 = 0.06 / 1000  # dollars a token, as LLMLingua reckons what was saved
_TAG = re.compile(
    r"<llmlingua((?:\s*,\s*(?:rate\s*=\s*[\d.]+|compress\s*=\s*(?:True|False)))*)\s*>(.*?)</llmlingua>", re.S
)
_MEANINGLESS: dict[str, Any] = {
    "iterative_size": 200, "force_context_number": None, "use_sentence_level_filter": False,
    "use_token_level_filter": True, "keep_split": False, "keep_first_sentence": 0, "keep_last_sentence": 0,
    "keep_sentence_number": 0, "high_priority_bonus": 100, "context_budget": "+100", "token_budget_ratio": 1.4,
    "condition_in_question": "none", "reorder_context": "original", "dynamic_context_compression_ratio": 0.0,
    "condition_compare": False, "add_instruction": False, "context_segs": None, "context_segs_rate": None,
    "context_segs_compress": None, "target_context": -1, "context_level_rate": 1.0, "context_level_target_token": -1,
    "token_to_word": "mean", "strict_preserve_uncompressed": True,
}  # fmt: skip
_IN_PLACE = {
    "force_context_number": "force_context_ids, which contexts stay whole",
    "target_context": "force_context_ids, which contexts stay whole",
    "context_segs": "structured_compress_prompt, with <llmlingua, rate=0.3>...</llmlingua> in the text",
    "context_segs_rate": "structured_compress_prompt, with <llmlingua, rate=0.3>...</llmlingua> in the text",
    "context_segs_compress": "structured_compress_prompt, with <llmlingua, compress=False>...</llmlingua> in the text",
}


class Segment(NamedTuple):
    """A stretch of a structured context; `rate` is None for the rate of the call."""

    text: str
    rate: float | None
    compress: bool


class PromptCompressor:
    """Shortens prompts by the calls of LLMLingua's class of this name.

    Args:
        model_name: as in `Distill`: a causal LM, a token classifier, or None for the small model that ships.
        device_map: where it runs.
        model_config: options of LLMLingua's loader; only an empty one is allowed.
        open_api_config: the same.
        use_llmlingua2: whether `model_name` must be a token classifier.
        llmlingua2_config: options of LLMLingua-2; only an empty one is allowed.
        **options: the other options of `Distill`.

    Raises:
        ValueError: an argument that it cannot use, by name.
    """

    def __init__(
        self,
        model_name: Any = None,
        device_map: str = "cpu",
        model_config: Mapping[str, Any] | None = None,
        open_api_config: Mapping[str, Any] | None = None,
        use_llmlingua2: bool = False,
        llmlingua2_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        given = {
            "model_config": model_config,
            "open_api_config": open_api_config,
            "llmlingua2_config": llmlingua2_config,
        }
        for name, value in given.items():
            if value:
                raise BadArgument(name, "options of another package", LLMLINGUA[name])
        if flag("use_llmlingua2", use_llmlingua2) and "scorer" not in options:
            options["scorer"] = "classifier"
        self.distill = Distill(model_name, device_map, **options)

    def compress_prompt(
        self,
        context: str | Sequence[str],
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        *,
        force_context_ids: Sequence[int] | None = None,
        use_context_level_filter: bool = True,
        rank_method: str = "llmlingua",
        concate_question: bool = True,
        force_tokens: Sequence[str] = (),
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        return_word_label: bool = False,
        word_sep: str = "\t\t|\t\t",
        label_sep: str = " ",
        chunk_end_tokens: Sequence[str] = (".", "\n"),
        **others: Any,
    ) -> dict[str, Any]:
        """Shortens contexts between an instruction and a question, which stay as they are.

        Args:
            context: a text or a list of texts.
            instruction: comes before the contexts.
            question: comes after them; it also decides which sentences stay, where the scorer can use it.
            rate: share of the tokens to keep of each context.
            target_token: the most tokens to keep of all contexts together; -1 for none.
            force_context_ids: the numbers of contexts that stay whole.
            use_context_level_filter: is accepted and has no effect: no context vanishes.
            rank_method: `"llmlingua"` or `"longllmlingua"`; no difference here.
            concate_question: whether the question is part of the prompt.
            force_tokens: strings to keep.
            force_reserve_digit: whether numbers must stay; they do in any case while the rule "number" is on.
            drop_consecutive: whether of equal forced tokens in a row, with only white space between, one stays.
            return_word_label: whether each word is returned with 1 (it stayed) or 0.
            word_sep: stands between words then.
            label_sep: stands between a word and its label.
            chunk_end_tokens: is accepted and has no effect.
            **others: further arguments of LLMLingua, only with the values that it has by default.

        Returns:
            `compressed_prompt`, `compressed_prompt_list` (the contexts), `origin_tokens`, `compressed_tokens`, `ratio`
            such as "2.0x", `rate` such as "50.0%", `saving`; with `return_word_label` `fn_labeled_original_prompt`.

        Raises:
            ValueError: an argument that is not allowed, by name.
        """
        _refuse(others)
        texts = _texts(context, instruction, question)
        choice("rank_method", rank_method, ("llmlingua", "longllmlingua"))
        flags = {
            "use_context_level_filter": use_context_level_filter,
            "concate_question": concate_question,
            "drop_consecutive": drop_consecutive,
            "return_word_label": return_word_label,
        }
        for name, on in flags.items():
            flag(name, on)
        strings("chunk_end_tokens", chunk_end_tokens)
        if flag("force_reserve_digit", force_reserve_digit) and "number" not in self.distill.rules:
            raise BadArgument("force_reserve_digit", "True without the rule", "True with rules=['number', ...]")
        whole = _indices(force_context_ids, len(texts))
        forced = strings("force_tokens", force_tokens)
        segments = [[Segment(text, None, i not in whole)] for i, text in enumerate(texts)]
        found, results = self._shorten(segments, rate, target_token, question, forced)
        if drop_consecutive:
            found = [_without_repeats(text, forced) for text in found]
        answer = self._answer(texts, found, instruction, question if concate_question else "", results)
        if return_word_label:
            answer["fn_labeled_original_prompt"] = word_sep.join(
                label
                for text, result in zip(texts, results, strict=True)
                for label in _labels(text, result, label_sep)
            )
        return answer

    def structured_compress_prompt(
        self,
        context: str | Sequence[str],
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        *,
        concate_question: bool = True,
        force_tokens: Sequence[str] = (),
        **others: Any,
    ) -> dict[str, Any]:
        """Shortens contexts part by part, as tags in them say.

        `<llmlingua, compress=False>...</llmlingua>` stays as it is, `<llmlingua, rate=0.3>...</llmlingua>` keeps that
        share of its tokens, and all else has the rate of the call. Any character may stand between the tags.

        Args:
            context: a text or a list of texts with such tags.
            instruction: comes before the contexts.
            question: comes after them, see `compress_prompt`.
            rate: share of the tokens to keep where no tag says otherwise.
            target_token: the most tokens to keep of all contexts together; -1 for none.
            concate_question: whether the question is part of the prompt.
            force_tokens: strings to keep.
            **others: further arguments of LLMLingua, only with the values that it has by default.

        Returns:
            As `compress_prompt`; tags are removed and not counted.

        Raises:
            ValueError: an argument that is not allowed, by name, or a rate in a tag that is not above 0 and up to 1.
        """
        for name in ("use_context_level_filter", "rank_method", "force_context_ids"):
            others.pop(name, None)
        _refuse(others)
        flag("concate_question", concate_question)
        texts = _texts(context, instruction, question)
        segments = [_segments(text, i) for i, text in enumerate(texts)]
        forced = strings("force_tokens", force_tokens)
        found, results = self._shorten(segments, rate, target_token, question, forced)
        plain = ["".join(s.text for s in row) for row in segments]
        return self._answer(plain, found, instruction, question if concate_question else "", results)

    def _shorten(
        self,
        contexts: list[list[Segment]],
        rate: float,
        target_token: float,
        question: str,
        force_tokens: Sequence[str],
    ) -> tuple[list[str], list[Result | None]]:
        """The shortened contexts, and for each segment that was shortened its result (None for the others)."""
        options: dict[str, Any] = {"force_tokens": force_tokens, "keep_tags": False}
        if question.strip():
            options["question"] = question
        flat = [segment for row in contexts for segment in row]
        out: list[str] = [segment.text for segment in flat]
        results: list[Result | None] = [None] * len(flat)
        groups: dict[float | None, list[int]] = {}
        for i, segment in enumerate(flat):
            if segment.compress:
                groups.setdefault(segment.rate, []).append(i)
        limit: int | None = None
        if target_token != -1:
            limit = int(number("target_token", target_token, 0, 2**31 - 1, above=True))
        # the segments without a rate of their own come last: they share what is left of the target
        for own in sorted(groups, key=lambda r: r is None):
            members = groups[own]
            texts = [flat[i].text for i in members]
            if own is None and limit is not None:
                others = [out[i] for i in range(len(flat)) if i not in set(members)]
                left = max(1, limit - sum(self.distill.counter.count(others)) if others else limit)
                made = self.distill.compress_many(texts, target_tokens=left, scope="all", **options)
            else:
                made = self.distill.compress_many(texts, rate if own is None else own, **options)
            for i, result in zip(members, made, strict=True):
                out[i], results[i] = result.text, result
        if not groups:
            self.distill.compress_many([], rate, **options)  # refuses what is not allowed
        over = sum(result is not None and result.over_budget for result in results)
        if over:
            warnings.warn(
                f"{over} of {len(flat)} texts are over their budget, because of what must stay", BudgetWarning, 3
            )
        joined, at = [], 0
        for row in contexts:
            joined.append("".join(out[at : at + len(row)]))
            at += len(row)
        return joined, results

    def _answer(
        self, texts: list[str], found: list[str], instruction: str, question: str, results: Sequence[Result | None]
    ) -> dict[str, Any]:
        count = self.distill.counter.count
        ends = [part for part in (instruction, question) if part]
        around = sum(count(ends)) if ends else 0
        before, after = around + sum(count(texts) if texts else []), around + sum(count(found) if found else [])
        prompt = "\n\n".join(part for part in (instruction, "\n\n".join(found), question) if part)
        return {
            "compressed_prompt": prompt,
            "compressed_prompt_list": found,
            "origin_tokens": before,
            "compressed_tokens": after,
            "ratio": f"{before / after:.1f}x" if after else "1.0x",
            "rate": f"{after / before * 100:.1f}%" if before else "100.0%",
            "saving": f", Saving ${(before - after) * _GPT4:.1f} in GPT-4.",
        }


def _texts(context: str | Sequence[str], instruction: str, question: str) -> list[str]:
    """The contexts, once they and what stands around them have been checked."""
    texts = [context] if isinstance(context, str) else check_texts(context, "context")
    for name, value in (("instruction", instruction), ("question", question)):
        check_text(value, name)
    return texts


def _refuse(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name not in _MEANINGLESS:
            known = [
                p
                for p in inspect.signature(PromptCompressor.compress_prompt).parameters
                if p not in ("self", "others")
            ]
            raise BadArgument(name, "an argument that does not exist", ", ".join((*known, *_MEANINGLESS)))
        if type(value) is not type(_MEANINGLESS[name]) or value != _MEANINGLESS[name]:
            place = _IN_PLACE.get(name) or LLMLINGUA[name]
            raise bad(name, value, f"only {_MEANINGLESS[name]!r}; here: {place}")


def _indices(ids: Sequence[int] | None, count: int) -> set[int]:
    if ids is None:
        return set()
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Sequence):
        raise bad("force_context_ids", ids, "lists of numbers of contexts")
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count:
            raise bad("force_context_ids", i, f"whole numbers from 0 to {count - 1}")
    return set(ids)


def _segments(text: str, number_: int) -> list[Segment]:
    found, at = [], 0
    for match in _TAG.finditer(text):
        if match.start() > at:
            found.append(Segment(text[at : match.start()], None, True))
        share = re.search(r"rate\s*=\s*([\d.]+)", match.group(1))
        rate = None
        if share is not None:
            try:
                value: Any = float(share.group(1))
            except ValueError:
                value = share.group(1)
            rate = number(f"context[{number_}] rate", value, 0, 1, above=True, meaning="the share to keep")
        found.append(Segment(match.group(2), rate, not re.search(r"compress\s*=\s*False", match.group(1))))
        at = match.end()
    if at < len(text) or not found:
        found.append(Segment(text[at:], None, True))
    return found


def _without_repeats(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = re.sub(rf"({re.escape(token)})(?:[^\S\n]*{re.escape(token)})+", r"\1", text)
    return text


def _labels(text: str, result: Result | None, separator: str) -> list[str]:
    units = split_units(text)
    stays: set[int] = set()
    if result is not None:
        for a, b in result.spans:
            stays.update(range(a, b))
    return [
        f"{text[a:b]}{separator}{int(result is None or a in stays)}"
        for a, b in zip(units.starts.tolist(), units.ends.tolist(), strict=True)
    ]
