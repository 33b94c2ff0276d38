"""The tables of docs/results.md say what the files beside it say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "results.md").read_text(encoding="utf-8")
FIGURES = {
    "mean class accuracy": "mean_class_accuracy",
    "after logit adjustment": "mean_class_accuracy_logit_adjusted",
    "top-1": "top1",
    "many": "many",
    "medium": "medium",
    "medium (2 classes)": "medium",
    "few (7)": "few",
    "worst fifth": "worst_fifth",
    "macro F1": "macro_f1",
    "ECE": "ece",
}


class Table(NamedTuple):
    """Of the page, from where a text stands on."""

    after: str
    file: str
    head: str


TABLES = [
    Table("**fir-action**: 9 actions", "compare-fir-action", "action"),
    Table(
        "Mean ± standard deviation over seeds of the heads", "compare-features-fir-action", "action"
    ),
    Table("## Fashion-MNIST-LT: twelve arms", "compare-fashion-mnist-lt", "label"),
    Table("## CIFAR-10-LT, a short schedule", "compare-cifar10-lt", "label"),
]
HEADS = {  # of the demo's tables
    "**The demo, rare classes hard**": "compare-demo-rare-hard",
    "**The demo, mixed**": "compare-demo",
    "**The demo, rare classes easy**": "compare-demo-rare-easy",
}
SHARES = ("0.9", "0.95", "0.98", "0.99", "0.995")


def rows_after(text: str, *, skip: int = 0) -> Iterator[list[str]]:
    """The cells of the first table after a text, or of a later one; the header first."""
    lines = TEXT[TEXT.index(text) :].splitlines()
    for _ in range(skip + 1):
        start = next(i for i, line in enumerate(lines) if line.startswith("|"))
        end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
        found, lines = lines[start:end], lines[end:]
    for line in found:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if any(set(cell) - set("- ") for cell in cells):
            yield cells


def head_of(file: str, head: str) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """Arm -> its row, and (arm, reference) -> their difference in mean class accuracy."""
    content = json.loads((DOCS / "results" / f"{file}.json").read_text(encoding="utf-8"))
    found = content["heads"][head]
    contrasts = {
        (row["arm"], row["reference"]): row
        for row in found["contrasts"]
        if row["figure"] == "mean_class_accuracy"
    }
    return {row["arm"]: row for row in found["table"]}, contrasts


def percent(figure: dict[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} ± {100 * figure['standard_deviation']:.1f}"


def points(contrast: dict[str, Any], *, sign: int = 1) -> str:
    low, high = contrast["interval"]
    half, mean = 50 * (high - low), sign * 100 * contrast["mean_difference"]
    return f"{mean:+.1f} ± {half:.1f} ({contrast['wins']} of {contrast['num_pairs']})"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_a_table_of_arms_is_that_of_its_file(table: Table) -> None:
    arms, _ = head_of(table.file, table.head)
    header, *rows = rows_after(table.after)

    assert {row[0] for row in rows} <= arms.keys()
    for arm, *cells in rows:
        written = dict(zip(header[1:], cells, strict=True))
        expected = {name: percent(arms[arm][FIGURES[name]]) for name in written if name in FIGURES}
        assert {name: written[name] for name in expected} == expected, arm
        assert len(expected) >= 6


@pytest.mark.parametrize(("after", "file"), HEADS.items())
def test_a_table_of_heads_is_that_of_its_file(after: str, file: str) -> None:
    heads = {head: head_of(file, head)[0] for head in ("verb", "noun", "action")}
    _, *rows = rows_after(after)

    assert len(rows) == 5
    for arm, *cells in rows:
        figures = [heads[head][arm] for head in heads]
        adjusted = [row["mean_class_accuracy_logit_adjusted"]["mean"] for row in figures]
        worst = [row["worst_fifth"]["mean"] for row in figures[:2]]
        assert cells[:3] == [percent(row["mean_class_accuracy"]) for row in figures], arm
        assert cells[3:8] == [f"{100 * value:.1f}" for value in adjusted + worst], arm


@pytest.mark.parametrize("table", TABLES[2:], ids=lambda table: table.file)
def test_a_table_of_differences_is_that_of_its_file(table: Table) -> None:
    _, contrasts = head_of(table.file, table.head)
    header, *rows = rows_after(table.after, skip=1)

    checked = 0
    for arm, *cells in rows:
        for reference, cell in zip(header[1:], cells, strict=True):
            known = contrasts.get((arm, reference.removeprefix("v ")))
            if cell and known:
                assert cell == points(known), (arm, reference)
                checked += 1
    assert checked >= 4


def test_the_errors_of_two_classes_are_those_of_their_files() -> None:
    files = [head_of(f"compare-fashion-9v7-{share}", "label") for share in SHARES]
    _, *rows = rows_after("Balanced test error, percent")

    for name, *cells in rows:
        arm, adjusted, _ = name.partition(", logit adjusted")
        figure = "mean_class_accuracy" + ("_logit_adjusted" if adjusted else "")
        for (arms, _), cell in zip(files, cells, strict=True):
            found = arms[arm][figure]
            error = {**found, "mean": 1 - found["mean"]}
            assert cell.partition(" (")[0] == percent(error), name
    _, *rows = rows_after("Differences of the error by seed")
    for name, *cells in rows:
        pair = tuple(name.split(" v "))
        for (_, contrasts), cell in zip(files, cells, strict=True):
            if pair in contrasts:
                assert cell == points(contrasts[pair], sign=-1), name  # type: ignore[index]


def test_the_check_by_hand_is_that_of_its_file() -> None:
    content = json.loads((DOCS / "results/fashion-by-hand.json").read_text(encoding="utf-8"))
    columns = (
        "last epoch",
        "best epoch on the held-out images",
        "classes solved on the held-out images, %",
        "change of a weight from epoch to epoch",
    )
    start = TEXT.index("  | by hand, five seeds |")
    rows = [line.strip(" |").split(" | ") for line in TEXT[start:].splitlines()[2:6]]

    for arm, *cells in rows:
        summary = content["arms"][arm]["summary"]
        expected = [summary[name] for name in columns]
        assert cells == (expected[:3] if arm == "cross entropy" else expected)
        last = [100 * sum(run["test"][-1]) / 10 for run in content["arms"][arm]["runs"]]
        assert f"{sum(last) / 5:.1f}" == expected[0].split(" ± ")[0]
