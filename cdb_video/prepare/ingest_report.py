"""What `prepare_videos` did: as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdb_video.files import writing
from cdb_video.prepare.ingest import Ingest
from cdb_video.prepare.ledger import LEDGER, Prepared
from cdb_video.prepare.reencode import Settings


def make_ingest_report(
    ingest: Ingest, settings: Settings, *, in_dir: Path, out_dir: Path
) -> dict[str, Any]:
    """The content of the JSON file; `prepared.jsonl` in OUT_DIR has a line a file."""
    made = _sums(ingest.made)
    return {
        "in_dir": str(in_dir),
        "out_dir": str(out_dir),
        "settings": asdict(settings),
        "made": made,
        "made_before": _sums(ingest.kept),
        "failed": len(ingest.failures),
        "failures": [asdict(failure) for failure in ingest.failures],
        "renamed": ingest.renamed,
        "elapsed_s": ingest.elapsed_s,
        "video_s_per_s": made["video_s"] / ingest.elapsed_s,
    }


def print_ingest_report(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The figures, a line a failure, and how to go on."""
    console = console or Console(emoji=False)
    table = Table(title="videos", title_justify="left", box=SIMPLE)
    for name in ("", "files", "frames", "video", "bytes before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("made", "made before"):
        sums = report[name.replace(" ", "_")]
        sizes = [f"{sums[key]:,}" for key in ("bytes_before", "bytes_after")]
        table.add_row(
            name, f"{sums['files']:,}", f"{sums['frames']:,}", _duration(sums["video_s"]), *sizes
        )
    table.add_row("failed", f"{report['failed']:,}", "", "", "", "")
    console.print(table)
    for failure in report["failures"]:
        console.print(f"[bold red]failed[/] {escape(_line(failure))}", soft_wrap=True)
    if report["made"]["files"]:
        speed = f"{report['video_s_per_s']:.1f} s of video a second"
        console.print(f"{speed}, in {_duration(report['elapsed_s'])}", highlight=False)
    console.print(escape(_next_step(report)), highlight=False, soft_wrap=True)


def save_ingest_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _sums(entries: Sequence[Prepared]) -> dict[str, Any]:
    return {
        "files": len(entries),
        "frames": sum(entry.num_frames for entry in entries),
        "video_s": sum(entry.duration_s for entry in entries),
        "bytes_before": sum(entry.source_bytes for entry in entries),
        "bytes_after": sum(entry.bytes for entry in entries),
    }


def _line(failure: Mapping[str, str]) -> str:
    """One printable line, whatever bytes the file's name has."""
    text = f"{failure['source']}: {failure['reason']}"
    return " ".join(text.encode(errors="replace").decode().split())


def _next_step(report: Mapping[str, Any]) -> str:
    lines = [
        f"train with data.root={report['out_dir']}; annotations are not copied: put them there"
    ]
    if report["renamed"]:
        lines.append(
            f"{report['renamed']:,} files now end in .mp4: a table must name them so;"
            f" {LEDGER} has both names"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
