"""The base of the methods whose layers and heads all compete for one budget, once the whole prompt has been read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.patches.masks import left_to_window, most_held
from distill.patches.policy import Policy
from distill.patches.run import Call, Run
from distill.patches.selection import indices_of, top_jointly


class Jointly(Policy):
    """Base of the methods that keep the entries with the best scores of all layers and heads together.

    A subclass is a dataclass with these arguments, and makes a `JointRun`.

    Args:
        budget: entries kept per row, averaged over layers and heads: an integer, or a fraction (float in (0, 1)) of
            the prompt's entries.
        sinks: number of first tokens that all heads keep, within the budget. Where the fraction of a short prompt is
            smaller than that, the last of them are kept.
        layerwise: with True, the heads of each layer compete only with one another, and all layers keep the same
            number.
        windows: whether layers with a sliding window compete too, in models whose other layers see the whole prompt.
            By default their cache holds what the window holds.
    """

    budget: int | float
    sinks: int
    layerwise: bool
    windows: bool

    def kept(self, entries: int, length: int, heads: int) -> int:
        """How many entries stay. As in all methods, at least one entry per head does, on average.

        Args:
            entries: how many entries compete: `length` times `heads`, or fewer where another policy drops some too.
            length: tokens of the prompt.
            heads: number of heads that compete, over all layers in question.
        """
        if isinstance(self.budget, int):
            kept = entries * min(self.budget, length) // max(length, 1)
        else:  # 1 - 0.9 is 0.09999999999999998; rounding makes it 0.1 again
            kept = entries - int(entries * round(1 - self.budget, 12))
        return max(kept, min(entries, heads))

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method. Unless `layerwise` is set, only the sum over the layers is exact."""
        return self.entries_left(length, [length] * config.num_hidden_layers, config)

    def entries_left(self, length: int, reaching: list[int], config: Any) -> list[int]:
        heads, competing = config.num_key_value_heads, self.competing(config)
        left = [most_held(config, layer, tokens) * heads for layer, tokens in enumerate(reaching)]
        entries = {layer: reaching[layer] * heads for layer in competing}
        if self.layerwise:
            return [
                min(count, self.kept(entries[layer], length, heads)) if layer in entries else count
                for layer, count in enumerate(left)
            ]
        total = self.kept(sum(entries.values()), length, heads * len(entries))
        # shared out evenly, as far as a layer has so many
        for place, layer in enumerate(sorted(entries, key=entries.__getitem__)):
            share = min(entries[layer], total // (len(entries) - place))
            left[layer], total = min(left[layer], share), total - share
        return left

    def competing(self, config: Any) -> list[int]:
        """The layers from which entries of a prompt are dropped."""
        return [i for i in range(config.num_hidden_layers) if self.windows or not left_to_window(config, i)]


class JointRun(Run):
    """One forward call: scores are gathered while the prompt is read or later, then all layers are cut at once.

    Attributes:
        lengths: `(batch,)` number of prompt tokens in each row.
        first: `(batch,)` original position of each row's first prompt token.
        scores: by layer, `(batch, kv_heads, longest + 1)`: scores by rank among the prompt's tokens; the last column
            takes what belongs to no token.
    """

    def __init__(self, policy: Jointly, call: Call) -> None:
        self.policy, self.call = policy, call
        tokens = call.tokens
        self.lengths = tokens.prompt.sum(1)
        self.first = tokens.positions.masked_fill(~tokens.prompt, tokens.positions.max() + 1).amin(1)
        self.layers: Any = call.cache.layers  # type: ignore[union-attr]
        self.competing = policy.competing(call.decoder.config)
        self.scores: dict[int, Tensor] = {}

    def rank(self, layout: Tensor) -> Tensor:
        """Which token of the prompt each entry belongs to: 0, 1, 2, ...; `-1` for all other entries.

        Args:
            layout: original positions of the entries, `(batch, 1 or heads, entries)`; negative for padding.
        Returns:
            the shape of `layout`.
        """
        rank = layout - self.first.to(layout.device)[:, None, None]
        outside = (layout < 0) | (rank < 0) | (rank >= self.lengths.to(layout.device)[:, None, None])
        return rank.masked_fill(outside, -1)

    def drop(self) -> None:
        """Cuts all layers that compete to the entries with the best scores."""
        ranks = [self.rank(self.layers[i].layout).expand(-1, self.layers[i].keys.shape[1], -1) for i in self.competing]
        size = 1 if self.policy.layerwise else len(ranks)
        for first in range(0, len(ranks), size):
            part = range(first, first + size)
            own, counts = [ranks[place] >= 0 for place in part], self.counts([ranks[place] for place in part])
            room = counts // sum(mine.shape[1] for mine in own)  # (batch,) entries a head, on average
            scores = [self._with_sinks(self.competing[place], ranks[place], room) for place in part]
            marks = top_jointly(scores, own, counts)
            for place, chosen, mine in zip(part, marks, own, strict=True):
                layer = self.layers[self.competing[place]]
                layer.keep(indices_of(chosen | (layer.real & ~mine)))

    def _with_sinks(self, index: int, rank: Tensor, room: Tensor) -> Tensor:
        """Scores `(batch, heads, held)` of a layer's entries; the sinks win, the last of them where few have room."""
        scores = self.scores[index]
        # an earlier call may have left one set of entries per query head
        scores = scores.repeat_interleave(rank.shape[1] // scores.shape[1], dim=1).gather(2, rank.clamp(min=0))
        sinks = self.lengths.clamp(max=self.policy.sinks).to(rank.device)  # (batch,)
        first = (sinks - room.to(rank.device)).clamp(min=0)
        wins = (rank < sinks[:, None, None]) & (rank >= first[:, None, None])
        return scores.masked_fill(wins, torch.inf)

    def counts(self, ranks: list[Tensor]) -> Tensor:
        """How many entries each row keeps.

        Args:
            ranks: what `rank` returned, for each of the layers that compete.
        Returns:
            integers `(batch,)`.
        """
        entries = torch.stack([(rank >= 0).sum((1, 2)).cpu() for rank in ranks]).sum(0)
        rows = zip(entries.tolist(), self.lengths.tolist(), strict=True)
        heads = sum(rank.shape[1] for rank in ranks)
        return torch.tensor([self.policy.kept(count, length, heads) for count, length in rows])
