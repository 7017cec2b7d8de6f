"""How many blocks of cache a policy's layers need in vLLM: pure functions, needs no vLLM.

vLLM hands out blocks by group: the layers of a group share block tables, and all groups have the same number of
layers, since all blocks have the same size. Layers that hold fewer tokens can be groups of their own, and then need
fewer blocks; where the numbers of layers do not fit, a group is padded with layers that do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from types import SimpleNamespace
from typing import Any

from distill.engines.retention import entries, stages_of
from distill.models import PromptDistill


def fixed_stages(policy: PromptDistill, config: Any) -> list[range]:
    """The layers before and after each selection that always is at the same layer.

    Where the layer is chosen for each prompt, layers up to the last one that may be chosen may hold all tokens.
    """
    layers = sorted(policy.layers_of(config))
    return stages_of(layers[-1:] if policy.adaptive else layers, config.num_hidden_layers)


@lru_cache(maxsize=4096)
def tokens_held(policy: PromptDistill, length: int, depth: int, layer: int) -> int:
    """How many tokens of a prompt a layer holds, at most.

    Args:
        policy: with its candidates written out, where it is adaptive (see `distill.engines.settings.policy_of`).
        length: tokens of the prompt.
        depth: layers of the model.
    """
    config = SimpleNamespace(num_hidden_layers=depth)
    # a prompt of one token has nothing that could be dropped
    return policy.tokens_reaching(length, config)[layer] if length > 1 else length


def blocks(tokens: int, length: int, held: int, block_size: int) -> int:
    """Blocks of one group that the first `tokens` tokens of a request need; arguments as in `entries`."""
    return ceil(entries(tokens, length, held) / block_size)


@dataclass(frozen=True)
class Layout:
    """The groups that vLLM makes of stages of these sizes.

    Attributes:
        sizes: layers of each stage.
        group_size: layers of each group.
        groups: groups of each stage.
    """

    sizes: tuple[int, ...]
    group_size: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, sizes: list[int]) -> Layout:
        """As vLLM does it: the smallest stage is the size of a group, or the largest where they differ little."""
        least, most = min(sizes), max(sizes)
        group_size = most if most < least * 1.5 else least
        return cls(tuple(sizes), group_size, tuple(ceil(size / group_size) for size in sizes))

    @property
    def padding(self) -> int:
        """Layers that do not exist, but are given blocks."""
        return sum(self.groups) * self.group_size - sum(self.sizes)

    def layer_blocks(self, held: list[int], block_size: int) -> int:
        """Blocks, each counted once for each layer of its group, of stages that hold so many tokens."""
        each = [count * ceil(tokens / block_size) for count, tokens in zip(self.groups, held, strict=True)]
        return self.group_size * sum(each)

    def saving(self, held: list[int], length: int, block_size: int) -> float:
        """The share of the stock model's blocks that a prompt does not need; negative where padding costs more."""
        return 1 - self.layer_blocks(held, block_size) / (sum(self.sizes) * ceil(length / block_size))


@dataclass(frozen=True)
class Plan:
    """What groups of their own would do for a policy.

    Attributes:
        layout: the groups.
        saving: at the longest prompt, the share of blocks saved.
        better: where there is padding, a selection layer close by with which more would be saved, and how much.
    """

    layout: Layout
    saving: float
    better: tuple[int, float] | None

    def __str__(self) -> str:
        sizes = " + ".join(map(str, self.layout.sizes))
        text = (
            f"{sizes} layers in {sum(self.layout.groups)} groups of {self.layout.group_size}, "
            f"{self.layout.padding} of padding: {self.saving:.1%} fewer blocks for the longest prompt"
        )
        if self.better is not None:
            text += f"; a selection after layer {self.better[0]} would save {self.better[1]:.1%}"
        return text


#: how far from the policy's layer a better one is looked for
NEAR = 4


def plan_of(policy: PromptDistill, config: Any, length: int, block_size: int) -> Plan:
    """What groups of their own do for the later layers of a policy.

    Args:
        config: the model's.
        length: tokens of the longest prompt.
        block_size: tokens of a block.
    """
    depth = config.num_hidden_layers

    def made(chosen: PromptDistill) -> tuple[Layout, float]:
        stages = fixed_stages(chosen, config)
        layout = Layout.of([len(stage) for stage in stages])
        held = [tokens_held(chosen, length, depth, stage[0]) for stage in stages]
        return layout, layout.saving(held, length, block_size)

    layout, saving = made(policy)
    if policy.adaptive or len(policy.selection_layers) > 1 or not layout.padding:
        return Plan(layout, saving, None)
    at = policy.layers_of(config)[0]
    near = [layer for layer in range(at - NEAR, at + NEAR + 1) if 0 <= layer < depth - 1 and layer != at]
    others = [(layer, made(replace(policy, selection_layers=[layer]))[1]) for layer in near]
    best = max(others, default=(at, saving), key=lambda pair: (pair[1], -abs(pair[0] - at)))
    return Plan(layout, saving, best if best[1] > saving else None)
