"""The checkpoints of a run: which there are, which one counts, which are kept.

`checkpoint_files.py` writes and reads one; its functions are to be had here as well.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.files import write_text_durably
from cdb_video.training.checkpoint_files import (
    REPLACED,
    Content,
    delete,
    load_model,
    load_training,
    remove_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from cdb_video.training.manifest import MANIFEST, verify
from cdb_video.training.run_folder import mark_stopped

__all__ = [
    "MANIFEST",
    "CheckpointFolder",
    "NoCheckpoints",
    "Saved",
    "best_first",
    "checkpoints",
    "load_best",
    "load_model",
    "load_training",
    "newest_valid",
    "save_best",
    "save_checkpoint",
    "set_aside_if_damaged",
    "verify",
]

BEST = "best.json"
NAME = re.compile(rf"step-([0-9]+)({re.escape(REPLACED)})?")
"""Of a checkpoint: its step, and whether it is one that is being replaced."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by step, the newest last; nothing is verified."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    named = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return [path for *_, path in sorted(named)]


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose manifest holds, and a line for each damaged one.

    Damaged ones are renamed to `damaged-<name>`, so that they are neither loaded nor counted. For
    the one process that writes to the folder.
    """
    lines: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except RunError as error:
            lines.append(_set_aside(path, error))
        else:
            # A save of the same step was killed between its two moves.
            whole = path.with_name(path.name.removesuffix(REPLACED))
            return (path.rename(whole) if whole != path else path), lines
    return None, lines


def set_aside_if_damaged(path: Path) -> str | None:
    """A line where a checkpoint is gone, or was damaged and is renamed; None where it is whole."""
    if not path.exists():
        return f"{path}: not there any more"
    try:
        verify(path)
    except RunError as error:
        return _set_aside(path, error)
    return None


def _set_aside(path: Path, why: RunError) -> str:
    number, aside = 1, path.with_name(f"damaged-{path.name}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    try:
        path.rename(aside)
    except OSError as error:
        return f"{why}; passed over, as it cannot be set aside ({error.strerror})"
    return f"{why}; set aside as {aside.name}"


def save_best(folder: Path, best: Mapping[str, Any]) -> None:
    """Write `best.json`: {"checkpoint": "step-<n>", ...} with the figures that picked it."""
    write_text_durably(folder / BEST, json.dumps(best, indent=1) + "\n")


def load_best(folder: Path) -> dict[str, Any] | None:
    """What `save_best` wrote; None where nothing was selected yet.

    Raises:
        RunError: damaged, or it names no checkpoint of the folder.

    """
    path = folder / BEST
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        name = str(best["checkpoint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error!r})") from None
    if not NAME.fullmatch(name) or not (folder / name).is_dir():
        raise RunError(f"{path}: it names {name}, which is not there")
    found: dict[str, Any] = best
    return found


def best_first(folder: Path) -> tuple[list[Path], list[str]]:
    """The best checkpoint, then the others from the newest on; and a line where there is no best.

    Of a single one nothing is said: there is no choice. Nothing is verified.
    """
    found = checkpoints(folder)[::-1]
    try:
        best = load_best(folder)
    except RunError as error:
        return found, [f"{error}; the newest checkpoint is used"] if found else []
    if best is None:
        reason = "no checkpoint was selected; the newest is used"
        return found, [f"{folder / BEST}: not there, {reason}"] if len(found) > 1 else []
    chosen = folder / str(best["checkpoint"])
    return [chosen, *(path for path in found if path != chosen)], []


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on the disk."""

    step: int
    path: Path
    num_bytes: int
    seconds: float
    """From the call to when it was on the disk."""
    waited_s: float
    """Of them, what training waited for."""
    notes: tuple[str, ...]
    """A line for each older one that was damaged or could not be deleted."""


class CheckpointFolder:
    """Saves a run's checkpoints on rank 0; what a killed writer left half done is swept.

    An older checkpoint is deleted when the new one and `best.json` are on the disk, and not before.

    Args:
        path: the run's `checkpoints` folder.
        texts: file name -> content that every checkpoint carries, such as the configuration.
        keep_last: how many whole ones to keep, besides the best.
        background: let `save` return as soon as the state is copied, and write it in a thread, one
            at a time. Whoever sets it calls `close`.

    """

    def __init__(
        self, path: Path, *, texts: Mapping[str, str], keep_last: int, background: bool = False
    ) -> None:
        self.path = path
        self.texts = texts
        self.keep_last = keep_last
        self._writer = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._in_flight: Future[Saved] | None = None
        self._finished: list[Saved] = []
        self._whole: set[str] = set()  # names of what this process wrote or verified
        _say(_sweep(path))

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        training: Mapping[str, Any],
        best: Mapping[str, Any] | None,
    ) -> None:
        """Save a checkpoint; `best` names the best one so far and the figures that made it so.

        Raises:
            RunError: this save failed, or the one before it, in the background.

        """
        start = time.perf_counter()
        self.close()
        content = Content.copy_of(model, training, self.texts)
        if self._writer is None:
            self._finished.append(self._save(step, content, best, start, None))
        else:
            waited_s = time.perf_counter() - start
            work = partial(self._save, step, content, best, start, waited_s)
            self._in_flight = self._writer.submit(work)

    def close(self) -> None:
        """Wait until every checkpoint is on the disk; more may be saved afterwards.

        Raises:
            RunError: the last save failed, in the background.

        """
        if self._in_flight is not None:
            future, self._in_flight = self._in_flight, None
            self._finished.append(future.result())

    def mark_stopped(self, reason: str) -> None:
        """Leave the run's mark that it was asked to stop."""
        mark_stopped(self.path.parent, reason)

    def take_finished(self) -> list[Saved]:
        """The checkpoints that came onto the disk since the last call, without waiting.

        Raises:
            RunError: a save failed, in the background.

        """
        if self._in_flight is not None and self._in_flight.done():
            self.close()
        finished, self._finished = self._finished, []
        return finished

    def _save(
        self,
        step: int,
        content: Content,
        best: Mapping[str, Any] | None,
        start: float,
        waited_s: float | None,
    ) -> Saved:
        notes = _sweep(self.path)
        path = write_checkpoint(self.path, step, content)
        self._whole.add(path.name)
        if best is not None:
            try:
                save_best(self.path, best)
            except RunError as error:
                raise RunError(f"{error}; earlier checkpoints are untouched") from error
        notes += self._prune(best)
        _say(notes)
        seconds = time.perf_counter() - start
        waited_s = seconds if waited_s is None else waited_s
        return Saved(step, path, content.num_bytes, seconds, waited_s, tuple(notes))

    def _prune(self, best: Mapping[str, Any] | None) -> list[str]:
        """Delete all but the last `keep_last` whole ones and the best; a line for each mishap."""
        notes: list[str] = []
        kept = 0
        best_name = (best or {}).get("checkpoint")
        for path in reversed(checkpoints(self.path)):
            is_replaced = path.name.removesuffix(REPLACED) in self._whole - {path.name}
            if kept >= self.keep_last or is_replaced:
                if path.name != best_name:
                    notes += remove_checkpoint(path)
                continue
            try:
                if path.name not in self._whole:
                    verify(path)
                self._whole.add(path.name)
                kept += 1
            except RunError as error:
                notes.append(_set_aside(path, error))
        return notes


def _sweep(folder: Path) -> list[str]:
    """Delete what a killed writer left; a line for each that could not be."""
    return [
        line
        for pattern in (".step-*", ".best.*")
        for path in folder.glob(pattern)
        for line in delete(path)
    ]


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


class NoCheckpoints:
    """Saves nothing: every rank but 0."""

    def save(self, step: int, **state: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def mark_stopped(self, reason: str) -> None:
        """Nothing."""

    def take_finished(self) -> list[Saved]:
        """Nothing."""
        return []
