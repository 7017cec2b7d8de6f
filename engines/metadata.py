"""What vLLM's attention is told in a stage whose layers hold fewer tokens than requests have.

The engine makes its metadata once a step, for all layers. Before a later stage runs, that of the stage's layers is
replaced by what the backend's own builder makes of the rows that are alive. All knowledge of vLLM's metadata is here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from distill.engines.retention import Segment


def slots(table: Tensor, block_size: int, segments: list[Segment]) -> Tensor:
    """The slot of the cache that each row is written to: `(rows,)`.

    Args:
        table: `(requests, blocks)` of the requests of these segments.
        block_size: entries of a block.
        segments: the rows; each request's are entries right behind those that it has.
    """
    counts = torch.tensor([len(segment) for segment in segments], device=table.device)
    request = torch.repeat_interleave(torch.arange(len(segments), device=table.device), counts)
    starts = torch.tensor([segment.past for segment in segments], device=table.device) - (counts.cumsum(0) - counts)
    entry = torch.arange(len(request), device=table.device) + starts[request]
    return table[request, entry // block_size].long() * block_size + entry % block_size


class Metadata:
    """Replaces the metadata of some layers in the forward context of a step.

    Args:
        runner: vLLM's model runner.
        names: by layer index, the name of its attention.
    """

    def __init__(self, runner: Any, names: list[str]) -> None:
        self.runner, self.names = runner, names

    def enter(self, layers: Collection[int], segments: list[Segment], positions: Tensor) -> None:
        """Tells the attention of these layers which rows are alive, and where their entries go."""
        context = get_forward_context()
        names = {self.names[layer] for layer in layers}
        for groups in self.runner.attn_groups:
            for group in groups:
                inside = names.intersection(group.layer_names)
                if inside:
                    common = self._common(group.kv_cache_group_id, segments, positions)
                    made = group.build_metadata(common)
                    context.attn_metadata |= dict.fromkeys(inside, made)
                    context.slot_mapping |= dict.fromkeys(inside, common.slot_mapping)

    def _common(self, group: int, segments: list[Segment], positions: Tensor) -> CommonAttentionMetadata:
        block_table = self.runner.input_batch.block_table[group]
        table = block_table.get_device_tensor(self.runner.input_batch.num_reqs)
        table = table[torch.tensor([segment.part.index for segment in segments], device=table.device)]
        counts = [len(segment) for segment in segments]
        lengths = [segment.past + count for segment, count in zip(segments, counts, strict=True)]
        starts = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        seq_lens = torch.tensor(lengths, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(table.device),
            query_start_loc_cpu=starts,
            seq_lens=seq_lens.to(table.device),
            seq_lens_cpu_upper_bound=seq_lens,
            num_reqs=len(segments),
            num_actual_tokens=sum(counts),
            max_query_len=max(counts),
            max_seq_len=max(lengths),
            block_table_tensor=table,
            slot_mapping=slots(table, block_table.block_size, segments),
            causal=True,
            is_prefilling=torch.tensor([segment.part.reading for segment in segments]),
            positions=positions,
        )
