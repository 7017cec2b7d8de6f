"""Attention masks where tokens have been dropped between others.

Which earlier entries a token may see follows from their order; padding is marked entry by entry; a sliding window is
counted in original positions, since the entries in between may be gone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from distill.patches.cache import KeptLayer
from distill.patches.layout import Incoming


class _Sizes:
    """What Transformers asks a cache in order to size a mask, for `held` entries and the new ones."""

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


def left_to_window(config: Any, layer_idx: int) -> bool:
    """Whether a layer sees the prompt through a sliding window, while other layers of the model see all of it."""
    return sliding_window(config, layer_idx) is not None and bool(full_layers(config))


def most_held(config: Any, layer_idx: int, count: int) -> int:
    """How many of `count` tokens a layer's cache holds at most: as many as the next token sees, without itself."""
    window = sliding_window(config, layer_idx)
    return count if window is None else min(count, window - 1)


def full_layers(config: Any) -> list[int]:
    """The layers that have no sliding window."""
    return [layer for layer in range(config.num_hidden_layers) if sliding_window(config, layer) is None]


def check_sees_all(name: str, layer_idx: int, config: Any, length: int) -> None:
    """Raises a `ValueError` if a layer that is to choose among all tokens of a prompt sees only the last of them.

    Args:
        name: the argument of the policy that names the layer.
        length: tokens of the prompt.
    """
    window = sliding_window(config, layer_idx)
    if window is not None and window < length and full_layers(config):
        raise ValueError(
            f"{name}: got layer {layer_idx}, which sees {window} tokens through a sliding "
            f"window, while the prompt has {length}; allowed are those that see all: "
            f"{', '.join(map(str, full_layers(config)))}"
        )


class Masks:
    """Makes the masks of one stage; layers that hold the same entries share one."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._made: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def make(self, layer_idx: int, hidden: Tensor, incoming: Incoming, kept: KeptLayer | None, seen: int) -> Any:
        """The mask for one layer, in the form its attention implementation wants (possibly `None`).

        Args:
            hidden: `(batch, new, hidden)` what goes into the layer.
            incoming: positions of the new entries.
            kept: the layer's cache, before the new entries.
            seen: tokens the model has read, these included.
        Raises:
            ValueError: a sliding window, or heads that hold unequal numbers of entries, where the attention
                implementation knows neither.
        """
        window = sliding_window(self.config, layer_idx)
        if window is not None and seen <= window:
            window = None
        held = None if kept is None else kept.layout
        padded = incoming.padded or (kept is not None and kept.padded)
        size = 0 if held is None else held.shape[-1]
        if kept is not None and kept.bias is not None:  # every layer has its own, so no mask can be shared
            return self._mask(hidden, incoming, kept, window, kept.shift is not None)
        # without fillers and windows a mask depends on nothing but sizes
        key = (id(held), id(incoming), window) if padded or window is not None else (size, hidden.shape[1])
        if key not in self._made:
            if padded or window is not None:
                renumbered = kept is not None and kept.shift is not None
                mask = self._mask(hidden, incoming, kept, window, renumbered)
            else:
                mask = self._causal(hidden, size, None, None)
            self._made[key] = (mask, held, incoming)  # held and incoming are kept alive: their ids are the key
        return self._made[key][0]

    def _causal(self, hidden: Tensor, held: int, padding: Tensor | None, overlay: Any) -> Any:
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=padding,
            past_key_values=_Sizes(held),
            and_mask_function=overlay,
        )

    def _mask(
        self, hidden: Tensor, incoming: Incoming, kept: KeptLayer | None, window: int | None, renumbered: bool
    ) -> Any:
        held = None if kept is None else kept.layout
        entries = incoming.after(held).to(hidden.device)
        valid = entries >= 0
        if renumbered:
            entries = (valid.cumsum(-1) - 1).masked_fill(~valid, -1)
        new = hidden.shape[1]
        if kept is not None and kept.bias is not None:
            return self._per_head(hidden, entries, valid, window, kept.repeats, kept.bias)
        if kept is not None and (kept.ragged or (entries.shape[1] > 1 and window is not None)):
            return self._per_head(hidden, entries, valid, window, kept.repeats)
        overlay = None if window is None else self._window(entries[:, 0], entries[:, 0, -new:], window)
        padding = valid[:, 0] if incoming.padded or not bool(valid.all()) else None
        return self._causal(hidden, entries.shape[-1] - new, padding, overlay)

    def _per_head(
        self,
        hidden: Tensor,
        entries: Tensor,
        valid: Tensor,
        window: int | None,
        repeats: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """A mask `(batch, query heads, new, held + new)`."""
        uneven = "takes one mask for all heads, and here heads hold unequal numbers of entries"
        biased = "takes no bias for each entry, which this cache has"
        self._needs_any_mask(f"attn_implementation: {uneven if bias is None else biased}")
        new, total = hidden.shape[1], entries.shape[-1]
        columns = torch.arange(total, device=hidden.device)
        allowed = valid[:, :, None] & (columns <= columns[total - new :, None])
        if window is not None:
            allowed &= entries[:, :, None] > entries[:, :, total - new :, None] - window
        groups = self.config.num_attention_heads // self.config.num_key_value_heads // repeats
        if bias is not None:
            added = F.pad(bias[..., 0], (0, new)).to(hidden.device)[:, :, None]  # (batch, heads, 1, held + new)
            added = added.to(hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)
            return added.repeat_interleave(groups, dim=1)
        allowed = allowed.repeat_interleave(groups, dim=1)
        if self.config._attn_implementation == "sdpa":
            return allowed
        return torch.zeros_like(allowed, dtype=hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)

    def _window(self, keys: Tensor, queries: Tensor, window: int) -> Any:
        self._needs_any_mask(
            f"sliding_window: counts a window of {window} tokens by index, which is wrong once tokens are dropped"
        )
        offset = keys.shape[1] - queries.shape[1]
        queries = queries.to(keys.device)

        def overlay(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return keys[batch, key] > queries[batch, query - offset] - window

        return overlay

    def _needs_any_mask(self, problem: str) -> None:
        implementation = self.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            subject, problem = problem.split(": ", 1)
            raise ValueError(
                f"{subject}: {implementation} {problem}; load the model with attn_implementation='sdpa' or 'eager'"
            )
