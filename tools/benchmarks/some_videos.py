"""What epochs and evaluations are timed on: the demo on a CPU, larger made-up clips on a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.clip_lengths import spread_lengths
from benchmarks.made_clips import ClipSet, make_clips
from benchmarks.made_up import made_up_split
from benchmarks.official_epoch import extract_frames
from cdb_video.build_data import Data, read_data
from cdb_video.config import Config
from cdb_video.config_file import load_config, parse_config
from cdb_video.datasets.annotations import Split
from cdb_video.progress import Progress

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"
NUM_FILES = 64
"""Of a GPU's clips. An epoch takes each of them many times: what is read of them is in memory."""
BATCHES_A_WORKER = 10
"""Of a pass on a GPU. A worker makes whole batches, so in a pass of one or two each they come all
at once, and some workers have nothing to do."""
BATCH = 32
"""Clips of a step, and of a forward pass, on a GPU."""


def num_workers() -> int:
    """Decoding processes on a machine with a GPU: every core but one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def some_videos(
    device: torch.device,
    *,
    cache: Path,
    num_train: int,
    num_val: int,
    views: tuple[int, int] = (1, 1),
) -> tuple[Config, Data]:
    """A configuration, and so many training and validation clips.

    On a CPU the demo's first, with a tiny SlowFast, decoded in this process, so that its CPU time
    is all there is. On a GPU SlowFast R50 8x8 on clips of EGTEA's lengths, decoded by all cores but
    one.
    """
    if device.type == "cuda":
        return _large(cache, num_train, num_val, views)
    overrides = [f"data.cache_dir={cache}", "data.in_memory=false", "train.device=cpu"]
    overrides += [f"views.num_clips={views[0]}", f"views.num_crops={views[1]}"]
    config = load_config(DEMO, overrides)
    data = read_data(config)
    assert data.val is not None  # noqa: S101 - the demo has one
    return config, replace(data, train=first(data.train, num_train), val=first(data.val, num_val))


def first(split: Split, number: int) -> Split:
    """The split's first clips."""
    return replace(split, records=split.records[:number])


def prepare(cache: Path) -> None:
    """Make what the runs on a GPU read, clips and JPEG frames, where it is not there."""
    extract_frames(large_files(cache), cache / "benchmark_frames")


def large_files(cache: Path) -> list[Path]:
    """The clips of a GPU's runs, rendered by the first."""
    clips = ClipSet(spread_lengths(NUM_FILES), 640, 480)
    with Progress("rendering clips", total=NUM_FILES, unit="clips") as progress:
        return make_clips(cache / "benchmark_clips", clips, progress=progress.advance)


def repeated(files: list[Path], number: int, *, seed: int) -> Split:
    """So many clips with random labels, of all files alike, in random order."""
    generator = torch.Generator().manual_seed(seed)
    split = made_up_split(number, generator)
    order = torch.randperm(number, generator=generator) % len(files)
    records = [
        replace(record, path=files[i])
        for record, i in zip(split.records, order.tolist(), strict=True)
    ]
    return replace(split, records=records)


def _large(
    cache: Path, num_train: int, num_val: int, views: tuple[int, int]
) -> tuple[Config, Data]:
    files = large_files(cache)
    values: dict[str, dict[str, Any]] = {
        "data": {
            "root": str(cache / "benchmark_clips"),
            "cache_dir": str(cache),
            "num_workers": num_workers(),
        },
        "views": {"num_clips": views[0], "num_crops": views[1]},
        "model": {"backbone": "slowfast_r50"},
        "train": {"device": "cuda", "global_batch_size": BATCH, "micro_batch_size": BATCH},
    }
    return parse_config(values, source="benchmark"), Data(
        train=repeated(files, num_train, seed=0),
        val=repeated(files, num_val, seed=1),
        test=None,
    )
