"""Numbers of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdb_video.precision import Precision


@dataclass(frozen=True)
class TrainerOptions:
    """Numbers of the loop; `config.TrainConfig` says what each one means."""

    epochs: int
    micro_batch_size: int
    precision: Precision = "fp32"
    compile: bool = False
    compress_gradients: bool = False
    clip_grad_norm: float | None = None
    ema: float | None = None
    precise_bn: int | None = None
    max_bad_steps: int = 10
    eval_every: int = 1
    log_every: int = 10
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    difficulty_source: Literal["val", "train", "crossfit"] = "val"
    crossfit_from: int = 1
    crossfit_every: int = 1
    select_by: str | None = None
    seed: int = 0
    padding: int = 0
    """Most pixels that clips are moved by (augment.crop=pad)."""
    quiet: bool = False
    """Show no progress and print no figures."""
