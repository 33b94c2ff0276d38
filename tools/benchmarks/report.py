"""The result of a benchmark: the same JSON and the same table for each of them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Clock, cost_ratio

LIBRARIES = ("torch", "torchvision", "pytorchvideo")


def make_report(
    benchmark: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    ratios: Iterable[tuple[str, str]],
    device: torch.device,
    clock: Clock,
    **settings: object,
) -> dict[str, Any]:
    """What `--json` writes.

    Args:
        benchmark: the subcommand.
        seconds: arm -> seconds of each round.
        ratios: pairs of arms, of each of which the cost of the first over the second is wanted.
        device: what the arms ran on.
        clock: what they were timed by.
        settings: what else a reader must know to repeat it.

    """
    costs = {f"{arm}/{other}": cost_ratio(seconds[arm], seconds[other]) for arm, other in ratios}
    return {
        "benchmark": benchmark,
        "device": device_name(device),
        "clock": clock.kind,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
        **settings,
        "arms": {
            name: {"median_ms": 1000 * median(rounds), "rounds": len(rounds)}
            for name, rounds in seconds.items()
        },
        "ratios": {name: ratio.median for name, ratio in costs.items()},
        "intervals": {name: list(ratio.interval) for name, ratio in costs.items()},
    }


def device_name(device: torch.device) -> str:
    """The card's model; of a CPU what Python knows, which is little more than its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.processor() or platform.machine()}"


def print_report(report: Mapping[str, Any]) -> None:
    """A line on the machine, the arms, the ratios with their intervals."""
    console = Console()
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    console.print(f"{report['device']}, threads: {report['threads']}, {versions}")
    arms = Table("arm", f"median {report['clock']}, ms", "rounds")
    for name, figures in report["arms"].items():
        arms.add_row(name, f"{figures['median_ms']:.3f}", str(figures["rounds"]))
    console.print(arms)
    ratios = Table("cost ratio", "median", "95 % interval")
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        ratios.add_row(name, f"{ratio:.4f}", f"{low:.4f} to {high:.4f}")
    console.print(ratios)
