"""The quick lane: `pytest tests/reliability`. A row a test, counts that CI has time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.lane import adopt_orphans, measure
from tests.reliability.outcome import Row
from tests.reliability.rows import ROWS

SHOWN = 20
"""Failures that a message names."""


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_has_a_line_for_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8")

    lines = [f"| `{r.name}` | {r.promise} | {r.quick:,} | {r.full:,} |" for r in ROWS]
    assert [line for line in lines if line not in page.splitlines()] == []


@pytest.mark.timeout(
    600
)  # on free cores the longest takes two minutes; each part has limits of its own
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, tmp_path: Path) -> None:
    adopt_orphans()

    outcome = measure(row, row.quick, 0, tmp_path)

    shown = "\n".join(outcome.failures[:SHOWN])
    assert not outcome.failures, (
        f"{row.promise}\n{len(outcome.failures)} of {outcome.tried} broke it:\n{shown}"
    )
    assert outcome.tried >= row.quick
