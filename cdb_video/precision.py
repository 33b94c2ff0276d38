"""The number format of forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(
    name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Precision:
    """`auto` is bf16 on a GPU that has it, else fp32."""
    if name != "auto":
        return name
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """A context in which operations that profit run in this precision; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])
