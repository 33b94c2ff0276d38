"""Every row of the reliability table, in its order: a module a row, or a few."""

from __future__ import annotations

from tests.reliability.cdb_tables import ROW as CDB_TABLES
from tests.reliability.checkpoint_kills import ROW as CHECKPOINT_KILLS
from tests.reliability.corruption import ROW as CORRUPTION
from tests.reliability.counting import ROW as COUNTING
from tests.reliability.disk_full import ROW as DISK_FULL
from tests.reliability.outcome import Row

ROWS: tuple[Row, ...] = (
    CHECKPOINT_KILLS,
    CORRUPTION,
    DISK_FULL,
    COUNTING,
    CDB_TABLES,
)
