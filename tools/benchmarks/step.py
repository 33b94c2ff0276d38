"""A training step: ours, compiled, plain, and our re-creation of PySlowFast's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.cards import peak_tflops
from benchmarks.kernels import stock_kernels, with_fast_kernels
from benchmarks.made_up import (
    StepSize,
    made_up_batch,
    made_up_split,
    made_up_trainer,
    measure_difficulty,
)
from benchmarks.pyslowfast_step import PySlowFastStep
from benchmarks.report import device_name, make_report
from benchmarks.step_profile import model_flops, own_bytes, profile_step
from benchmarks.timing import Ratio, cost_ratio, device_clock, interleave, speed_ratios
from cdb_video.build_clips import choose_device
from cdb_video.clips.batch import Appearance, Batch
from cdb_video.config import Config, TrainConfig
from cdb_video.counts import ClassCounts
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError
from cdb_video.training.trainer import Trainer

CPU_SIZE = StepSize("slowfast_tiny", batch_size=8, num_frames=16, crop_size=112)
GPU_SIZE = StepSize("slowfast_r50", batch_size=32, num_frames=32, crop_size=224)
STEPS_A_ROUND = {"cpu": 1, "cuda": 10}
"""On a GPU several, as the host runs ahead of it."""
SPEEDS = {
    "cpu": {
        "ours/eager_fp32": 1.15,
        "compiled/eager_fp32": 1.4,
        "compiled_bf16/eager_fp32": 2.0,
        "compiled/ours": None,
        "ours_bf16/ours": None,
        "ours/pyslowfast": None,
        "compiled/pyslowfast": None,
    },
    "cuda": {
        "ours/pyslowfast": 2.5,
        "ours/pyslowfast_amp": 1.5,
        "ours/eager_fp32": None,
        "compiled/eager_fp32": None,
        "compiled/ours": None,
        "compiled/pyslowfast": 2.5,
        "compiled/pyslowfast_amp": 1.5,
    },
}
"""Ratio of speeds -> what it should be at least; None: no target."""
COSTS = {
    "cpu": {
        "ours/cross_entropy": 1.02,
        "ours/no_counts": None,
        "input/read_and_write": None,
        "input/ours": None,
    },
    "cuda": {
        "ours/cross_entropy": 1.01,
        "ours/no_counts": None,
        "input/read_and_write": None,
        "input/ours": 0.02,
    },
}
"""Ratio of times -> what it should be at most."""
CDB_COST = "cdb/cross_entropy"
"""Name of `ours/cross_entropy`: ours is with CDB."""
FAST_ARMS = ("ours", "compiled")
FIGURES: dict[str, dict[str, dict[str, float]]] = {
    "cpu": {"at_least": {}, "at_most": {"host_syncs": 0}},
    "cuda": {
        "at_least": {"peak_share": 0.25},
        "at_most": {"host_syncs": 0, "sync_warnings": 0, "idle_share": 0.03},
    },
}
"""What figures of FAST_ARMS should be."""
LONGEST_S = {"cpu": math.inf, "cuda": 270.0}
"""After which no round begins: with a GPU that is lent, all is to be done in ten minutes."""

Arm = Callable[[], object]


@dataclass(frozen=True)
class TrainingArm:
    """A whole step."""

    step: Arm
    model: nn.Module
    optimizer: Optimizer

    def __call__(self) -> None:
        """Take the step."""
        self.step()


def measure(*, device: str, repeats: int, batch_size: int | None) -> dict[str, Any]:
    """The report; `device` is auto, cpu or cuda; `batch_size` None: that of the device's size.

    Raises:
        ConfigError: cuda without a GPU.

    """
    here = choose_device(Config(train=TrainConfig(device=device)), ONE_PROCESS)
    kind = here.type
    size = GPU_SIZE if kind == "cuda" else CPU_SIZE
    if batch_size is not None:
        size = StepSize(size.backbone, batch_size, size.num_frames, size.crop_size)
    arms, missing = make_arms(size, here)
    flops = model_flops(arms["eager_fp32"])
    clock = device_clock(here)
    per_round = STEPS_A_ROUND[kind]
    timed = {name: partial(times, arm, per_round) for name, arm in arms.items()}
    rounds = interleave(timed, repeats=repeats, clock=clock, warm_up=3, longest_s=LONGEST_S[kind])
    seconds = {name: [s / per_round for s in spent] for name, spent in rounds.items()}
    report = make_report(
        "step",
        seconds,
        ratios=[],
        device=here,
        clock=clock,
        size=vars(size),
        model_gflop=flops / 1e9,
        not_measured=missing,
    )
    peak = peak_tflops(device_name(here)) if kind == "cuda" else None
    for name, arm in arms.items():
        if isinstance(arm, TrainingArm):
            report["arms"][name] |= figures(median(seconds[name]), size, flops, peak)
            own = own_bytes(arm.model, arm.optimizer)
            report["arms"][name] |= profile_step(arm, here, own=own)
    costs = [CDB_COST if name == "ours/cross_entropy" else name for name in COSTS[kind]]
    wanted = {name: FIGURES[kind] for name in FAST_ARMS if name in arms}
    report |= {"costs": costs, "targets": targets(kind), "figure_targets": wanted}
    return report | ratios_of(seconds, kind)


def make_arms(size: StepSize, device: torch.device) -> tuple[dict[str, Arm], dict[str, str]]:
    """Name -> a step; and name -> why it cannot be measured here."""
    generator = torch.Generator().manual_seed(0)
    split = made_up_split(size.batch_size, generator)
    batch = made_up_batch(split, size, generator, device=device)
    make = partial(made_up_trainer, split, size, device=device.type, optimizer="sgd")
    ours = make(loss="cdb")
    cdb, cross_entropy = ours.criterion, make(loss="cross_entropy").criterion
    measure_difficulty(cdb, generator)

    def our(trainer: Trainer, criterion: nn.Module, *, counts: bool = True) -> TrainingArm:
        counted = trainer.train_counts if counts else {}
        step = with_fast_kernels(partial(our_step, trainer, batch, criterion, counted), device)
        return TrainingArm(step, trainer.model, trainer.optimizer)

    in_plain = plain(make(precision="fp32"))
    arms: dict[str, Arm] = {
        # One trainer for three: others would differ in where their tensors lie in memory.
        "ours": our(ours, cdb),
        "cross_entropy": our(ours, cross_entropy),
        "no_counts": our(ours, cdb, counts=False),
        "eager_fp32": TrainingArm(
            partial(plain_step, in_plain, batch), in_plain.model, in_plain.optimizer
        ),
    }
    missing: dict[str, str] = {}
    wanted: dict[str, dict[str, Any]] = {"compiled": {"compile": True}}
    if device.type == "cpu":
        wanted["ours_bf16"] = {"precision": "bf16"}
        wanted["compiled_bf16"] = {"precision": "bf16", "compile": True}
    for name, keys in wanted.items():
        try:
            trainer = make(loss="cdb", **keys)
            arms[name] = our(trainer, trainer.criterion)
            arms[name]()  # compiles, or says why not
        except ConfigError as error:
            arms.pop(name, None)
            missing[name] = str(error)
    model = copy.deepcopy(ours.model).to(memory_format=torch.contiguous_format)
    others = {"pyslowfast": PySlowFastStep(model, batch, amp=False)}
    if device.type == "cuda":
        others["pyslowfast_amp"] = PySlowFastStep(copy.deepcopy(model), batch, amp=True)
    else:
        missing["pyslowfast_amp"] = "its mixed precision is fp16 on a GPU"
    arms |= {name: TrainingArm(step, step.model, step.optimizer) for name, step in others.items()}
    return arms | input_arms(ours, batch, device), missing


def our_step(
    trainer: Trainer, batch: Batch, criterion: nn.Module, counts: dict[str, ClassCounts]
) -> None:
    """`Trainer.train_step` with this loss, and these counts of the clips of an epoch."""
    trainer.criterion = criterion  # type: ignore[assignment]
    trainer.train_counts = counts
    trainer.train_step(batch)


def plain_step(trainer: Trainer, batch: Batch) -> None:
    """A step of fp32 in contiguous memory, with PyTorch's own choice of kernels."""
    stock_kernels(trainer.device)
    trainer.train_step(batch)


def plain(trainer: Trainer) -> Trainer:
    """The trainer with its network and its input in contiguous memory."""
    trainer.model.to(memory_format=torch.contiguous_format)
    trainer.to_input = PlainInput(*trainer.model.normalization).to(trainer.device)
    return trainer


class PlainInput(nn.Module):
    """Flip and normalise as one writes it down: fp32, contiguous."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any, value_range: float) -> None:
        super().__init__()
        self.value_range = value_range
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1, 1))

    def forward(self, clips: Tensor, appearance: Appearance, to_rgb: None = None) -> Tensor:
        """(N, C, T, H, W) uint8 -> fp32."""
        pixels = clips.float() / 255 * self.value_range
        pixels = torch.where(appearance.flip.reshape(-1, 1, 1, 1, 1), pixels.flip(-1), pixels)
        return (pixels - self.mean) / self.std


def input_arms(trainer: Trainer, batch: Batch, device: torch.device) -> dict[str, Arm]:
    """What makes the network's input of uint8 clips, and a copy from the one to the other."""
    here = batch.to(trainer.device)
    clips = here.clips.flatten(0, 1)
    made = trainer.to_input(clips, here.appearance)
    return {
        "input": with_fast_kernels(partial(trainer.to_input, clips, here.appearance), device),
        "read_and_write": lambda: torch.empty_like(made).copy_(clips),
    }


def times(arm: Arm, number: int) -> None:
    """Run it so often."""
    for _ in range(number):
        arm()


def figures(
    seconds: float, size: StepSize, flops: int, peak: float | None
) -> dict[str, float | None]:
    """Clips and floating-point operations a second."""
    tflops = flops / seconds / 1e12
    return {
        "clips_per_s": size.batch_size / seconds,
        "tflops": tflops,
        "peak_share": tflops / peak if peak else None,
    }


def ratios_of(seconds: dict[str, list[float]], kind: str) -> dict[str, dict[str, Any]]:
    """`ratios` and `intervals`: of speeds, and of times for COSTS."""
    found: dict[str, Ratio] = speed_ratios(seconds, list(SPEEDS[kind]))
    for name in COSTS[kind]:
        arm, other = name.split("/")
        shown = CDB_COST if name == "ours/cross_entropy" else name
        found[shown] = cost_ratio(seconds[arm], seconds[other])
    return {
        "ratios": {name: ratio.median for name, ratio in found.items()},
        "intervals": {name: list(ratio.interval) for name, ratio in found.items()},
    }


def targets(kind: str) -> dict[str, dict[str, float]]:
    """`at_least` of speeds and `at_most` of costs."""
    costs = {CDB_COST if k == "ours/cross_entropy" else k: v for k, v in COSTS[kind].items()}
    return {
        "at_least": {name: least for name, least in SPEEDS[kind].items() if least is not None},
        "at_most": {name: most for name, most in costs.items() if most is not None},
    }
