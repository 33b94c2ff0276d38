"""The report of `benchmark.py loader`, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

NEEDS = {
    "decord": "pip install decord (x86-64 wheels only)",
    "pytorchvideo": "pip install pytorchvideo",
    "torchcodec": "pip install torchcodec, and FFmpeg's shared libraries (apt install ffmpeg)",
}


def print_loader_report(report: Mapping[str, Any]) -> None:
    """The machine, the clips, the arms, the ratios beside their targets."""
    console = Console()
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    clips = report["clips"]
    width, height = clips["size"]
    console.print(
        f"{report['device']}, {report['cores']} cores, {report['workers']} workers; {versions}"
    )
    console.print(
        f"{clips['files']} files, {clips['frames']} frames, {width}x{height},"
        f" {clips['mbit_s']:.2f} Mbit/s, GOP {clips['gop']}; clips of {clips['clip']},"
        f" crop {clips['crop_size']}"
    )
    console.print(arm_table(report))
    console.print(ratio_table(report))
    for name, reason in report["not_measured"].items():
        need = NEEDS.get(name.split("_")[0], "")
        console.print(f"{name}: not measured: {reason}; it needs: {need}", markup=False)


def arm_table(report: Mapping[str, Any]) -> Table:
    """A row a loader; CPU time is that of a clip."""
    # Whole names, also in a terminal of 80 columns.
    table = Table(
        Column("loader", no_wrap=True), "makes", "CPU-ms", "clips/s", "of the floor", "peak RSS, MB"
    )
    for name, figures in report["arms"].items():
        table.add_row(
            name,
            figures["makes"],
            f"{figures['median_ms']:.1f}",
            f"{figures['clips_per_s']:.1f}",
            f"{figures['floor_share']:.2f}",
            f"{figures['peak_rss_mb']:.0f}",
        )
    return table


def ratio_table(report: Mapping[str, Any]) -> Table:
    """A row a ratio of speeds."""
    table = Table("times as fast", "median", "95 % interval", "target")
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        target = report["targets"].get(name)
        table.add_row(name, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", verdict(ratio, target))
    return table


def verdict(ratio: float, target: float | None) -> str:
    """Such as "1.6: reached"."""
    if target is None:
        return ""
    return f"{target:g}: {'reached' if ratio >= target else 'not reached'}"
