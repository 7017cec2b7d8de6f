"""Linear layers that multiply with oneDNN in place of MKL, on CPUs where that is faster.

PyTorch multiplies float32 matrices on a CPU with MKL. On an AMD processor with AVX-512, oneDNN, which PyTorch also
ships, is more than twice as fast; the results are the same up to rounding. PyTorch has no public switch for it, so
this file calls the operator that `torch.compile` uses.
"""

from __future__ import annotations

import torch
from torch import nn

# a product of fewer multiplications than this gains nothing, because calling oneDNN has a fixed cost
LEAST_WORK = 1 << 21


class OneDnnLinear(nn.Linear):
    """`nn.Linear` that uses oneDNN for large float32 products on a CPU when no gradients are wanted."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input @ weight.T + bias`, as `nn.Linear` computes it."""
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
    """Whether this processor is faster with oneDNN, and this PyTorch has the operator."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def multiply_by_onednn(model: nn.Module) -> None:
    """Turns the linear layers of a model into `OneDnnLinear`, in place, if `applies`; parameters are not copied.

    Args:
        model: any module; subclasses of `nn.Linear` in it are left as they are.
    """
    if not applies():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
