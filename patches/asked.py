"""What a caller asks of one forward call, beside its inputs: one value, handed on whole to the layer loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.patches.policy import Policy
from distill.patches.run import Run


@dataclass(frozen=True)
class Asked:
    """What a caller asks of one forward call under a policy.

    Attributes:
        policy: the policy of this call; `None` drops nothing.
        prompt_ends: `(batch,)` column (in this call) of the last prompt token of each row, whose query asks the
            question; it and what follows are kept. Default: the last real token before the last `after_prompt`
            columns.
        after_prompt: number of columns at the end of this call that follow the prompt.
        question_tokens: `(batch,)`, or one number for all rows: how many of the last prompt tokens ask the question,
            those of a chat template behind it included. For policies that treat the question apart.
        prefill_chunk_size: run each stage on this many tokens at a time; the result is that of one piece.
        last: number of last real tokens of each row whose logits are wanted. They stay, and end in the last columns,
            also when the input is padded on the right. With 0, each row's last token stays and none is moved.
        every_row: name of an argument that needs as many rows as tokens were put in; a policy that would return
            fewer is refused.
        mesh: the model's device mesh under tensor parallelism; all ranks then choose the same tokens.
        outputs: where the base model puts its output, since a causal LM hands on only the fields that it knows.
    """

    policy: Policy | None = None
    prompt_ends: Tensor | int | None = None
    after_prompt: int = 0
    question_tokens: Tensor | int | None = None
    prefill_chunk_size: int | None = None
    last: int = 0
    every_row: str | None = None
    mesh: Any = None
    outputs: list[Any] = field(default_factory=list)

    def ends(self, valid: Tensor) -> Tensor:
        """Column `(batch,)` of each row's last prompt token; earlier if more tokens than those behind it must stay.

        Args:
            valid: bool `(batch, tokens)`; False for padding.
        Raises:
            ValueError: `prompt_ends` that are not columns of this call.
        """
        if self.prompt_ends is not None:
            return self._given_ends(self.prompt_ends, valid)
        # (batch, tokens): 1 for the last real token of a row, 2 for the one before it, ...
        rank_from_end = valid.flip(1).cumsum(1).flip(1)
        ends = (valid & (rank_from_end <= max(self.last, 1))).long().argmax(1)
        if self.after_prompt:
            columns = torch.arange(valid.shape[1], device=valid.device)
            before = valid & (columns < len(columns) - self.after_prompt)
            ends = torch.minimum(ends, (columns * before).amax(1))
        return ends

    def _given_ends(self, given: Tensor | int, valid: Tensor) -> Tensor:
        columns = torch.arange(valid.shape[1], device=valid.device)
        ends = torch.as_tensor(given, device=valid.device).expand(len(valid))
        if bool((ends < 0).any()) or bool((ends >= len(columns)).any()):
            most = len(columns) - 1
            raise ValueError(f"prompt_ends: got {ends.tolist()}; allowed are columns of this call, 0 to {most}")
        last_wanted = (columns * valid).amax(1) - (max(self.last, 1) - 1)
        return torch.minimum(ends, last_wanted.clamp(min=0))

    def question(self, valid: Tensor) -> Tensor | None:
        """Length `(batch,)` of each row's question; `None` if nobody said so. Argument and errors as in `ends`."""
        if self.question_tokens is None:
            return None
        given, (rows, count) = self.question_tokens, valid.shape
        lengths = torch.as_tensor(given, device=valid.device)
        if lengths.is_floating_point() or lengths.dim() > 1 or lengths.numel() not in (1, rows):
            raise ValueError(f"question_tokens: got {given}; allowed are an integer, and one integer a row")
        if bool((lengths < 1).any()) or bool((lengths > count).any()):
            raise ValueError(f"question_tokens: got {given}; allowed are integers from 1 to {count}")
        return lengths.expand(rows)

    def check(self, run: Run, count: int, config: Any, recorded: dict[str, Any]) -> None:
        """Refuses, before anything is read, a policy that cannot give what the caller counts on.

        Args:
            run: what the policy does in this call.
            count: tokens of this call.
            config: the model's, with its defaults of what is recorded.
            recorded: arguments of this call, which override these.
        Raises:
            ValueError: rows that are asked for and may be dropped; records of layers that do not run once each, on
                all tokens alive.
        """
        if self.every_row is not None and run.shortens:
            raise ValueError(
                f"{self.every_row}: got a value that needs the logits of all {count} tokens, while the policy keeps "
                "fewer of them; allowed are logits_to_keep=1 or more for the last ones, partial_logits=True for those "
                "that are kept (`positions` on the output says which), and policy=None for all"
            )
        for name in ("output_hidden_states", "output_attentions"):
            if recorded.get(name, getattr(config, name, False)) and self._runs_in_pieces(run, count):
                raise ValueError(
                    f"{name}: got True; allowed is False where layers run more than once a call, as under this policy "
                    "or with prefill_chunk_size: what they return would no longer be one entry a layer"
                )
        if run.shortens and recorded.get("output_router_logits", getattr(config, "output_router_logits", False)):
            raise ValueError(
                "output_router_logits: got True; allowed is False under a policy that drops tokens between layers, "
                "where the loss of the routers would count other tokens in each layer"
            )

    def _runs_in_pieces(self, run: Run, count: int) -> bool:
        """Whether layers run more than once in a call of `count` tokens."""
        rereads = run.scout is not None or type(run).review is not Run.review
        return rereads or (self.prefill_chunk_size or count) < count
