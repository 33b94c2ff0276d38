"""An epoch by its parts, and beside our re-creation of the official CDB-EGTEA loop's."""

from __future__ import annotations

import copy
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.official_epoch import HEAD, JpegClips, OfficialEpoch, Shape, extract_frames
from benchmarks.report import make_report
from benchmarks.some_videos import some_videos
from benchmarks.timing import Ratio, cost_ratio, device_clock, interleave, speed_ratios
from cdb_video.build import build_trainer
from cdb_video.build_clips import choose_device, clip_memory
from cdb_video.build_data import Data
from cdb_video.clips.batch import Batch
from cdb_video.config import Config, TrainConfig
from cdb_video.distributed import ONE_PROCESS
from cdb_video.experiments import open_run
from cdb_video.training.trainer import Trainer

NUM_CLIPS = {"cpu": 48, "cuda": 256}
"""Training clips of an epoch; there are a third as many for validation."""
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
    number = NUM_CLIPS[here.type]
    config, data = some_videos(here, cache=cache, num_clips=number)
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(
            update={
                "run": config.run.model_copy(update={"output_dir": folder, "trackers": ()}),
                "train": config.train.model_copy(update={"epochs": 1000}),
            }
        )
        arms = make_arms(config, data, cache)
        clock = device_clock(here)
        seconds = interleave(arms, repeats=repeats, clock=clock, warm_up=1)
    report = make_report(
        "epoch",
        seconds,
        ratios=[],
        device=here,
        clock=clock,
        size={
            "backbone": config.model.backbone,
            "clips": number,
            "frames": config.clip.num_frames,
            "crop": config.clip.crop_size,
            "batch": config.train.global_batch_size,
            "workers": config.data.num_workers,
        },
    )
    for name, spent in seconds.items():
        if name not in ("validation", "report_and_save"):
            report["arms"][name]["clips_per_s"] = number / median(spent)
    return report | ratios_of(seconds, here.type)


def make_arms(config: Config, data: Data, cache: Path) -> dict[str, Callable[[], object]]:
    """Name -> one epoch, or a part of one."""
    run, config = open_run(config, config_name="epoch", resume=False)
    build = partial(build_trainer, config, ranks=ONE_PROCESS, quiet=True)
    trainer = build(data=data)
    saving = build(data=data, run=run)
    batches = list(trainer.loader.epoch(0))
    arms: dict[str, Callable[[], object]] = {
        "load": lambda: deque(trainer.loader.epoch(0), maxlen=0),
        "step": partial(steps, trainer, batches),
        "epoch": trainer.train_one_epoch,
        "validation": trainer.evaluate,
        "report_and_save": partial(report_and_save, saving),
        "ours": partial(whole_epoch, trainer),
        "official": official(config, data, trainer, cache),
    }
    if trainer.device.type == "cpu":  # the clips for a GPU are too large to be kept
        arms |= in_memory_arms(config, data)
    return arms


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


def steps(trainer: Trainer, batches: list[Batch]) -> None:
    """The steps of an epoch, on batches that are there."""
    trainer.model.train()
    for batch in batches:
        trainer.train_step(batch)


def whole_epoch(trainer: Trainer) -> None:
    """Training, validation, and the difficulty for the next."""
    trainer.train_one_epoch()
    report = trainer.evaluate()
    trainer.criterion.update(trainer.difficulty_counts(report.counts if report else {}))
    trainer.state.position.end_epoch()


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
        folders = extract_frames(split.records, cache / "benchmark_frames")
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
    }
