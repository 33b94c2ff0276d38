"""The doctor's findings and the tail of the data: as JSON, as tables and as a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdb_video.counts import FEW_SHOT, MANY_SHOT
from cdb_video.datasets.annotations import Split
from cdb_video.files import writing
from cdb_video.prepare.check import Diagnosis, Speed
from cdb_video.prepare.findings import KINDS, count_levels

SHOWN = 10
"""Findings of a kind, and classes of either end of the tail, that are printed."""


def make_report(
    diagnosis: Diagnosis, *, num_workers: int, in_memory: bool = False
) -> dict[str, Any]:
    """The content of the JSON file.

    Args:
        diagnosis: what was found.
        num_workers: loader processes of the run, for the estimate of an epoch.
        in_memory: the run decodes every clip's frames once instead, before its first epoch.

    """
    errors, notes = count_levels(diagnosis.findings)
    train, speed = diagnosis.splits.get("train"), diagnosis.speed
    return {
        "errors": errors,
        "notes": notes,
        "findings": [
            {"level": f.level, **dataclasses.asdict(f), "mend": f.mend} for f in diagnosis.findings
        ],
        "splits": {role: _split_content(split) for role, split in diagnosis.splits.items()},
        "tail": {head: tail_figures(train, head) for head in train.heads} if train else {},
        "speed": _speed_content(speed, num_workers, in_memory) if speed else None,
    }


def tail_figures(split: Split, head: str) -> dict[str, Any]:
    """How long the tail of a head is: sizes are in clips, ends are [name, clips] by size.

    The imbalance factor is the largest class over the smallest that has a clip (Cui et al., 2019).
    """
    counts = split.class_counts(head)
    present = counts[counts > 0]
    order = torch.argsort(counts, descending=True, stable=True).tolist()
    ranked = [(split.vocabularies[head].names[i], int(counts[i])) for i in order]
    return {
        "num_classes": len(counts),
        "num_classes_present": len(present),
        "many": int((counts > MANY_SHOT).sum()),
        "medium": int(((counts >= FEW_SHOT) & (counts <= MANY_SHOT)).sum()),
        "few": int((counts < FEW_SHOT).sum()),
        "largest": int(counts.max()),
        "smallest": int(counts.min()),
        "imbalance_factor": float(present.max() / present.min()) if len(present) else None,
        "top": ranked[:SHOWN],
        "bottom": ranked[-SHOWN:],
    }


def _split_content(split: Split) -> dict[str, Any]:
    return {
        "name": split.name,
        "num_clips": len(split),
        "num_files": len({record.path for record in split.records}),
        "class_counts": {
            head: dict(zip(names, split.class_counts(head).tolist(), strict=True))
            for head, names in split.vocabularies.items()
        },
    }


def _speed_content(speed: Speed, num_workers: int, in_memory: bool) -> dict[str, Any]:
    processes = max(num_workers, 1)
    return {
        **dataclasses.asdict(speed),
        "clips_per_s_and_worker": speed.clips_per_s,
        "num_workers": num_workers,
        "in_memory": in_memory,
        "epoch_s": speed.epoch_s / processes,
    }


def print_report(
    report: Mapping[str, Any], *, root: Path | None = None, console: Console | None = None
) -> None:
    """Splits, tail, speed and findings of `make_report`; places are shown relative to the root."""
    console = console or Console(emoji=False)
    console.print(_splits_table(report["splits"]))
    if report["tail"]:
        console.print(_tail_table(report["tail"]))
        console.print(_ends_table(report["tail"], "top", f"the {SHOWN} largest"))
        if max(figures["num_classes"] for figures in report["tail"].values()) > SHOWN:
            console.print(_ends_table(report["tail"], "bottom", f"the {SHOWN} smallest"))
    if report["speed"]:
        console.print(_speed_line(report["speed"]), highlight=False)
    for kind, findings in groupby(report["findings"], key=lambda finding: finding["kind"]):
        _print_findings(console, kind, list(findings), root)
    console.print(
        f"{_number(report['errors'], 'error')}, {_number(report['notes'], 'note')}",
        style="bold red" if report["errors"] else "bold",
        highlight=False,
    )


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _splits_table(splits: Mapping[str, Any]) -> Table:
    table = _table("splits and their classes")
    heads = list(dict.fromkeys(head for split in splits.values() for head in split["class_counts"]))
    for name in ("", "annotations", "clips", "files", *heads):
        table.add_column(escape(name), justify="right" if name else "left")
    for role, split in splits.items():
        sizes = [split["class_counts"].get(head, {}).values() for head in heads]
        present = [f"{sum(n > 0 for n in counts)} of {len(counts)}" for counts in sizes]
        cells = (split["name"], f"{split['num_clips']:,}", f"{split['num_files']:,}", *present)
        table.add_row(role, *map(escape, cells))
    return table


def _tail_table(tail: Mapping[str, Any]) -> Table:
    table = _table("training clips a class")
    table.add_column("")
    for head in tail:
        table.add_column(escape(head), justify="right")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "classes": lambda f: f"{f['num_classes_present']} of {f['num_classes']}",
        f"  many-shot (over {MANY_SHOT})": lambda f: f"{f['many']}",
        f"  medium-shot ({FEW_SHOT} to {MANY_SHOT})": lambda f: f"{f['medium']}",
        f"  few-shot (under {FEW_SHOT})": lambda f: f"{f['few']}",
        "largest": lambda f: f"{f['largest']:,}",
        "smallest": lambda f: f"{f['smallest']:,}",
        "imbalance factor": lambda f: f"{f['imbalance_factor']:.1f}" if f["largest"] else "-",
    }
    for name, cell in rows.items():
        table.add_row(name, *(escape(cell(figures)) for figures in tail.values()))
    return table


def _ends_table(tail: Mapping[str, Any], end: str, title: str) -> Table:
    """The clips and the name of the classes at one end of each head, a row a rank."""
    table = _table(title)
    for head in tail:
        # The number first: what does not fit is the end of a name.
        table.add_column(escape(head), no_wrap=True, overflow="ellipsis")
    ends = [figures[end] for figures in tail.values()]
    widths = [max((len(f"{clips:,}") for _, clips in classes), default=0) for classes in ends]
    for i in range(max(map(len, ends))):
        cells = [
            f"{classes[i][1]:>{width},}  {classes[i][0]}" if i < len(classes) else ""
            for classes, width in zip(ends, widths, strict=True)
        ]
        table.add_row(*map(escape, cells))
    return table


def _speed_line(speed: Mapping[str, Any]) -> str:
    end = "; data.in_memory decodes before the first, once" if speed["in_memory"] else ""
    return (
        f"decoding: {speed['clips_per_s_and_worker']:.1f} clips/s a worker (mean of "
        f"{speed['num_timed']} clips: {1000 * speed['clip_s']:.1f} ms, and "
        f"{1000 * speed['index_s']:.1f} ms for a file's first opening); an epoch of "
        f"{speed['num_clips']:,} clips with data.num_workers={speed['num_workers']}: "
        f"{_duration(speed['epoch_s'])}, if each has a core and the model keeps up{end}\n"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print_findings(
    console: Console, kind: str, findings: Sequence[Mapping[str, str]], root: Path | None
) -> None:
    def cell(text: str) -> str:
        return escape(text if root is None else text.replace(f"{root}/", ""))

    level, mend = KINDS[kind]
    style = "bold red" if level == "error" else "bold"
    console.print(f"[{style}]{level}: {kind} ({len(findings)})[/] to mend: {mend}", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2))
    for finding in findings[:SHOWN]:
        table.add_row(cell(finding["split"]), cell(finding["where"]), cell(finding["message"]))
    if len(findings) > SHOWN:
        table.add_row("", f"and {len(findings) - SHOWN} more", "")
    console.print(table)
    console.print()


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
