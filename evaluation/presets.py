"""Presets: whose protocol a run follows, each written down as one value.

A benchmark has three presets. "official" is what its authors do, "promptdistill" is what PromptDistill's authors did
for their tables, and "chat" is the official protocol with the prompt put into the tokenizer's chat template. A
benchmark states its numbers in `presets`; the code that runs it reads the fields below and never asks for the name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.evaluation.generation import Decoding

# when a prompt is put into the tokenizer's chat template
TEMPLATE_USES = ("never", "auto", "always")


@dataclass(frozen=True)
class Limit:
    """How many tokens a prompt may have before it is cut in the middle.

    Attributes:
        most: at most so many tokens, whatever the model; None sets no such bound.
        reserve: the model's context window must keep so many tokens free; None leaves the window out of account.
        by_model: `most` for some architectures (as in `config.model_type`), instead of the one above.
    """

    most: int | None = None
    reserve: int | None = None
    by_model: Mapping[str, int] = field(default_factory=dict)

    def tokens(self, window: int | None, model_type: str | None) -> int | None:
        """The limit for one model, in prompt tokens; None if nothing bounds it.

        Args:
            window: the model's context length in tokens, None where its config does not say.
            model_type: its architecture, for example "llama".
        """
        bounds = [self.by_model.get(model_type or "", self.most)]
        if self.reserve is not None and window is not None:
            bounds.append(window - self.reserve)
        return min((bound for bound in bounds if bound is not None), default=None)


@dataclass(frozen=True)
class Grid:
    """How many context lengths and needle depths Needle in a Haystack is run at.

    Attributes:
        lengths, depths: numbers of evenly spaced lengths and depths.
        span: first and last length in tokens of a grid that does not depend on the flags: `--s_len` and `--e_len` then
            only leave out lengths. None: the grid runs from `--s_len` to `--e_len`.
    """

    lengths: int = 35
    depths: int = 35
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Preset:
    """One protocol of one benchmark.

    Attributes:
        name: as on the command line and in result files.
        truncation: the rule that long prompts are cut by, see `prompting.truncate`.
        limit: how long a prompt may be.
        template: when the prompt is put into the tokenizer's chat template: "never", "auto" (if the tokenizer has one)
            or "always" (a tokenizer without one is an error). Tasks with `Task.template=False` never are.
        decoding: how answers are decoded.
        newline_stops: answers of tasks with `Task.stop_at_newline` end at the first newline.
        extra_tokens: tokens generated at most beyond the task's number.
        scoring: settings that change scores but not predictions, by name.
        left_out: tasks that run only when they are named.
        wording: which of the benchmark's prompt wordings is used, where its prompt file has several.
        grid: lengths and depths of Needle in a Haystack.
    """

    name: str
    truncation: str = "longbench"
    limit: Limit = Limit()
    template: str = "never"
    decoding: Decoding = field(default_factory=Decoding)
    newline_stops: bool = True
    extra_tokens: int = 0
    scoring: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    wording: str = "official"
    grid: Grid = Grid()


OFFICIAL = Preset("official")
# Its loop takes the first token from the reading of the prompt and then generates up to the limit, so answers have one
# token more. Only the tokenizer's EOS ends an answer, but not as its first token. White space is stripped.
PROMPTDISTILL = Preset(
    "promptdistill",
    decoding=Decoding(tokenizer_eos_only=True, first_token_free=True, strip=True),
    newline_stops=False,
    extra_tokens=1,
)


def by_name(official: Preset, promptdistill: Preset | None, **chat: Any) -> dict[str, Preset]:
    """The presets of a benchmark, in the order in which they are offered.

    Args:
        official: the authors'.
        promptdistill: PromptDistill's, or None if its authors did not run the benchmark.
        chat: fields in which "chat" differs from "official" besides its name and the use of the template.
    """
    in_template = dataclasses.replace(official, name="chat", template="always", **chat)
    return {preset.name: preset for preset in (official, promptdistill, in_template) if preset is not None}
