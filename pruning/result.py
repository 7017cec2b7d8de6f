"""What a pruned text is, what it cost, and why each part is still there."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from distill.pruning.lines import Fold
from distill.pruning.masks.anchor import Anchor
from distill.pruning.segments import Segment
from distill.pruning.units import join

# A unit that several masks want is charged to the first of them; the last two entries are no masks and have no
# anchors.
MASK_ORDER = ("user", "rules", "ner", "protected", "layout", "statistical")


@dataclass(frozen=True)
class MaskUse:
    """What one mask kept.

    Args:
        anchors: how many stretches of the text it asked for.
        tokens: what they cost, in tokens of the original text, without what an earlier mask is charged for. For
            `"layout"` it is what line breaks cost, for `"statistical"` what is kept for its score alone.
    """

    anchors: int
    tokens: int


@dataclass(frozen=True)
class Result:
    """One shortened text.

    Args:
        original: the text as it was given, keep tags included.
        text: the shortened text.
        spans: the characters `[start, end)` of `original` that stayed; one after the other they are `text`.
        anchors: what had to stay, as characters of `original`.
        original_tokens: tokens of the original text, without keep tags and special tokens.
        tokens: tokens of the shortened text.
        budget: the most tokens that were allowed; None with a threshold.
        over_budget: whether the text has more, because what must stay needs more, or because one unit always stays.
        counter: the name of what counted the tokens.
        exact: False where the counts are estimates.
        scorer: the name of what scored the text.
        masks: what each mask kept, in the order of `MASK_ORDER`.
        labels: what each kind of anchor kept, by mask and label such as `"rules/money"`, dearest first.
        segments: the kinds of text that were found.
        folds: the repeated lines of logs of which some were removed, with all that is needed to restore them.
        timings: seconds of the whole call, which may have had other texts too ("masks", "score", "solve", "total").
        notes: sentences that a reader should know.
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
    labels: dict[str, MaskUse] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The share of the tokens that stayed; 1.0 for an empty text."""
        return self.tokens / self.original_tokens if self.original_tokens else 1.0

    def _repr_html_(self) -> str:
        """The text with what was removed struck through, for notebooks."""
        from distill.pruning.html import piece

        return piece(self)

    def with_counts(self) -> str:
        """The text with ` (x COUNT)` behind each line that stands for several of a log, see `folds`.

        The counts are no slices of the original and are not in `tokens`; each takes about four.
        """
        marks = sorted((fold.at, f" (x {fold.count})") for fold in self.folds if fold.at >= 0)
        parts, at = [], 0
        for start, end in self.spans:
            position = start
            while at < len(marks) and marks[at][0] <= end:
                place, mark = marks[at]
                if place > position:
                    parts.append(self.original[position:place])
                    position = place
                parts.append(mark)
                at += 1
            parts.append(self.original[position:end])
        return "".join(parts)

    def to_dict(self, *, with_original: bool = False) -> dict[str, Any]:
        """The result as values that JSON can hold.

        Args:
            with_original: whether the original text is included.
        """
        found = asdict(self)
        found["anchors"] = [a._asdict() for a in self.anchors]
        found["spans"] = [list(s) for s in self.spans]
        found["rate"] = self.rate
        if not with_original:
            del found["original"]
        return found

    def check(self) -> None:
        """A test that the text is made of slices of the original, in their order.

        Raises:
            AssertionError: it is not.
        """
        assert join(self.original, self.spans) == self.text
        assert all(b <= c for (_, b), (c, _) in zip(self.spans[:-1], self.spans[1:], strict=True))


def blame(result: Result) -> str:
    """What keeps a result from its budget, in words: the masks that kept something, those that kept most first."""
    spent = [
        f"{name} ({use.tokens})"
        for name, use in sorted(result.masks.items(), key=lambda item: -item[1].tokens)
        if use.tokens and name != "statistical"
    ]
    return f"what must stay, in tokens: {', '.join(spent)}" if spent else "the one unit that is always left"


def report(result: Result) -> str:
    """A result as a few lines of text: what was asked for, what came out, and which mask kept how many tokens."""
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
    kinds = [f"{name} {use.tokens} ({use.anchors})" for name, use in list(result.labels.items())[:12]]
    if kinds:
        lines.append(f"{'tokens by anchor':<18}{', '.join(kinds)}")
    if result.segments:
        counts = Counter(s.kind for s in result.segments)
        lines.append(f"{'segments':<18}" + ", ".join(f"{kind} {counts[kind]}" for kind in sorted(counts)))
    if result.folds:
        gone = sum(fold.count - len(fold.kept) for fold in result.folds)
        lines.append(f"{'repeated lines':<18}{gone} lines of {len(result.folds)} templates removed, see folds")
    if result.timings:
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in result.timings.items())
        lines.append(f"{'seconds':<18}{parts}")
    lines += [f"{'note':<18}{note}" for note in result.notes]
    return "\n".join(lines)
