"""The figures of several runs as one: mean and standard deviation, such as over EGTEA's splits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cdb_video.errors import RunError
from cdb_video.evaluation.metrics import CLASS_GROUPS, SCORED_FIGURES
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.progress import plain_console


def refuse_other_classes(runs: Mapping[str, Mapping[str, HeadClasses]]) -> None:
    """Runs of other heads or class names have no mean.

    Args:
        runs: name -> head -> classes.

    Raises:
        RunError: names the first run that differs from the first one, and where.

    """
    (first, known), *others = runs.items()
    for name, classes in others:
        if classes.keys() != known.keys():
            raise RunError(
                f"{name}: its heads are {', '.join(classes)}; {first} has {', '.join(known)}"
            )
        for head, part in classes.items():
            mine, theirs = part.names, known[head].names
            if len(mine) != len(theirs):
                raise RunError(
                    f"{name}: head {head!r} has {len(mine)} classes; {first} has {len(theirs)}"
                )
            for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                if a != b:
                    raise RunError(
                        f"{name}: class {i} of head {head!r} is {a!r}; of {first} it is {b!r}"
                    )


def mean_report(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"runs", "split", "heads": {head: {figure: {"mean", "std", "values"} or None}}}.

    The deviation is the sample's, by n - 1. A figure is None where a run does not have it. The
    class groups, such as `few`, are by their accuracy.

    Args:
        reports: of two runs or more, of one split and with the same heads.

    """
    heads = {}
    for head in reports[0]["heads"]:
        columns = [_figures(report["heads"][head]) for report in reports]
        heads[head] = {name: _spread([column[name] for column in columns]) for name in columns[0]}
    return {
        "runs": [report["run"] for report in reports],
        "split": reports[0]["split"],
        "heads": heads,
    }


def _figures(figures: Mapping[str, Any]) -> dict[str, float | None]:
    found = {name: figures[name] for name in SCORED_FIGURES if not name.endswith("_interval")}
    return found | {name: figures[name]["accuracy"] for name in CLASS_GROUPS}


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": statistics.mean(known), "std": statistics.stdev(known), "values": known}


def print_mean(mean: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The table of a mean: a column a head, in percent."""
    table = Table(
        title=f"mean ± standard deviation over {len(mean['runs'])} runs, {mean['split']} split",
        caption=f"percent; runs: {', '.join(mean['runs'])}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for head in mean["heads"]:
        table.add_column(head, justify="right")
    for name in next(iter(mean["heads"].values())):
        cells = [_cell(figures[name]) for figures in mean["heads"].values()]
        if set(cells) != {"-"}:
            emphasis = "bold" if name == "mean_class_accuracy" else None
            table.add_row(name.replace("_", " "), *cells, style=emphasis)
    (console or plain_console()).print(table)


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"
