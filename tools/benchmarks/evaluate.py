"""Evaluation beside its two halves: loading the views, and the forward passes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import make_report
from benchmarks.some_videos import BATCH, BATCHES_A_WORKER, num_workers, some_videos
from benchmarks.timing import cost_ratio, device_clock, interleave
from cdb_video.build import build_trainer
from cdb_video.build_clips import build_evaluation_loader, choose_device
from cdb_video.config import Config, TrainConfig
from cdb_video.distributed import ONE_PROCESS
from cdb_video.evaluation.evaluate import ViewScorer, evaluate
from cdb_video.evaluation.full_forwards import score_batches

VIEWS = {"1_view": (1, 1), "30_views": (10, 3)}
CPU_VIDEOS = {"1_view": 24, "30_views": 4}
HELD = 8
"""Batches in memory, which the forward passes alone take in turn."""
LONGEST_S = {"cpu": math.inf, "cuda": 150.0}
"""Of each number of views, after which no round begins; see `step`."""
MOST, LEAST = 1.1, 0.95
"""On a CPU: evaluation's time over the sum of its halves; on a GPU: its speed over the slower."""


def measure(*, device: str, repeats: int, cache: Path) -> dict[str, Any]:
    """The report; `device` is auto, cpu or cuda.

    Raises:
        ConfigError: cuda without a GPU.

    """
    here = choose_device(Config(train=TrainConfig(device=device)), ONE_PROCESS)
    seconds: dict[str, list[float]] = {}
    clock, longest_s = device_clock(here), LONGEST_S[here.type]
    for name in VIEWS:
        arms = make_arms(name, here, cache)
        seconds |= interleave(arms, repeats=repeats, clock=clock, warm_up=1, longest_s=longest_s)
    report = make_report(
        "evaluate",
        seconds,
        ratios=[],
        device=here,
        clock=clock,
        size={
            "videos": str({name: num_videos(name, here) for name in VIEWS}),
            "data": "demo" if here.type == "cpu" else "640x480",
        },
    )
    return report | ratios_of(seconds, here.type)


def num_videos(name: str, device: torch.device) -> int:
    """So many are scored in a round."""
    if device.type == "cpu":
        return CPU_VIDEOS[name]
    videos_a_batch = max(1, BATCH // math.prod(VIEWS[name]))
    return BATCHES_A_WORKER * num_workers() * videos_a_batch


def make_arms(name: str, device: torch.device, cache: Path) -> dict[str, Callable[[], object]]:
    """Evaluation with these views, its loader alone, its forward passes alone."""
    number = num_videos(name, device)
    config, data = some_videos(
        device, cache=cache, num_train=BATCH, num_val=number, views=VIEWS[name]
    )
    assert data.val is not None  # noqa: S101 - some_videos has one
    trainer = build_trainer(config, data=data, ranks=ONE_PROCESS, quiet=True)
    loader = build_evaluation_loader(config, data.val, ranks=ONE_PROCESS)
    model, precision = trainer.model.eval(), trainer.options.precision
    size = config.train.micro_batch_size
    held = list(islice(loader, HELD))
    scorer = ViewScorer(model, device=device, precision=precision)

    def forward_only() -> None:
        batches = islice(cycle(held), len(loader))
        deque(score_batches(batches, scorer, size=size, device=device), maxlen=0)

    return {
        f"loader_{name}": lambda: deque(loader, maxlen=0),
        f"forward_{name}": forward_only,
        f"evaluate_{name}": partial(
            evaluate, model, loader, device=device, precision=precision, micro_batch_size=size
        ),
    }


def ratios_of(seconds: dict[str, list[float]], kind: str) -> dict[str, Any]:
    """Evaluation over its halves: their sum on a CPU, the slower of them on a GPU."""
    found, join = {}, sum if kind == "cpu" else max
    for name in VIEWS:
        halves = zip(seconds[f"loader_{name}"], seconds[f"forward_{name}"], strict=True)
        alone, whole = [join(pair) for pair in halves], seconds[f"evaluate_{name}"]
        if kind == "cpu":
            found[f"evaluate/loader+forward {name}"] = cost_ratio(whole, alone)
        else:
            found[f"evaluate/slower half {name}"] = cost_ratio(alone, whole)
    at_most = dict.fromkeys(found, MOST) if kind == "cpu" else {}
    at_least = dict.fromkeys(found, LEAST) if kind != "cpu" else {}
    return {
        "ratios": {name: ratio.median for name, ratio in found.items()},
        "intervals": {name: list(ratio.interval) for name, ratio in found.items()},
        "costs": list(at_most),
        "targets": {"at_least": at_least, "at_most": at_most},
    }
