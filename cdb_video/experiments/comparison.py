"""The files of a comparison and its tables in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdb_video.evaluation.metrics import SCORED_FIGURES
from cdb_video.evaluation.report import save_report
from cdb_video.experiments.cells import (
    CONTRASTED,
    FIGURES,
    Cell,
    Comparison,
    Row,
    best_arms,
    mean_and_deviation,
)
from cdb_video.experiments.statistics import Contrast
from cdb_video.files import write_text_atomically
from cdb_video.progress import plain_console

__all__ = ["Cell", "Comparison", "print_comparison", "to_json", "write_comparison"]

CSV_FIGURES = (
    "num_videos",
    "num_classes_present",
    *(name for name in SCORED_FIGURES if name != "mean_class_accuracy_interval"),
    "many",
    "medium",
    "few",
)

LABEL_WIDTH = 18
ARM_WIDTH = 15
"""Of the tables in the terminal, with borders."""


def write_comparison(folder: Path, comparison: Comparison, *, about: Mapping[str, Any]) -> None:
    """Write `compare.json`, `compare.csv` and `compare.html`; each is replaced in one move.

    Args:
        folder: made where it does not exist.
        comparison: its finished cells, perhaps not all yet.
        about: what the runner knows, as JSON takes it. `overrides`, arm -> list of overrides, is
            told with the arms; all else (the config, the command, versions) as it is.

    """
    # jinja2 and matplotlib are loaded by who writes a page, not by who prints a table.
    from cdb_video.experiments.comparison_page import render_page

    folder.mkdir(parents=True, exist_ok=True)
    content = to_json(comparison)
    for arm, overrides in about.get("overrides", {}).items():
        content["arms"].setdefault(arm, {"seeds": []})["overrides"] = list(overrides)
    content["about"] = {key: value for key, value in about.items() if key != "overrides"}
    save_report(folder / "compare.json", content)
    write_text_atomically(folder / "compare.csv", _csv(comparison))
    write_text_atomically(folder / "compare.html", render_page(comparison, content))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The content of `compare.json`, without what only the runner knows; fractions throughout."""
    reports = [cell.report for cell in comparison.cells]
    return {
        "name": comparison.name,
        "split": reports[0]["split"] if reports else None,
        "annotation_split": reports[0]["annotation_split"] if reports else None,
        "num_videos": max((report["num_videos"] for report in reports), default=0),
        "seeds": list(comparison.seeds),
        "references": list(comparison.references),
        "arms": {arm: {"seeds": comparison.seeds_of(arm)} for arm in comparison.arms},
        "notes": comparison.notes,
        "remarks": comparison.remarks,
        "cells": [_cell_json(cell, comparison.heads) for cell in comparison.cells],
        "heads": {head: _head_json(comparison, head) for head in comparison.heads},
    }


def _cell_json(cell: Cell, heads: Sequence[str]) -> dict[str, Any]:
    figures = [name for name in FIGURES if name != "seconds_per_epoch"]
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "seconds_per_epoch": cell.seconds_per_epoch,
        "heads": {head: {name: cell.figure(head, name) for name in figures} for head in heads},
    }


def _head_json(comparison: Comparison, head: str) -> dict[str, Any]:
    return {
        "table": [
            {
                "arm": row.arm,
                "num_seeds": row.num_seeds,
                **{name: spread and asdict(spread) for name, spread in row.spreads.items()},
            }
            for row in comparison.table(head)
        ],
        "contrasts": [
            asdict(one) | {"verdict": one.verdict, "words": one.in_words()}
            for figure in CONTRASTED
            for one in comparison.contrasts(head, figure)
        ],
    }


def _csv(comparison: Comparison) -> str:
    """A row a cell and head; an empty field where a figure does not exist."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "head", "seconds_per_epoch", *CSV_FIGURES])
    for cell in comparison.cells:
        for head in cell.report["heads"]:
            figures = [cell.figure(head, name) for name in CSV_FIGURES]
            writer.writerow([cell.arm, cell.seed, head, cell.seconds_per_epoch, *figures])
    return text.getvalue()


def print_comparison(comparison: Comparison, *, console: Console | None = None) -> None:
    """The tables of each head, in percent, the verdicts in words, and the notes.

    As many arms stand side by side as the console is wide enough for.
    """
    console = console or plain_console()
    for head in comparison.heads:
        for table in _tables(head, comparison.table(head), width=console.width):
            console.print(table)
        for figure, name in CONTRASTED.items():
            contrasts = comparison.contrasts(head, figure)
            if contrasts:
                _say(console, f"{head}, {name}, percentage points:")
            for one in contrasts:
                _say(console, f"  {one.in_words()} ({_evidence(one)})")
        console.print()
    for note in comparison.notes:
        _say(console, f"Note: {note}")
    for remark in comparison.remarks:
        _say(console, remark)


def _say(console: Console, line: str) -> None:
    """As it is: an arm's name may look like markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _evidence(one: Contrast) -> str:
    wins = f"{one.wins}/{one.num_pairs} seeds"
    if one.p_value is None or one.p_holm is None:
        return wins
    return f"{wins}, p {one.p_value:.3g}, Holm {one.p_holm:.3g}"


def _tables(head: str, rows: Sequence[Row], *, width: int) -> Iterator[Table]:
    """A column an arm, a row a figure."""
    side_by_side = max(1, (width - LABEL_WIDTH) // ARM_WIDTH)
    best = {figure: best_arms(rows, figure) for figure in FIGURES}
    for start in range(0, len(rows), side_by_side):
        part = rows[start : start + side_by_side]
        table = Table(title=f"{head}: mean ± standard deviation over seeds, percent")
        table.title_justify = "left"
        table.add_column("")
        for row in part:
            table.add_column(Text(row.arm), justify="right", overflow="fold", max_width=16)
        table.add_row("seeds", *(str(row.num_seeds) for row in part), end_section=True)
        for figure, label in FIGURES.items():
            cells = [
                Text(
                    mean_and_deviation(figure, row.spreads[figure]),
                    style="bold" if row.arm in best[figure] else "",
                )
                for row in part
            ]
            table.add_row(label, *cells)
        yield table
