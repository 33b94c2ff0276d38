"""The doctor: what is wrong with a data set, before training on it finds out."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from cdb_video.datasets.annotations import Split, VideoRecord
from cdb_video.prepare.files import Digest, FileCheck, Probe, Step, Timing, VideoFile, on_one_thread
from cdb_video.prepare.findings import Finding, in_order
from cdb_video.prepare.pool import Outcome, run_watched
from cdb_video.prepare.splits import SUBJECT_COLUMNS, check_splits, same_content
from cdb_video.progress import Progress

MOST_TIMED = 256
"""Training files that are timed, spread over all of them."""


@dataclass(frozen=True)
class Speed:
    """What decoding costs on one core, in means over the timed training files."""

    index_s: float
    """To find the frames of a file, once."""
    clip_s: float
    """To open it again and decode a training clip."""
    num_timed: int
    num_clips: int
    """Of the training split."""
    num_files: int

    @property
    def epoch_s(self) -> float:
        """Seconds to decode one epoch in one process: a file of many clips is indexed once."""
        return self.num_clips * self.clip_s + self.num_files * self.index_s

    @property
    def clips_per_s(self) -> float:
        """Of one loader worker."""
        return self.num_clips / self.epoch_s


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found."""

    splits: Mapping[str, Split]
    """Role -> split."""
    findings: Sequence[Finding]
    """In the order of the report."""
    speed: Speed | None
    """None where no training clip could be timed."""


def check_data(
    splits: Mapping[str, Split],
    check: FileCheck,
    *,
    subject_columns: Sequence[str] = SUBJECT_COLUMNS,
    num_workers: int = 2,
    timeout_s: float = 60.0,
    quiet: bool = False,
) -> Diagnosis:
    """Look over splits, and into every one of their files.

    Args:
        splits: role (train, val, test) -> records, read without looking for their files.
        check: how files are opened, and how much of them is decoded.
        subject_columns: metadata that names who is seen; the first that a record has.
        num_workers: processes that decode.
        timeout_s: seconds that one may take over a segment.
        quiet: show no progress.

    """
    files = find_files(splits)
    findings = list(check_splits(splits, subject_columns=subject_columns))
    digests: dict[Path, str] = {}
    timings: list[Timing] = []
    outcomes = run_watched(
        partial(on_one_thread, check), files, num_workers=num_workers, timeout_s=timeout_s
    )
    with (
        closing(outcomes),
        Progress("checking", total=len(files), unit="files", quiet=quiet) as progress,
    ):
        for outcome in outcomes:
            findings += _of_type(Finding, outcome.results)
            findings += _lost(outcome, timeout_s)
            timings += _of_type(Timing, outcome.results)
            for digest in _of_type(Digest, outcome.results):
                digests[outcome.job.path] = digest.hexdigest
            progress.advance()
    findings += same_content(files, digests)
    return Diagnosis(splits, in_order(findings), _speed(splits, timings))


def find_files(splits: Mapping[str, Split]) -> list[VideoFile]:
    """The files of splits: those of equal size to be hashed, some of the training split timed."""
    users: dict[Path, list[tuple[str, VideoRecord]]] = defaultdict(list)
    for role, split in splits.items():
        for record in split.records:
            users[record.path].append((role, record))
    # Not a folder's: its size says nothing.
    sizes = {path: os.path.getsize(path) for path in users if os.path.isfile(path)}
    common = Counter(sizes.values())
    files = [
        VideoFile(path, tuple(uses), is_hashed=common[sizes.get(path, -1)] > 1)
        for path, uses in users.items()
    ]
    return list(_timed(files))


def _timed(files: Sequence[VideoFile]) -> Iterator[VideoFile]:
    """Mark training files, evenly spread."""
    num_train = sum(file.records[0][0] == "train" for file in files)
    every = max(-(-num_train // MOST_TIMED), 1)
    for i, file in enumerate(files):
        is_timed = file.records[0][0] == "train" and i % every == 0
        yield replace(file, timing_seed=i) if is_timed else file


def _lost(outcome: Outcome[VideoFile, Probe], timeout_s: float) -> Iterator[Finding]:
    """The finding of a file whose process hung or died, at the last step that it told of."""
    steps = _of_type(Step, outcome.results)
    where = steps[-1].where if steps else str(outcome.job.path)
    if outcome.hung:
        message = f"no frame for {timeout_s:g} s; the process that decoded it was killed"
        yield Finding("hung", outcome.job.roles, where, message)
    elif outcome.died:
        message = f"the process that decoded it died: {outcome.died}"
        yield Finding("crashed", outcome.job.roles, where, message)


def _speed(splits: Mapping[str, Split], timings: Sequence[Timing]) -> Speed | None:
    if not timings:
        return None
    train = splits["train"].records
    return Speed(
        index_s=fmean(timing.index_s for timing in timings),
        clip_s=fmean(timing.clip_s for timing in timings),
        num_timed=len(timings),
        num_clips=len(train),
        num_files=len({record.path for record in train}),
    )


Kept = TypeVar("Kept")


def _of_type(kind: type[Kept], probes: Sequence[Probe]) -> list[Kept]:
    return [probe for probe in probes if isinstance(probe, kind)]
