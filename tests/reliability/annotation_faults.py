"""Row 16: planted faults of annotations and files are found, and clean data sets have none."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from itertools import count as numbers
from pathlib import Path
from typing import Any

from cdb_video.clips.dataset import ClipSampler
from cdb_video.config_file import parse_config
from cdb_video.errors import UserError
from cdb_video.prepare.check import check_data
from cdb_video.prepare.files import FileCheck
from tests.reliability.clean_sets import CLEAN, table
from tests.reliability.file_faults import FILE_FAULTS
from tests.reliability.line_faults import OPTIONS, READER_FAULTS
from tests.reliability.outcome import Outcome, Row
from tools.check_data import read_splits

Found = tuple[str, str]
"""(level, a line): "refused" where the tool ends with it."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Plant every fault, in round after round of other places, until there are enough."""
    failures: list[str] = []
    tried = found = clean = false_alarms = 0
    for number in numbers():
        if tried >= count:
            break
        draw = random.Random(f"{seed}, {number}")
        place = folder / str(number)
        for name, write in CLEAN.items():
            options = write(place / name, draw)
            errors = [line for level, line in examine(place / name, options) if level != "note"]
            clean += 1
            false_alarms += bool(errors)
            failures += [f"{name}: a false alarm: {line}" for line in errors]
        missed = [*_read_faults(place, draw), *_file_faults(place / "files", draw)]
        failures += missed
        tried += len(READER_FAULTS) + len(FILE_FAULTS)
        found += len(READER_FAULTS) + len(FILE_FAULTS) - len(missed)
        shutil.rmtree(place)
    kinds = len(READER_FAULTS) + len(FILE_FAULTS)
    figures = {"kinds": kinds, "found": found, "clean sets": clean, "false alarms": false_alarms}
    return Outcome(tried, tuple(failures), figures)


def examine(root: Path, data: dict[str, Any], *, look_into_files: bool = True) -> Sequence[Found]:
    """What tools/check_data.py tells of a data set."""
    given = {"root": str(root), "test_split": None, **data}
    values = {"data": given, "loss": {"name": "cross_entropy"}}
    try:
        splits, refused = read_splits(parse_config(values, source="row"))
    except UserError as error:
        return [("refused", str(error))]
    findings = list(refused)
    if look_into_files:
        check = FileCheck(ClipSampler(num_frames=4, stride=1), full=True)
        diagnosis = check_data(splits, check, num_workers=1, timeout_s=30, quiet=True)
        findings += diagnosis.findings
    return [(f.level, f"{f.kind}: {f.where}: {f.message}") for f in findings]


def _read_faults(place: Path, draw: random.Random) -> list[str]:
    """Each in a data set of its own, as a reader tells of one at a time."""
    missed = []
    for fault in READER_FAULTS:
        root = place / "faulty"
        shutil.copytree(place / fault.format, root)
        named = fault.plant(root, draw)
        lines = examine(root, OPTIONS[fault.format], look_into_files=False)
        if not any(level != "note" and named in line for level, line in lines):
            missed.append(f"{fault.name} ({fault.format}): {named!r} is not in {list(lines)}")
        shutil.rmtree(root)
    return missed


def _file_faults(root: Path, draw: random.Random) -> list[str]:
    """All in one data set, beside clips that are as they should be."""
    table(root, draw)
    expected = {fault.name: fault.plant(root, draw) for fault in FILE_FAULTS}
    lines = examine(root, {"format": "table"})
    return [
        f"{name}: {wanted!r} is not in {[line for _, line in lines]}"
        for name, wanted in expected.items()
        if not any(all(part in line for part in wanted.split(" ... ")) for _, line in lines)
    ]


ROW = Row(
    name="faults of annotations and files",
    promise="every planted fault of annotations, splits and files is found before training, with "
    "its line or file, and clean data sets of five formats give no false alarm",
    measure=measure,
    quick=len(READER_FAULTS) + len(FILE_FAULTS),
    full=3 * (len(READER_FAULTS) + len(FILE_FAULTS)),
)
