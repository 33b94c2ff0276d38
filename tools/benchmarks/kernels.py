"""Which kernels an arm runs with: settings of the process, so each arm sets its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cdb_video.precision import use_fast_kernels


def stock_kernels(device: torch.device) -> None:
    """PyTorch's own settings: of fp32, TF32 in convolutions alone; cuDNN's kernels by its guess."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False


def with_fast_kernels(arm: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The arm with what `build_trainer` sets, whatever an arm before it has set."""

    def run() -> object:
        use_fast_kernels(device)
        return arm()

    return run
