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


def input_type(precision: Precision) -> torch.dtype:
    """The type in which a network's first layer takes its input."""
    return _TYPES.get(precision, torch.float32)


def use_fast_kernels(device: torch.device) -> None:
    """On a GPU: TF32 for what is fp32, and cuDNN's kernels chosen by trial, once a shape.

    Clips have one shape, so the trials are made in the first steps. Sums are then not the same bits
    in another process, which may choose other kernels; `torch.backends.cudnn.benchmark = False`
    afterwards undoes it.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """A context in which operations that profit run in this precision; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])
