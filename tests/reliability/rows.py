"""Every row of the reliability table, in its order: a module a row, or a few."""

from __future__ import annotations

from tests.reliability.annotation_faults import ROW as ANNOTATION_FAULTS
from tests.reliability.bad_numbers import ROW as BAD_NUMBERS
from tests.reliability.cdb_tables import ROW as CDB_TABLES
from tests.reliability.checkpoint_kills import ROW as CHECKPOINT_KILLS
from tests.reliability.corruption import ROW as CORRUPTION
from tests.reliability.counting import ROW as COUNTING
from tests.reliability.disk_full import ROW as DISK_FULL
from tests.reliability.fuzz_videos import ROW as FUZZ_VIDEOS
from tests.reliability.loader_deaths import ROW as LOADER_DEATHS
from tests.reliability.malicious import ROW as MALICIOUS
from tests.reliability.omission import ROW as OMISSION
from tests.reliability.other_ranks import ROW as OTHER_RANKS
from tests.reliability.outcome import Row
from tests.reliability.restarts import ROW as RESTARTS
from tests.reliability.resume_kill import ROW as RESUME_KILL
from tests.reliability.signals import ROW as SIGNALS
from tests.reliability.stopped_rank import ROW as STOPPED_RANK

ROWS: tuple[Row, ...] = (
    RESUME_KILL,
    OMISSION,
    OTHER_RANKS,
    RESTARTS,
    SIGNALS,
    STOPPED_RANK,
    BAD_NUMBERS,
    CHECKPOINT_KILLS,
    CORRUPTION,
    DISK_FULL,
    COUNTING,
    CDB_TABLES,
    FUZZ_VIDEOS,
    LOADER_DEATHS,
    ANNOTATION_FAULTS,
    MALICIOUS,
)
