"""A cache layer whose entries have a bias: a number that is added to the attention logits of all queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.patches.cache import Entries, KeptLayer
from distill.patches.layout import Cut, entries_at


class BiasedLayer(KeptLayer):
    """A `KeptLayer` with a bias. An entry of bias b gets exp(b) times the attention it would get without.

    It is used up by `Masks`, as an additive mask; attention that takes no such mask refuses the layer.

    Attributes:
        bias: `(batch, heads, held, 1)` float32, 0 for new entries; `None` once the layer has been reset.
    """

    bias = Entries()

    @classmethod
    def of(cls, layer: KeptLayer, bias: Tensor) -> BiasedLayer:
        """A layer that holds what another one does, with a bias `(batch, heads, held, 1)`."""
        made = cls()
        made.__dict__.update(vars(layer))
        made.bias = bias
        return made

    @property
    def nbytes(self) -> int:
        stored = self.__dict__.get("_bias")
        return super().nbytes + (0 if stored is None else stored.untyped_storage().nbytes())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        bias = None if self.bias is None else F.pad(self.bias, (0, 0, 0, key_states.shape[-2]))
        found = super().update(key_states, value_states, *args, **kwargs)
        self.bias = bias
        return found

    def cut(self, cut: Cut) -> None:
        bias = None if self.bias is None else entries_at(self.bias, cut.indices)
        super().cut(cut)
        self.bias = bias

    def reset(self) -> None:
        super().reset()
        self.bias = None

    def offload(self) -> None:
        super().offload()
        self.bias = None if self.bias is None else self.bias.to("cpu", non_blocking=True)

    def prefetch(self) -> None:
        super().prefetch()
        self.bias = None if self.bias is None else self.bias.to(self.device, non_blocking=True)

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        bias = None if self.bias is None else function(self.bias)
        super()._map(function)
        self.bias = bias
