"""Tables of what a step, an epoch and an evaluation cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

NAMES = {
    "pyslowfast": "our re-creation of PySlowFast's step",
    "pyslowfast_amp": "the same with its mixed precision",
    "official": "our re-creation of the official CDB-EGTEA loop",
}
FIGURES = {
    "clips_per_s": ("clips/s", ".1f"),
    "tflops": ("TFLOP/s", ".3g"),
    "peak_share": ("of the peak", ".3f"),
    "memory_gb": ("GB", ".2f"),
    "idle_share": ("idle", ".3f"),
    "host_syncs": ("host syncs", "g"),
    "sync_warnings": ("sync warnings", "g"),
}
"""Key of an arm -> heading and format."""


def print_arms_report(report: Mapping[str, Any]) -> None:
    """The machine, the arms, the ratios beside their targets."""
    console = Console()
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    console.print(f"{report['device']}, threads: {report['threads']}; {versions}")
    sizes = ", ".join(f"{name} {value}" for name, value in report["size"].items())
    console.print(f"{sizes}; {report['clock']}", markup=False)
    console.print(arm_table(report))
    for name, what in NAMES.items():
        if name in report["arms"]:
            console.print(f"{name}: {what}")
    console.print(ratio_table(report))
    if report.get("figure_targets"):
        console.print(figure_table(report))
    for name, reason in report.get("not_measured", {}).items():
        console.print(f"{name}: not measured: {reason}", markup=False)


def arm_table(report: Mapping[str, Any]) -> Table:
    """A row an arm; figures that no arm has get no column."""
    arms = report["arms"]
    shown = {
        key: how
        for key, how in FIGURES.items()
        if any(arm.get(key) is not None for arm in arms.values())
    }
    headings = [heading for heading, _ in shown.values()]
    table = Table(Column("arm", no_wrap=True), "ms", *headings)
    for name, arm in arms.items():
        cells = [format_figure(arm.get(key), form) for key, (_, form) in shown.items()]
        table.add_row(name, f"{arm['median_ms']:.2f}", *cells)
    return table


def format_figure(value: float | None, form: str) -> str:
    """A number, or a dash for what is not known."""
    return "-" if value is None else format(value, form)


def ratio_table(report: Mapping[str, Any]) -> Table:
    """A row a ratio: times as fast, or a cost where the target is a most."""
    table = Table(Column("ratio", no_wrap=True), "of", "median", "95 % interval", "target")
    least, most = report["targets"]["at_least"], report["targets"]["at_most"]
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        is_cost = name in report["costs"]
        target = verdict(ratio, least.get(name), most.get(name))
        kind = "time" if is_cost else "speed"
        table.add_row(name, kind, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", target)
    return table


def figure_table(report: Mapping[str, Any]) -> Table:
    """A row a figure of an arm that has a target."""
    table = Table(Column("arm", no_wrap=True), "figure", "measured", "target")
    for name, targets in report["figure_targets"].items():
        least, most = targets["at_least"], targets["at_most"]
        for key in [*least, *most]:
            heading, form = FIGURES[key]
            value = report["arms"][name].get(key)
            wanted = verdict(value, least.get(key), most.get(key))
            table.add_row(name, heading, format_figure(value, form), wanted)
    return table


def verdict(value: float | None, least: float | None, most: float | None) -> str:
    """The target, and whether it is reached; nothing where there is none."""
    if least is None and most is None:
        return ""
    text = f">= {least:g}" if least is not None else f"<= {most:g}"
    if value is None:
        return f"{text}: not measured"
    reached = (least is None or value >= least) and (most is None or value <= most)
    return f"{text}: {'reached' if reached else 'not reached'}"
