"""A data set's videos re-encoded for training, in processes of their own, into another folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import torch

from cdb_video.clips.child import limit_process
from cdb_video.clips.decoders import open_video
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.untrusted import refuse_old_ffmpeg
from cdb_video.datasets.folder import VIDEO_SUFFIXES
from cdb_video.datasets.inside import refuse_links_out
from cdb_video.errors import DataError, DecodeError
from cdb_video.prepare.ledger import Ledger, Prepared
from cdb_video.prepare.pool import Outcome, run_watched
from cdb_video.prepare.reencode import Settings, reencode, save_for_good, verify
from cdb_video.progress import Progress

KEPT_SUFFIXES = (".mp4", ".mov", ".m4v")
"""Of the mp4 family: such a file keeps its very name, so that annotations still find it."""
MAX_FILE_BYTES = 2**36
"""Of a file made of an untrusted one: 64 GB."""
_TEMPORARY = re.compile(r"\.prepare-\d+-\d+\.mp4")


@dataclass(frozen=True)
class Job:
    """A file to make."""

    source: Path
    target: Path
    temporary: Path
    """Beside the target, hidden: readers do not see it."""
    source_name: str
    """Relative to its folder, as the next."""
    target_name: str


@dataclass(frozen=True)
class Failure:
    """A file that could not be made."""

    source: str
    reason: str


@dataclass(frozen=True)
class Ingest:
    """What was done."""

    made: Sequence[Prepared]
    kept: Sequence[Prepared]
    """Made before, of the same sources."""
    failures: Sequence[Failure]
    renamed: int
    """Files whose suffix changed."""
    elapsed_s: float


def prepare_videos(
    in_dir: Path,
    out_dir: Path,
    settings: Settings,
    *,
    num_workers: int = 2,
    timeout_s: float = 300.0,
    index_dir: Path | None = None,
    untrusted: bool = False,
    quiet: bool = False,
) -> Ingest:
    """Make OUT_DIR's files; those that were made before of the same sources are left.

    Each is written beside its place, verified, and renamed. The sources are only read.

    Args:
        in_dir: its videos, at any depth.
        out_dir: the same paths under it.
        settings: the same for each file of the folder, now and later.
        num_workers: processes; each takes one file at a time, on one thread.
        timeout_s: seconds without a frame after which a file is given up.
        index_dir: packet indices are kept in it, such as `<data.cache_dir>/packet_index`.
        untrusted: the sources are a stranger's (`clips/untrusted.py`): links out of in_dir, rare
            codecs and enormous frames are refused, and what a process may take is limited.
        quiet: show no progress.

    Raises:
        ConfigError: untrusted, with an FFmpeg that has a known hole.
        DataError: a folder that cannot be used, or two sources of one name.
    """
    started = time.monotonic()
    jobs = plan_jobs(in_dir, out_dir)
    if untrusted:
        refuse_old_ffmpeg()
        refuse_links_out(in_dir)
    task = partial(
        prepare_file,
        settings=settings,
        index_folder=IndexFolder(index_dir, out_dir) if index_dir else None,
        untrusted=untrusted,
    )
    made: list[Prepared] = []
    failures: list[Failure] = []
    with Ledger(out_dir, settings) as ledger:
        _sweep(out_dir)
        done = {job for job in jobs if _is_done(ledger, job)}
        kept = [ledger.entries[job.source_name] for job in jobs if job in done]
        to_do = [job for job in jobs if job not in done]
        outcomes = run_watched(task, to_do, num_workers=num_workers, timeout_s=timeout_s)
        progress = Progress("preparing", total=len(to_do), unit="files", quiet=quiet)
        try:
            with closing(outcomes), progress:
                for outcome in outcomes:
                    result = _result(outcome, timeout_s)
                    if isinstance(result, Failure):
                        failures.append(result)
                    else:
                        made.append(result)
                        ledger.add(result)
                    progress.advance(failed=len(failures))
        finally:
            _sweep(out_dir)  # of processes that were killed
    renamed = sum(job.source_name != job.target_name for job in jobs)
    failures.sort(key=lambda failure: failure.source)
    return Ingest(made, kept, failures, renamed, time.monotonic() - started)


def plan_jobs(in_dir: Path, out_dir: Path) -> list[Job]:
    """A job a video, by name; DataError before anything is written."""
    _refuse_folders(in_dir, out_dir)
    names = sorted(find_sources(in_dir))
    if not names:
        raise DataError(f"{in_dir}: no video in it ({' '.join(VIDEO_SUFFIXES)})")
    jobs: dict[str, Job] = {}
    for number, name in enumerate(names):
        target = target_name(name)
        if target in jobs:
            raise DataError(
                f"{in_dir}: {jobs[target].source_name} and {name} would both become {target}"
            )
        place = out_dir / target
        temporary = place.with_name(f".prepare-{os.getpid()}-{number}.mp4")
        jobs[target] = Job(in_dir / name, place, temporary, name, target)
        _refuse_links(jobs[target], out_dir)
    return list(jobs.values())


def target_name(name: str) -> str:
    """The same path, with the suffix .mp4 unless the file is of the mp4 family by its name."""
    path = Path(name)
    return name if path.suffix.lower() in KEPT_SUFFIXES else path.with_suffix(".mp4").as_posix()


def find_sources(in_dir: Path) -> Iterator[str]:
    """Paths of videos relative to the folder, at any depth; linked folders too, nothing hidden."""
    for folder, subfolders, files in os.walk(in_dir, followlinks=True):
        here = Path(folder)
        above = [here.resolve(), *here.resolve().parents]
        # A link back up would be walked for ever.
        subfolders[:] = [
            name for name in subfolders if name[0] != "." and (here / name).resolve() not in above
        ]
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield (here / name).relative_to(in_dir).as_posix()


def prepare_file(
    job: Job, *, settings: Settings, index_folder: IndexFolder | None, untrusted: bool = False
) -> Iterator[int | Prepared | Failure]:
    """Make one file; numbers are signs of life, what comes last is the result."""
    torch.set_num_threads(1)
    if untrusted:
        limit_process(file_bytes=MAX_FILE_BYTES)
    try:
        before = job.source.stat()
        job.target.parent.mkdir(parents=True, exist_ok=True)
        encoded = yield from reencode(job.source, job.temporary, settings, untrusted=untrusted)
        verify(job.temporary, encoded)
        now = job.source.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise DecodeError(f"{job.source}: changed while it was read")
        save_for_good(job.temporary, job.target)
        if index_folder:
            with open_video(job.target, index_folder=index_folder):
                pass
        yield Prepared(
            job.source_name,
            before.st_size,
            before.st_mtime_ns,
            job.target_name,
            job.target.stat().st_size,
            num_frames=len(encoded.times),
            duration_s=encoded.duration_s,
            height=encoded.height,
            width=encoded.width,
        )
    except DecodeError as error:
        yield Failure(job.source_name, str(error).removeprefix(f"{job.source}: "))
    except (OSError, av.error.FFmpegError) as error:
        yield Failure(job.source_name, f"{job.target} cannot be written: {error.strerror}")
    finally:
        job.temporary.unlink(missing_ok=True)


def _result(
    outcome: Outcome[Job, int | Prepared | Failure], timeout_s: float
) -> Prepared | Failure:
    if outcome.hung:
        return Failure(outcome.job.source_name, f"no frame for {timeout_s:g} s; it was given up")
    if outcome.died:
        return Failure(outcome.job.source_name, f"its process died: {outcome.died}")
    last = outcome.results[-1]
    if isinstance(last, int):
        raise RuntimeError(f"{outcome.job.source}: a job without a result")
    return last


def _is_done(ledger: Ledger, job: Job) -> bool:
    return ledger.has(job.source, name=job.source_name, target=job.target)


def _refuse_folders(in_dir: Path, out_dir: Path) -> None:
    if not in_dir.is_dir():
        raise DataError(f"{in_dir}: no such folder")
    if out_dir.exists() and not out_dir.is_dir():
        raise DataError(f"{out_dir}: not a folder")
    first, second = in_dir.resolve(), out_dir.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise DataError(f"{out_dir}: must lie outside {in_dir}, and not around it")


def _refuse_links(job: Job, out_dir: Path) -> None:
    """No way from one folder into the other: a source is never written to, nor a target read."""
    out = out_dir.resolve()
    if out in job.source.resolve().parents:
        raise DataError(f"{job.source}: a link into {out_dir}")
    if not job.target.parent.resolve().is_relative_to(out):
        raise DataError(f"{job.target.parent}: a link out of {out_dir}")


def _sweep(out_dir: Path) -> None:
    """Remove what killed processes left half-written; nobody else writes, as the ledger is held."""
    for path in out_dir.rglob(".prepare-*.mp4"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
