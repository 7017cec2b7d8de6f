"""Which tokens of a prompt were kept, in colour: for notebooks, terminals and the page of `make demo`."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from transformers import Cache

from distill.evaluation.generation import kept_shares, pieces_of
from distill.patches.checks import check_integer, shown
from distill.patches.decoder import Selection
from distill.patches.show import frame

KEPT, DROPPED, PLAIN = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"
LEVELS = 9

# the darker, the larger the share; what was dropped is faint; a framed stretch that was kept is yellow
STYLE = (
    "<style>.kept { font: 14px/1.6 Georgia, serif; white-space: pre-wrap; overflow-wrap: anywhere; color: #999 }\n"
    ".kept mark, .kept b { color: #111; border-radius: 2px; font-weight: 400 } .kept b { background: #f5c96a }\n"
    + "\n".join(f".kept mark.k{i} {{ background: rgb(12 160 120 / {6 * i + 10}%) }}" for i in range(1, LEVELS + 1))
    + "</style>"
)


@dataclass(frozen=True)
class Kept:
    """The tokens of one prompt, and which were kept.

    Attributes:
        pieces: the text of each token; joined, they are the prompt.
        shares: how often each was kept, from 0 (dropped everywhere) to 1.
        framed: indices of tokens to point out, such as those of a fact that is asked for.
    """

    pieces: tuple[str, ...]
    shares: tuple[float, ...]
    framed: frozenset[int] = frozenset()

    @property
    def count(self) -> int:
        """How many tokens were kept anywhere."""
        return sum(share > 0 for share in self.shares)

    def part(self, start: int, stop: int) -> Kept:
        """The tokens `[start, stop)` alone."""
        framed = frozenset(i - start for i in self.framed if start <= i < stop)
        return Kept(self.pieces[start:stop], self.shares[start:stop], framed)

    def __str__(self) -> str:
        """On a terminal, kept tokens are marked and dropped ones faint; elsewhere, kept ones are in brackets."""
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        parts = []
        for kept, group in groupby(zip(self.pieces, self.shares, strict=True), key=lambda pair: pair[1] > 0):
            text = "".join(piece for piece, _ in group)
            if coloured:
                parts.append((KEPT if kept else DROPPED) + text + PLAIN)
            else:
                parts.append(f"[{text}]" if kept else text)
        return "".join(parts)

    def _repr_html_(self) -> str:
        note = f"{self.count} of {len(self.pieces)} tokens kept; the darker, the more often"
        return frame(f"<p>{note}</p>", self.html())

    def html(self) -> str:
        """The text with an element for each kept token, and nothing around it."""
        return f"{STYLE}<div class='kept'>{''.join(map(self._piece, range(len(self.pieces))))}</div>"

    def _piece(self, index: int) -> str:
        text, share = html.escape(self.pieces[index]), self.shares[index]
        if share <= 0:
            return text
        if index in self.framed:
            return f"<b>{text}</b>"
        return f"<mark class='k{max(1, round(LEVELS * share))}'>{text}</mark>"


def show_kept(tokenizer: Any, ids: Any, selections: Any, framed: Iterable[int] = ()) -> Kept:
    """Which tokens of a prompt were kept, to print or to look at in a notebook.

    Args:
        tokenizer: the model's.
        ids: the prompt, `(tokens,)`, `(1, tokens)` or a list.
        selections: what says which: the `selections` of a model's output (a share is that of the selections that a
            token outlived), a cache (a share is that of the layers and heads that hold the token), or the indices of
            the kept tokens.
        framed: indices of tokens to point out.
    Raises:
        ValueError: more than one prompt, or something else that was given.
    """
    tokens = _prompt(ids)
    for index in (framed := frozenset(framed)):
        check_integer("framed", index, 0, len(tokens) - 1)
    return Kept(tuple(pieces_of(tokenizer, tokens)), tuple(_shares(selections, len(tokens))), framed)


def _prompt(ids: Any) -> list[int]:
    found = ids.tolist() if isinstance(ids, Tensor) else ids
    if isinstance(found, Sequence) and len(found) == 1 and isinstance(found[0], Sequence):
        found = found[0]
    if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(i, int) for i in found):
        raise ValueError(f"ids: got {shown(ids)}; allowed are the token ids of one prompt, (tokens,) or (1, tokens)")
    return list(found)


def _shares(selections: Any, length: int) -> list[float]:
    """A share for each of `length` tokens."""
    if isinstance(selections, Cache) and hasattr(selections, "layers"):
        return kept_shares(selections, length)
    if isinstance(selections, Tensor):
        selections = selections.flatten().tolist()
    if not isinstance(selections, (Sequence, set, frozenset)) or isinstance(selections, str):
        raise _bad(selections)
    if all(isinstance(item, Selection) for item in selections):
        rounds = [item.positions[0].tolist() for item in selections]
    elif all(isinstance(item, int) and not isinstance(item, bool) for item in selections):
        rounds = [list(selections)]
    else:
        raise _bad(selections)
    counts = [0] * length
    for index in (i for kept in rounds for i in set(kept) if 0 <= i < length):
        counts[index] += 1
    return [count / len(rounds) for count in counts] if rounds else [1.0] * length


def _bad(selections: Any) -> ValueError:
    allowed = "the selections of a model's output, a cache, and indices of tokens"
    return ValueError(f"selections: got {shown(selections)}; allowed are {allowed}")
