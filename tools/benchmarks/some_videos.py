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
from cdb_video.build_data import Data, read_data
from cdb_video.config import Config
from cdb_video.config_file import load_config, parse_config
from cdb_video.datasets.annotations import Split
from cdb_video.progress import Progress

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"


def some_videos(
    device: torch.device, *, cache: Path, num_clips: int, views: tuple[int, int] = (1, 1)
) -> tuple[Config, Data]:
    """A configuration and its first `num_clips` training clips, and a third as many for validation.

    On a CPU the demo's, with a tiny SlowFast, decoded in this process, so that its CPU time is all
    there is. On a GPU SlowFast R50 8x8 on clips of EGTEA's lengths, decoded by all cores but one.
    """
    if device.type == "cuda":
        return _large(cache, num_clips, views)
    overrides = [f"data.cache_dir={cache}", "data.in_memory=false", "train.device=cpu"]
    overrides += [f"views.num_clips={views[0]}", f"views.num_crops={views[1]}"]
    config = load_config(DEMO, overrides)
    data = read_data(config)
    assert data.val is not None  # noqa: S101 - the demo has one
    return config, replace(
        data, train=_first(data.train, num_clips), val=_first(data.val, -(-num_clips // 3))
    )


def _large(cache: Path, num_clips: int, views: tuple[int, int]) -> tuple[Config, Data]:
    number = num_clips + -(-num_clips // 3)
    clips = ClipSet(spread_lengths(number), 640, 480)
    with Progress("rendering clips", total=number, unit="clips") as progress:
        files = make_clips(cache / "benchmark_clips", clips, progress=progress.advance)
    labelled = made_up_split(number, torch.Generator().manual_seed(0))
    records = [
        replace(record, path=file) for record, file in zip(labelled.records, files, strict=True)
    ]
    values: dict[str, dict[str, Any]] = {
        "data": {
            "root": str(cache / "benchmark_clips"),
            "cache_dir": str(cache),
            "num_workers": max(1, len(os.sched_getaffinity(0)) - 1),
        },
        "views": {"num_clips": views[0], "num_crops": views[1]},
        "model": {"backbone": "slowfast_r50"},
        "train": {"device": "cuda"},
    }
    split = replace(labelled, records=tuple(records))
    config = parse_config(values, source="benchmark")
    train, val = records[:num_clips], records[num_clips:]
    return config, Data(
        train=replace(split, records=tuple(train)),
        val=replace(split, records=tuple(val)),
        test=None,
    )


def _first(split: Split, number: int) -> Split:
    return replace(split, records=split.records[:number])
