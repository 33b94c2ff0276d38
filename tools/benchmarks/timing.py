"""Arms timed in turn, and the ratio of two of them.

What else runs on the machine slows neighbouring rounds alike, so ratios within a round hold where
times do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

NUM_DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Clock:
    """What is called the time of an arm."""

    kind: str
    """Such as "CPU time", for the report."""
    read: Callable[[], float]
    """Seconds from an arbitrary start."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long one arm takes as another."""

    median: float
    """Over rounds."""
    interval: tuple[float, float]
    """95 %, bootstrap over rounds."""


def device_clock(device: torch.device) -> Clock:
    """Seconds of work on the device.

    Of a CPU, the seconds that all threads of this process computed: what waits while another
    program has the core is no cost of the arm. Of a GPU, the wall clock, read when the device has
    done all that it was given.
    """
    if device.type != "cuda":
        return Clock("CPU time", time.process_time)

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return Clock("wall time", read)


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Clock,
    warm_up: int = 5,
    longest_s: float = math.inf,
) -> dict[str, list[float]]:
    """Arm -> its seconds in each of `repeats` rounds, or of as many as begin in `longest_s`.

    A round runs every arm once; every other round in reverse, so that none gains by its place.

    Args:
        arms: name -> what is timed.
        repeats: rounds.
        clock: see `device_clock`.
        warm_up: rounds before the first that counts.
        longest_s: seconds by the clock, warm-up included, after which no round begins; one that
            counts always does.

    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began = clock.read()
    for i in range(warm_up + repeats):
        if i > warm_up and clock.read() - began >= longest_s:
            break
        for name in names[::-1] if i % 2 else names:
            start = clock.read()
            arms[name]()
            elapsed = clock.read() - start
            if i >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def cost_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The time of an arm over that of a reference, both (rounds,); above 1 the arm is slower."""
    ratios = np.asarray(seconds) / np.asarray(reference)
    generator = np.random.default_rng(0)
    drawn = generator.choice(ratios, size=(NUM_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), (float(low), float(high)))


def speed_ratios(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Ratio]:
    """Of each "arm/other" whose arms were measured: how many times as fast the first is."""
    pairs = {name: name.split("/") for name in names}
    return {
        name: cost_ratio(seconds[other], seconds[arm])
        for name, (arm, other) in pairs.items()
        if arm in seconds and other in seconds
    }
