"""Linear layers whose products oneDNN computes.

PyTorch multiplies float32 matrices on a CPU with MKL. On an AMD processor with AVX-512, oneDNN, which PyTorch also
ships, does more than twice as many products a second; the numbers are the same up to rounding. PyTorch has no public
switch for it: what is called here is the operator that torch.compile emits.
"""

from __future__ import annotations

import torch
from torch import nn

# below this many multiplications a call, setting oneDNN up takes as long as it saves
LEAST_WORK = 1 << 21


class OneDnnLinear(nn.Linear):
    """`nn.Linear` by oneDNN where that is faster and allowed: float32, on the CPU, without gradients."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, as `nn.Linear`."""
        if (
            input.numel() * self.out_features < LEAST_WORK
            or torch.is_grad_enabled()
            or input.device.type != "cpu"
            or not input.dtype == self.weight.dtype == torch.float32
        ):
            return nn.functional.linear(input, self.weight, self.bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            input, self.weight, self.bias, "none", [], ""
        )
        return product


def applies() -> bool:
    """Whether this processor gains by it, and this PyTorch has the operator."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def multiply_by_onednn(model: nn.Module) -> None:
    """Makes the plain linear layers of `model` `OneDnnLinear`, in place, where that applies; their parameters stay
    the same objects."""
    if not applies():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
