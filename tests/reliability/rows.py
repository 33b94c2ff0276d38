"""Every row of the reliability table."""

from __future__ import annotations

from tests.reliability.outcome import Row

ROWS: tuple[Row, ...] = ()
