"""int8 and int4 weights of the linear layers: what bitsandbytes does, told what to do."""

from __future__ import annotations

from typing import Any

import torch

BITS = (8, 4)


def quantization(bits: int, dtype: torch.dtype) -> Any:
    """Settings for `from_pretrained(quantization_config=...)`: LLM.int8 (arXiv 2208.07339), or NF4 with double
    quantization (arXiv 2305.14314). The embedding and the head stay whole.

    Args:
        bits: 8 or 4.
        dtype: in which the products are computed.
    Raises:
        ValueError: another number of bits, or no bitsandbytes.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if bits not in BITS:
        raise ValueError(f"bits: got {bits!r}; allowed are 8 and 4")
    if not is_bitsandbytes_available():
        raise ValueError(f"bits: got {bits} without bitsandbytes; allowed after `pip install bitsandbytes`")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def weights_of(tensor: Any) -> int:
    """How many weights a tensor stands for: a quantized one of 4 bits is stored two to a byte."""
    state = getattr(tensor, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else int(tensor.numel())
