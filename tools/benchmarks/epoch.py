"""An epoch by its parts, and beside our re-creation of the official CDB-EGTEA loop's."""

from __future__ import annotations

import copy
import math
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.kernels import with_fast_kernels
from benchmarks.official_epoch import HEAD, JpegClips, OfficialEpoch, Shape, extract_frames
from benchmarks.report import make_report
from benchmarks.some_videos import BATCH, BATCHES_A_WORKER, first, num_workers, some_videos
from benchmarks.step_profile import profile_epoch, waits_and_idle
from benchmarks.timing import Ratio, cost_ratio, device_clock, interleave, speed_ratios
from cdb_video.build import build_trainer
from cdb_video.build_clips import choose_device, clip_memory
from cdb_video.build_data import Data
from cdb_video.clips.batch import Batch
from cdb_video.config import Config, TrainConfig
from cdb_video.distributed import ONE_PROCESS
from cdb_video.experiments import open_run
from cdb_video.precision import use_fast_kernels
from cdb_video.training.trainer import Trainer

CPU_CLIPS = 48
"""Training clips of an epoch on a CPU. On a GPU `BATCHES_A_WORKER` is for its parts."""
WHOLE_BATCHES_A_WORKER = 2
"""Of whole epochs on a GPU, with validation: the official loop takes long for more."""
HELD = 8
"""Batches in memory, which training steps alone take in turn."""
LONGEST_S = {"cpu": math.inf, "cuda": 240.0}
"""After which no round begins; see `step`."""
PROFILED_STEPS = 20
"""Of the middle of an epoch; two lines of the log are written in them, as in any 20 steps."""
IDLE = 0.03
"""The share of a GPU's time in the middle of an epoch that it may idle, if the loader keeps up."""
SPEEDS = {"ours/official": None, "in_memory/ours": None}
OVERLAP = "epoch/slower part"
"""On a GPU: the speed of an epoch over that of loading or of stepping, whichever is slower."""
SUM = "epoch/load+step"
"""On a CPU, in one process: the time of an epoch over the sum of its parts'."""


def measure(*, device: str, repeats: int, cache: Path) -> dict[str, Any]:
    """The report; `device` is auto, cpu or cuda.

    Raises:
        ConfigError: cuda without a GPU.

    """
    here = choose_device(Config(train=TrainConfig(device=device)), ONE_PROCESS)
    kind, (clips, whole) = here.type, num_clips(here)
    config, data = some_videos(here, cache=cache, num_train=clips, num_val=-(-whole // 3))
    clock = device_clock(here)
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(
            update={
                "run": config.run.model_copy(update={"output_dir": folder, "trackers": ()}),
                "train": config.train.model_copy(update={"epochs": 1000}),
            }
        )
        trainer = build_trainer(config, data=data, ranks=ONE_PROCESS, quiet=True)
        parts = part_arms(trainer)
        arms = parts | whole_arms(config, replace(data, train=first(data.train, whole)), cache)
        # On a GPU a round takes minutes; what has to start has started when the arms are made.
        warm_up = 1 if kind == "cpu" else 0
        seconds = interleave(
            arms, repeats=repeats, clock=clock, warm_up=warm_up, longest_s=LONGEST_S[kind]
        )
        middle = middle_of_epoch(trainer) if kind == "cuda" else {}
    report = make_report(
        "epoch",
        seconds,
        ratios=[],
        device=here,
        clock=clock,
        size={
            "backbone": config.model.backbone,
            "clips": clips,
            "clips of a whole epoch": whole,
            "frames": config.clip.num_frames,
            "crop": config.clip.crop_size,
            "batch": config.train.global_batch_size,
            "workers": config.data.num_workers,
        },
    )
    for name in seconds.keys() - {"validation", "report_and_save"}:
        number = clips if name in parts else whole
        report["arms"][name]["clips_per_s"] = number / median(seconds[name])
    report["arms"]["epoch"] |= middle
    return report | ratios_of(seconds, kind)


def num_clips(device: torch.device) -> tuple[int, int]:
    """Training clips of the epoch whose parts are timed, and of a whole one."""
    if device.type == "cpu":
        return CPU_CLIPS, CPU_CLIPS
    batches = num_workers() * BATCH
    return BATCHES_A_WORKER * batches, WHOLE_BATCHES_A_WORKER * batches


def part_arms(trainer: Trainer) -> dict[str, Callable[[], object]]:
    """Loading the clips of an epoch, its steps, and both together."""
    held = list(trainer.loader.epoch(0, num_steps=HELD))
    trainer.model.train()
    trainer.train_step(held[0])
    arms: dict[str, Callable[[], object]] = {
        "load": lambda: deque(trainer.loader.epoch(0), maxlen=0),
        "step": partial(steps, trainer, held),
        "epoch": partial(one_pass, trainer),
    }
    return {name: with_fast_kernels(arm, trainer.device) for name, arm in arms.items()}


def whole_arms(config: Config, data: Data, cache: Path) -> dict[str, Callable[[], object]]:
    """Epochs with their validation, and what ends one."""
    run, config = open_run(config, config_name="epoch", resume=False)
    build = partial(build_trainer, config, ranks=ONE_PROCESS, quiet=True)
    trainer = build(data=data)
    saving = build(data=data, run=run)
    deque(trainer.loader.epoch(0, num_steps=1), maxlen=0)  # its workers start
    arms: dict[str, Callable[[], object]] = {
        "validation": trainer.evaluate,
        "report_and_save": partial(report_and_save, saving),
        "ours": partial(whole_epoch, trainer),
    }
    if trainer.device.type == "cpu":  # the clips for a GPU are too large to be kept
        arms |= in_memory_arms(config, data)
    arms = {name: with_fast_kernels(arm, trainer.device) for name, arm in arms.items()}
    return arms | {"official": official(config, data, trainer, cache)}


def in_memory_arms(config: Config, data: Data) -> dict[str, Callable[[], object]]:
    """Loading and a whole epoch of clips that are decoded once, as the demo's are."""
    keep = config.model_copy(
        update={"data": config.data.model_copy(update={"in_memory": True, "num_workers": 0})}
    )
    remembered = Data(data.train, data.val, None, memory=clip_memory(keep))
    trainer = build_trainer(keep, data=remembered, ranks=ONE_PROCESS, quiet=True)
    return {
        "load_in_memory": lambda: deque(trainer.loader.epoch(0), maxlen=0),
        "in_memory": partial(whole_epoch, trainer),
    }


def steps(trainer: Trainer, held: list[Batch]) -> int:
    """The steps of an epoch on batches that are there: so many."""
    before = trainer.state.position.step
    trainer.model.train()
    for batch in islice(cycle(held), trainer.loader.steps_per_epoch):
        trainer.train_step(batch)
    return trainer.state.position.step - before


def one_pass(trainer: Trainer) -> int:
    """`train_one_epoch` from its first step on: so many steps.

    By itself it would go on where the position says that the epoch stands, which after a pass is at
    its end.
    """
    position = trainer.state.position
    before, position.steps = position.step, 0
    trainer.train_one_epoch()
    return position.step - before


def whole_epoch(trainer: Trainer) -> int:
    """Training, validation, and the difficulty for the next: so many steps."""
    taken = one_pass(trainer)
    report = trainer.evaluate()
    trainer.criterion.update(trainer.difficulty_counts(report.counts if report else {}))
    trainer.state.position.end_epoch()
    return taken


def middle_of_epoch(trainer: Trainer) -> dict[str, float | None]:
    """`idle_share` and `host_syncs` of steps half-way through an epoch on a GPU."""
    use_fast_kernels(trainer.device)
    workers = num_workers()
    wait, active = BATCHES_A_WORKER // 2 * workers, min(PROFILED_STEPS, 2 * workers)
    return waits_and_idle(profile_epoch(trainer, wait=wait, active=active), num_steps=active)


def report_and_save(trainer: Trainer) -> None:
    """What a validation with a run folder costs: scores, report, page, and the checkpoint."""
    trainer.state.position.step += 1
    trainer.evaluate()
    trainer.saving.save()


def official(config: Config, data: Data, trainer: Trainer, cache: Path) -> OfficialEpoch:
    """The other loop over the same clips, as JPEG files, with the same network in fp32."""
    clip = config.clip
    shape = Shape(clip.num_frames, clip.short_side, clip.crop_size)
    assert data.val is not None  # noqa: S101 - some_videos has one
    loaders = []
    for split, train in ((data.train, True), (data.val, False)):
        videos = [record.path for record in split.records]
        places = extract_frames(videos, cache / "benchmark_frames")
        folders = [places[video] for video in videos]
        labels = split.labels(HEAD).tolist()
        loaders.append(
            DataLoader(
                JpegClips(folders, labels, shape, train=train),
                batch_size=config.train.global_batch_size,
                shuffle=train,
                drop_last=train,
                num_workers=config.data.num_workers,
                pin_memory=trainer.device.type == "cuda",
            )
        )
    model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)
    return OfficialEpoch(model, *loaders)


def ratios_of(seconds: dict[str, list[float]], kind: str) -> dict[str, Any]:
    """Speeds of whole epochs, and an epoch's over its parts."""
    found: dict[str, Ratio] = speed_ratios(seconds, list(SPEEDS))
    join = sum if kind == "cpu" else max
    pairs = zip(seconds["load"], seconds["step"], strict=True)
    parts = [float(join(pair)) for pair in pairs]
    if kind == "cpu":
        found[SUM] = cost_ratio(seconds["epoch"], parts)
    else:
        found[OVERLAP] = cost_ratio(parts, seconds["epoch"])
    return {
        "ratios": {name: ratio.median for name, ratio in found.items()},
        "intervals": {name: list(ratio.interval) for name, ratio in found.items()},
        "costs": [SUM],
        "targets": {"at_least": {OVERLAP: 0.95} if kind != "cpu" else {}, "at_most": {}},
        "figure_targets": idle_target(seconds) if kind != "cpu" else {},
    }


def idle_target(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Of an epoch whose loader keeps up; where it does not, the GPU must wait for it."""
    keeps_up = median(seconds["load"]) <= median(seconds["step"])
    return {"epoch": {"at_least": {}, "at_most": {"idle_share": IDLE}}} if keeps_up else {}
