"""The demo data set: a made-up kitchen in 300 real H.264 files, written as EGTEA Gaze+ is shipped.

Long-tailed over verbs and over nouns, and with difficulty that is not rarity: the case that CDB
is for. `demo_plan` says what is shown, `demo_scene` shows it.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

from cdb_video.datasets.demo_plan import (
    DEMO_HOLD_OUT_SUBJECTS,
    NOUNS,
    VERBS,
    Counts,
    DemoClip,
    plan_demo,
)
from cdb_video.datasets.demo_scene import write_clip
from cdb_video.errors import DataError

__all__ = ["DEMO_HOLD_OUT_SUBJECTS", "make_demo"]

_MARKER = "demo.json"
_VERSION = 1  # raised when the same seed draws something else, so that old folders are redone


def make_demo(
    folder: Path,
    *,
    counts: Counts = "mixed",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    num_clips: int = 300,
) -> Path:
    """The folder, with the demo data set in it: rendered, in half a minute, unless it is there.

    `counts` says which classes are the rare ones: some easy and some hard ("mixed"), the hard, or
    the easy. `progress` is told (clips done, clips in all). Processes that ask for one folder at
    the same time make it once, and a folder is either complete or not there; another seed, count
    or version takes the old one's place. DataError when the folder holds anything else.
    """
    target = Path(folder).resolve()
    marker = {"version": _VERSION, "counts": counts, "seed": seed, "num_clips": num_clips}
    if _marker_of(target) == marker:
        return folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(target.with_name(f".{target.name}.lock")):
        if _marker_of(target) == marker:
            return folder
        if _marker_of(target) is None and _holds_something(target):
            raise DataError(f"{folder}: holds something else than demo data; name a new folder")
        beside = f".{target.name}.part-"
        for left_by_a_killed_process in target.parent.glob(f"{beside}*"):
            shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=beside, dir=target.parent) as scratch:
            new = Path(scratch, "new")
            clips = plan_demo(counts=counts, seed=seed, num_clips=num_clips)
            _write_annotations(new, clips)
            _render(new, clips, progress)
            (new / _MARKER).write_text(json.dumps(marker) + "\n")
            if target.exists():
                target.rename(Path(scratch, "old"))
            new.rename(target)
    return folder


def _write_annotations(folder: Path, clips: Sequence[DemoClip]) -> None:
    """The official files: `NAME ID` a class and `clip action verb noun` a clip, ids from 1."""
    folder.mkdir()
    tally = Counter(clip.action for clip in clips)
    ids = {}
    for head, names in {
        "action": sorted(tally, key=lambda action: (-tally[action], action)),
        "verb": list(VERBS),
        "noun": list(NOUNS),
    }.items():
        ids[head] = {name: number for number, name in enumerate(names, start=1)}
        lines = [f"{name} {number}\n" for name, number in ids[head].items()]
        (folder / f"{head}_idx.txt").write_text("".join(lines))
    for file, splits in {"train_split1": ("train", "val"), "test_split1": ("test",)}.items():
        rows = [
            (
                ids["action"][clip.action],
                clip.name,
                ids["verb"][clip.shot.verb],
                ids["noun"][clip.shot.noun],
            )
            for clip in clips
            if clip.split in splits
        ]
        lines = [f"{name} {action} {verb} {noun}\n" for action, name, verb, noun in sorted(rows)]
        (folder / f"{file}.txt").write_text("".join(lines))


def _render(
    folder: Path, clips: Sequence[DemoClip], progress: Callable[[int, int], None] | None
) -> None:
    paths = [folder / "cropped_clips" / clip.session / f"{clip.name}.mp4" for clip in clips]
    for session in {path.parent for path in paths}:
        session.mkdir(parents=True)
    # Spawned, not forked: the caller may hold locks in threads of torch or gloo, which a forked
    # child would wait on for ever, and a child must not inherit the descriptor of our lock.
    context = multiprocessing.get_context("spawn")
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        done = pool.map(write_clip, paths, [clip.shot for clip in clips], chunksize=4)
        for number, _ in enumerate(done, start=1):
            if progress is not None:
                progress(number, len(clips))


def _end_with_parent() -> None:
    """Pool workers outlive a killed parent, waiting for work; these do not."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold the lock file; the kernel frees it however the holder ends. The file itself stays."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _marker_of(folder: Path) -> object:
    """What a finished data set was made with; None where there is none."""
    try:
        return json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None


def _holds_something(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))
