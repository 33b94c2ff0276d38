"""What a run writes as it goes: metrics.jsonl, difficulty.csv, and to its trackers."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.evaluation.canvas import pixels
from cdb_video.evaluation.difficulty_file import DIFFICULTY_COLUMNS, read_difficulty_rows
from cdb_video.files import write_text_durably, writing
from cdb_video.training.trackers import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY_CLASS = ("class_accuracy", "train_count", "count")
"""Of a head's figures in a report, those with an entry a class."""

HEARTBEAT_S = 30.0
"""Longest time between two lines, but for what takes longer in one go."""
AFTER_EPOCH = ("eval", "epoch", "coverage")
"""Events of an epoch's end; of the others those up to a step belong to it."""


class Done(NamedTuple):
    """Up to where a run's lines stand."""

    epoch: int
    """Epochs done, their evaluation included; -1: not even the lines of epoch 0."""
    step: int
    """Steps done."""


NOTHING_DONE = Done(-1, -1)
"""Of an interrupted run without a checkpoint."""


class RunLog(Protocol):
    """Where a run's figures go."""

    def write(self, event: str, *, epoch: float, step: int, **figures: Any) -> None:
        """One line: an event such as "train" or "eval", with its figures."""

    def beat(self, doing: str, *, epoch: float, step: int, **figures: Any) -> None:
        """A sign of life, where no line was written for a while."""

    def write_difficulty(
        self,
        epoch: int,
        head: str,
        *,
        names: Sequence[str],
        train_counts: Tensor,
        accuracy: Tensor,
        difficulty: Tensor,
        weights: Tensor,
    ) -> None:
        """A row a class: its accuracy after the epoch, its weight from then on."""

    def show_report(self, report: Mapping[str, Any]) -> None:
        """The figures of a split's report, to the trackers; after the latest step of an event."""

    def show_figures(self, split: str, figures: Mapping[str, Figure]) -> None:
        """Pictures of a split, to the trackers."""

    def close(self) -> None:
        """Write what is held back."""


class SilentLog:
    """The log of every rank but 0."""

    def write(self, event: str, *, epoch: float, step: int, **figures: Any) -> None:
        """Nothing."""

    def beat(self, doing: str, *, epoch: float, step: int, **figures: Any) -> None:
        """Nothing."""

    def write_difficulty(self, epoch: int, head: str, **columns: Any) -> None:
        """Nothing."""

    def show_report(self, report: Mapping[str, Any]) -> None:
        """Nothing."""

    def show_figures(self, split: str, figures: Mapping[str, Figure]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class FileLog:
    """The log of rank 0, in a run's folder.

    Args:
        folder: the run's.
        done: by the checkpoint that the run goes on from, or NOTHING_DONE; what an interrupted run
            wrote after it is taken back, so that no line stands twice.
        trackers: get the numbers too, and what is shown; closed with the log.

    """

    def __init__(
        self,
        folder: Path,
        *,
        done: Done = NOTHING_DONE,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.metrics_path = folder / "metrics.jsonl"
        self.difficulty_path = folder / "difficulty.csv"
        self._take_back(done)
        with writing(self.metrics_path):
            self._metrics = self.metrics_path.open("a", encoding="utf-8")
        self._step = max(done.step, 0)
        self._last_line = time.monotonic()
        self._trackers = tuple(trackers)

    def write(self, event: str, *, epoch: float, step: int, **figures: Any) -> None:
        """Append a line to metrics.jsonl; numbers go to the trackers too."""
        line = {"event": event, "time": time.time(), "epoch": epoch, "step": step, **figures}
        # NaN is not JSON: a figure that does not exist is null.
        with writing(self.metrics_path):
            self._metrics.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            self._metrics.flush()
        self._last_line = time.monotonic()
        # A save beside the training is told of when it is done, with the step that it is of.
        self._step = max(self._step, step)
        scalars = dict(_flat(figures, event))
        for tracker in self._trackers:
            tracker.add_scalars(scalars, step=step)

    def beat(self, doing: str, *, epoch: float, step: int, **figures: Any) -> None:
        """A line of event "heartbeat" where none was written for `HEARTBEAT_S`."""
        if time.monotonic() - self._last_line > HEARTBEAT_S:
            self.write("heartbeat", epoch=epoch, step=step, doing=doing, **figures)

    def write_difficulty(
        self,
        epoch: int,
        head: str,
        *,
        names: Sequence[str],
        train_counts: Tensor,
        accuracy: Tensor,
        difficulty: Tensor,
        weights: Tensor,
    ) -> None:
        """Append a row a class to difficulty.csv; a figure that does not exist is empty."""
        columns = [tensor.tolist() for tensor in (train_counts, accuracy, difficulty, weights)]
        is_new = not self.difficulty_path.exists()
        with (
            writing(self.difficulty_path),
            self.difficulty_path.open("a", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            if is_new:
                writer.writerow(DIFFICULTY_COLUMNS)
            for name, *values in zip(names, *columns, strict=True):
                row = ["" if math.isnan(value) else value for value in values]
                writer.writerow([epoch, head, name, *row])

    def show_report(self, report: Mapping[str, Any]) -> None:
        """Under names such as "val/verb/top1"; the tables by class are left to the report."""
        scalars = {
            name: value
            for head, figures in report["heads"].items()
            for name, value in _flat(
                {key: value for key, value in figures.items() if key not in BY_CLASS},
                f"{report['split']}/{head}",
            )
            if not name.endswith(("/num_classes", "/num_classes_present", "/num_videos"))
        }
        for tracker in self._trackers:
            tracker.add_scalars(scalars, step=self._step)

    def show_figures(self, split: str, figures: Mapping[str, Figure]) -> None:
        """Under names such as "val/verb/confusion"."""
        if not self._trackers:
            return
        images = {f"{split}/{name}": pixels(figure) for name, figure in figures.items()}
        for tracker in self._trackers:
            tracker.add_images(images, step=self._step)

    def close(self) -> None:
        """Close the files and the trackers."""
        with suppress(OSError):  # what could not be written was said
            self._metrics.close()
        is_failing = sys.exc_info()[0] is not None
        for tracker in self._trackers:
            # A full disk is said once, by the first that met it.
            with suppress(RunError) if is_failing else nullcontext():
                tracker.close()

    def _take_back(self, done: Done) -> None:
        if self.metrics_path.exists():
            # A power cut may have torn the end, or filled it with zeros.
            text = self.metrics_path.read_bytes().decode("utf-8", errors="replace")
            lines = text.splitlines()
            kept = [f"{line}\n" for line in lines if _belongs(line, done)]
            write_text_durably(self.metrics_path, "".join(kept))
        if self.difficulty_path.exists():
            content = io.StringIO(newline="")
            writer = csv.DictWriter(content, DIFFICULTY_COLUMNS)
            writer.writeheader()
            rows = read_difficulty_rows(self.difficulty_path)
            writer.writerows(row for row in rows if int(row["epoch"]) <= done.epoch)
            write_text_durably(self.difficulty_path, content.getvalue())


def _belongs(line: str, done: Done) -> bool:
    """Whether a line of metrics.jsonl is of what is done."""
    try:
        event = json.loads(line)
        if event["event"] in AFTER_EPOCH or event.get("split") == "val":
            return bool(event["epoch"] <= done.epoch)
        return bool(event["step"] <= done.step)
    except (ValueError, KeyError, TypeError):
        return False  # cut short when the run died


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _flat(figures: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            pairs.append((f"{prefix}/{name}", float(value)))
    return pairs
