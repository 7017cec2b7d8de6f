"""What a notebook shows of a policy and of a cache: small pieces of HTML, and the same as text.

All text is escaped here. Other rooms make their tables with `table`.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache

from distill.patches.cache import KeptLayer
from distill.patches.checks import shown
from distill.patches.meter import layer_bytes

# colours of text and page are left to the notebook, which may be light or dark
_STYLE = """<style>
.distill { font: 13px/1.5 system-ui, sans-serif }
.distill table { border-collapse: collapse; margin: .4em 0 }
.distill th, .distill td { padding: .15em .8em; text-align: right; border-bottom: 1px solid rgb(128 128 128 / 30%) }
.distill th:first-child, .distill td:first-child { text-align: left }
.distill svg { max-width: 100%; height: auto } .distill text { fill: currentColor; font-size: 11px }
</style>"""


def frame(*parts: str) -> str:
    """Pieces of HTML in one box with the style that all of them share."""
    return f"<div class='distill'>{_STYLE}{''.join(parts)}</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as HTML. A cell that can show itself (a policy) does; of all others the text is shown, escaped."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _cell(value: Any) -> str:
    return str(value._repr_html_()) if hasattr(value, "_repr_html_") else html.escape(str(value))


def in_words(number: float) -> str:
    """A number of bytes as text, such as `1.5 MB`; a kB has 1,000 bytes."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def policy_html(policy: Any) -> str:
    """A policy as a table: argument, value, default.

    Values that differ from their default are bold; "none" stands where there is no default, unlike the value `None`.
    """
    rows: list[tuple[Any, ...]] = []
    for field in dataclasses.fields(policy):
        value, default = getattr(policy, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            rows.append((field.name, _Value(value), "none"))
        else:
            rows.append((field.name, _Value(value, bold=value != default), _Value(default)))
    return frame(f"<b>{html.escape(policy.name)}</b>", table(("argument", "value", "default"), rows))


@dataclass(frozen=True)
class _Value:
    """An argument in a cell: policies as tables of their own, also those in a tuple."""

    value: Any
    bold: bool = False

    def _repr_html_(self) -> str:
        items = self.value if isinstance(self.value, tuple) else (self.value,)
        if any(hasattr(item, "_repr_html_") for item in items):
            return "".join(map(_cell, items))
        text = html.escape(repr(self.value))
        return f"<b>{text}</b>" if self.bold else text


@dataclass(frozen=True)
class LayerUse:
    """What one layer of a cache holds.

    Attributes:
        seen: tokens that the model has read, padding included.
        held: entries per row and head, their mean where rows or heads differ. Padding does not count, except in a
            stock cache, which does not know it.
        bytes: of keys and values.
    """

    seen: int
    held: float
    bytes: int


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds, layer by layer; a notebook shows it as bars."""

    layers: tuple[LayerUse, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.bytes for layer in self.layers)

    def __str__(self) -> str:
        lines = [f"{'layer':>5}{'seen':>9}{'held':>11}{'bytes':>13}"]
        for number, layer in enumerate(self.layers):
            full = round(20 * layer.held / max(layer.seen, 1))
            lines.append(
                f"{number:>5}{layer.seen:>9,}{layer.held:>11,.1f}{layer.bytes:>13,}  {'█' * full}{'░' * (20 - full)}"
            )
        return "\n".join([*lines, f"{'all':>5}{'':20}{self.bytes:>13,}"])

    def _repr_html_(self) -> str:
        most = max((layer.seen for layer in self.layers), default=0)
        note = (
            f"{len(self.layers)} layers, {self.bytes:,} bytes. Dark: entries held; light: tokens seen, up to {most:,}."
        )
        return frame(f"<p>{note}</p>", self._bars(max(most, 1)))

    def _bars(self, most: int) -> str:
        """The entries of each layer as SVG."""
        left, width, step = 30, 320, 14
        parts = [
            f"<svg viewBox='0 0 560 {step * len(self.layers) + 4}' width='560' role='img' aria-label='held entries'>"
        ]
        for number, layer in enumerate(self.layers):
            top = step * number + 2
            parts.append(f"<text x='{left - 6}' y='{top + 9}' text-anchor='end'>{number}</text>")
            for count, opacity in ((layer.seen, "0.18"), (layer.held, "1")):
                parts.append(
                    f"<rect x='{left}' y='{top}' width='{width * min(count / most, 1):.1f}' height='{step - 3}' "
                    f"fill='#0072b2' fill-opacity='{opacity}'/>"
                )
            figures = f"{layer.held:,.0f} entries, {in_words(layer.bytes)}"
            parts.append(f"<text x='{left + width + 8}' y='{top + 9}'>{figures}</text>")
        return "".join([*parts, "</svg>"])


def show_cache(cache: Any) -> CacheUse:
    """What a cache holds in each layer, to print or to look at in a notebook.

    Args:
        cache: one of Transformers' caches, of the stock model or under a policy.
    Raises:
        ValueError: something else, or a cache without layers of its own, as that of an encoder and a decoder.
    """
    if not isinstance(cache, Cache) or not hasattr(cache, "layers"):
        raise ValueError(f"cache: got {shown(cache)}; allowed are caches of Transformers, such as DynamicCache")
    return CacheUse(tuple(map(_use, cache.layers)))


def _use(layer: Any) -> LayerUse:
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, Tensor) or not keys.numel():
        return LayerUse(0, 0.0, layer_bytes(layer))
    seen = int(layer.get_seq_length())
    if isinstance(layer, KeptLayer):
        return LayerUse(seen, float(layer.real.sum(-1).float().mean()), layer_bytes(layer))
    return LayerUse(seen, float(min(seen, keys.shape[-2])), layer_bytes(layer))
