"""Attention masks for tokens with gaps: causal by order, padding by entry, sliding windows by original position."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_causal_mask

from distill.patches.cache import Incoming


class _Sizes:
    """Answers the two questions by which Transformers sizes a mask: `held` entries, then the new ones."""

    def __init__(self, held: int) -> None:
        self.held = held

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.held

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.held + query_length, 0


def sliding_window(config: Any, layer_idx: int) -> int | None:
    """Width of a layer's sliding window in tokens, `None` for full attention."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[layer_idx] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


class Masks:
    """Makes the masks of one stage; layers that hold the same entries share one."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._made: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def make(
        self, layer_idx: int, hidden: Tensor, incoming: Incoming, held: Tensor | None, seen: int, padded: bool
    ) -> Any:
        """The mask for one layer, in the form its attention implementation wants (possibly `None`).

        Args:
            hidden: `(batch, new, hidden)` what goes into the layer.
            incoming: positions of the new entries.
            held: layout of the entries already in the cache.
            seen: tokens the model has read, these included.
            padded: whether the tokens of this call contain padding.
        Raises:
            ValueError: a sliding window binds where the attention implementation counts indices, not positions.
        """
        window = sliding_window(self.config, layer_idx)
        if window is not None and seen <= window:
            window = None
        key = (id(held), id(incoming), window)
        if key not in self._made:
            mask = self._mask(hidden, incoming, held, window, padded)
            self._made[key] = (mask, held, incoming)  # held and incoming are kept alive: their ids are the key
        return self._made[key][0]

    def _mask(self, hidden: Tensor, incoming: Incoming, held: Tensor | None, window: int | None, padded: bool) -> Any:
        entries = incoming.after(held).to(hidden.device)
        valid = entries >= 0
        if entries.shape[1] > 1 and window is not None:
            raise ValueError(
                "sliding_window: heads that hold different tokens cannot be combined with a sliding window"
            )
        padding = valid[:, 0] if padded or not bool(valid.all()) else None
        overlay = None if window is None else self._window(entries[:, 0], incoming.positions[:, 0], window)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=padding,
            past_key_values=_Sizes(0 if held is None else held.shape[-1]),
            and_mask_function=overlay,
        )

    def _window(self, keys: Tensor, queries: Tensor, window: int) -> Any:
        implementation = self.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"sliding_window: {implementation} counts a window of {window} tokens by index, which is wrong once "
                "tokens are dropped; load the model with attn_implementation='sdpa' or 'eager'"
            )
        offset = keys.shape[1] - queries.shape[1]
        queries = queries.to(keys.device)

        def overlay(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return keys[batch, key] > queries[batch, query - offset] - window

        return overlay
