"""What a pruned text is, what it cost, and why each part is still there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from distill.pruning.masks.anchor import Anchor
from distill.pruning.segments import Segment
from distill.pruning.units import join

# A unit that several masks keep is paid by the first of them; the last two have no anchors.
MASK_ORDER = ("user", "rules", "ner", "protected", "layout", "statistical")


@dataclass(frozen=True)
class MaskUse:
    """`anchors`: stretches the mask asked for. `tokens`: what they cost in the original text's own tokens, where no
    earlier mask pays for them; "layout" is line breaks, "statistical" all that the score alone kept."""

    anchors: int
    tokens: int


@dataclass(frozen=True)
class Result:
    """One pruned text.

    `original` and `text`: before (keep tags included) and after. `spans`: the characters `[start, end)` of `original`
    that stayed; joined they are `text`. `anchors`: what had to stay, in the same offsets.
    `original_tokens`, `tokens`: as `counter` counts, without special tokens and without keep tags; `exact` is False
    where that is an estimate. `budget`: the most tokens allowed (None with a threshold); `over_budget`: anchors, or
    the one unit that is always left, need more.
    `masks`: tokens spent per mask, in `MASK_ORDER`. `timings`: seconds of the whole call that made this result
    ("masks", "score", "solve", "total"); a call for several texts has one set of timings. `notes`: what a reader
    should know.
    """

    original: str
    text: str
    spans: list[tuple[int, int]]
    anchors: list[Anchor]
    original_tokens: int
    tokens: int
    budget: int | None
    over_budget: bool
    counter: str
    exact: bool
    scorer: str
    masks: dict[str, MaskUse]
    segments: list[Segment] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Share of the tokens that stayed; 1.0 for an empty text."""
        return self.tokens / self.original_tokens if self.original_tokens else 1.0

    def to_dict(self, *, with_original: bool = False) -> dict[str, Any]:
        """All of it as JSON-serialisable values; the original text only if asked for."""
        found = asdict(self)
        found["anchors"] = [a._asdict() for a in self.anchors]
        found["spans"] = [list(s) for s in self.spans]
        found["rate"] = self.rate
        if not with_original:
            del found["original"]
        return found

    def check(self) -> None:
        """Raises AssertionError unless the text is made of slices of the original; cheap, for tests and debugging."""
        assert join(self.original, self.spans) == self.text
        assert all(b <= c for (_, b), (c, _) in zip(self.spans[:-1], self.spans[1:], strict=True))


def blame(result: Result) -> str:
    """In words, what keeps a result from its budget: the masks that spent most, first."""
    spent = [
        f"{name} ({use.tokens})"
        for name, use in sorted(result.masks.items(), key=lambda item: -item[1].tokens)
        if use.tokens and name != "statistical"
    ]
    return f"what must stay, in tokens: {', '.join(spent)}" if spent else "the one unit that is always left"


def report(result: Result) -> str:
    """A block of plain text for people: what was asked for, what came out, and who spent the tokens."""
    limit = "a score threshold" if result.budget is None else f"at most {result.budget}"
    kind = "tokens" if result.exact else "estimated tokens"
    verdict = (
        "OVER THE BUDGET" if result.over_budget else "within the budget" if result.budget is not None else "no budget"
    )
    lines = [
        f"{kind:<18}{result.original_tokens} -> {result.tokens} ({result.rate:.1%} kept; {limit}: {verdict})",
        f"{'counted by':<18}{result.counter}",
        f"{'scored by':<18}{result.scorer}",
    ]
    spent = [f"{name} {use.tokens} ({use.anchors})" for name, use in result.masks.items() if use.tokens or use.anchors]
    lines.append(f"{'tokens by mask':<18}{', '.join(spent) or 'none'}")
    if result.segments:
        kinds = sorted({s.kind for s in result.segments})
        lines.append(
            f"{'segments':<18}" + ", ".join(f"{k} {sum(s.kind == k for s in result.segments)}" for k in kinds)
        )
    if result.timings:
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in result.timings.items())
        lines.append(f"{'seconds':<18}{parts}")
    lines += [f"{'note':<18}{note}" for note in result.notes]
    return "\n".join(lines)
