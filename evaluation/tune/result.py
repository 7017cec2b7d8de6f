"""What `distill tune` found, as values and as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distill.evaluation.intervals import wilson
from distill.patches.policy import Policy


@dataclass(frozen=True)
class Trial:
    """A policy run end to end.

    Attributes:
        label: what it is called in the table.
        policy: its JSON form; None for stock.
        bound: see `Candidate`.
        kept: how many of the stock model's right answers the policy gives too.
        samples: how many it was asked for; fewer than there are where it had missed too many.
        first_token: median seconds to the first token.
    """

    label: str
    policy: dict[str, Any] | None
    bound: float
    kept: int
    samples: int
    first_token: float


@dataclass(frozen=True)
class TuneResult:
    """What `tune` found.

    Attributes:
        policy: the fastest policy that kept the target share of stock's right answers; None if none did.
        best: the one that kept most, whatever its speed.
        target: that share.
        samples: number of prompts, those that stock does not answer included.
        recall: `recall[way][budget][layer]`: share of prompts whose needed tokens are within the budget.
        trials: all policies that were run end to end, stock first.
    """

    policy: Policy | None
    best: Policy | None
    target: float
    samples: int
    recall: dict[str, dict[str, list[float]]]
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        from distill.evaluation.tune.page import body

        return body(self)


def table(result: TuneResult) -> str:
    """The trials as a text table, and what came out."""
    stock = result.trials[0]
    lines = [
        f"stock answers {stock.kept} of {result.samples} prompts\n",
        f"{'':58}{'kept of stock':>16}{'interval':>16}{'bound':>8}{'first token':>13}{'ratio':>8}",
    ]
    for trial in result.trials:
        low, high = wilson(trial.kept, trial.samples)
        note = "" if trial.samples == stock.samples else " (stopped)"
        lines.append(
            f"{(trial.label + note)[:58]:58}{f'{trial.kept}/{trial.samples}':>16}{f'{low:.2f} to {high:.2f}':>16}"
            f"{trial.bound:>7.2f}x{trial.first_token:>11.3f} s{stock.first_token / trial.first_token:>7.2f}x"
        )
    if result.policy is not None:
        lines.append(f"\nfastest with {result.target:.0%} of stock's answers: {json.dumps(result.policy.to_dict())}")
    else:
        lines.append(f"\nno policy kept {result.target:.0%} of stock's answers")
        if result.best is not None:
            lines.append(f"the best of those tried: {json.dumps(result.best.to_dict())}")
    return "\n".join(lines)
