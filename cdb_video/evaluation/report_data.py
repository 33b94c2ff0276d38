"""What a report page shows beside its figures: how training went, and which clips went wrong."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdb_video.clips.base import VideoDecoder
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError
from cdb_video.evaluation.difficulty_file import read_difficulty_rows
from cdb_video.evaluation.metrics import CALIBRATION_BINS, confidences
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions

THUMBNAIL_SIDE = 160
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class ClassHistory:
    """One head's rows of difficulty.csv: (E, K) tables over E epochs, NaN where it has nothing."""

    epochs: np.ndarray
    """(E,), increasing."""
    difficulty: np.ndarray
    weight: np.ndarray
    """Row e: used from the end of epoch e on."""

    @property
    def largest_weight(self) -> float:
        """Of any class at any epoch; 1 where there is none."""
        known = self.weight[np.isfinite(self.weight)]
        return max(float(known.max()), 1e-9) if len(known) else 1.0

    def hardest(self, number: int) -> np.ndarray:
        """Indices of the classes with the highest difficulty now, at most `number`."""
        now = self.difficulty[-1]
        order = np.argsort(-now, kind="stable")  # NaN comes last
        return order[: min(number, int(np.isfinite(now).sum()))]


def read_class_histories(path: Path, classes: Mapping[str, HeadClasses]) -> dict[str, ClassHistory]:
    """Head -> what difficulty.csv has of it; a head or file that is not there is left out."""
    places = {
        (head, name): i for head, part in classes.items() for i, name in enumerate(part.names)
    }
    rows: dict[str, dict[int, np.ndarray]] = {}
    for row in read_difficulty_rows(path):
        head = row["head"]
        place = places.get((head, row["class"]))
        if place is None:
            continue
        epochs = rows.setdefault(head, {})
        epoch = int(row["epoch"])
        if epoch not in epochs:
            epochs[epoch] = np.full((2, len(classes[head].names)), np.nan)
        epochs[epoch][:, place] = [float(row[key] or "nan") for key in ("difficulty", "weight")]
    histories = {}
    for head, epochs in rows.items():
        order = sorted(epochs)
        table = np.stack([epochs[epoch] for epoch in order])
        histories[head] = ClassHistory(np.array(order), table[:, 0], table[:, 1])
    return histories


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, of whatever event; empty without the file."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut short when the run died
        if isinstance(event, dict) and {"event", "epoch"} <= event.keys():
            events.append(event)
    return events


def progress(events: Sequence[Mapping[str, Any]]) -> str:
    """How far training has come, in words; empty before its first steps."""
    train = [event for event in events if event["event"] == "train"]
    if not train:
        return ""
    last = train[-1]
    steps = f", {last['step']} steps" if "step" in last else ""
    return f"trained for {round(last['epoch'], 2):g} epochs{steps}"


@dataclass(frozen=True)
class Reliability:
    """Clips by confidence in equal bins, those of the ECE; NaN where a bin is empty."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(part: HeadPredictions) -> Reliability:
    """The calibration of the labelled clips (Guo et al., arXiv 1706.04599)."""
    labelled = part.labels >= 0
    found = confidences(part.scores[labelled], part.labels[labelled])
    confidence, right = (values.numpy() for values in found)
    bins = (confidence * CALIBRATION_BINS).astype(int).clip(max=CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) / count
            for values in (confidence, right)
        ]
    return Reliability(count, *means)


def confusion_matrix(part: HeadPredictions) -> np.ndarray:
    """(K, K) clips: a row the true class, a column the predicted one."""
    number = part.scores.shape[1]
    labelled = part.labels >= 0
    predicted = part.scores[labelled].argmax(1)
    cells = torch.bincount(part.labels[labelled] * number + predicted, minlength=number**2)
    return cells.reshape(number, number).numpy()


@dataclass(frozen=True)
class Confusion:
    """A pair of classes, the clips of the first that were taken for the second."""

    truth: str
    predicted: str
    count: int
    total: int
    """Clips of the true class."""


def most_confused(
    confusion: np.ndarray, names: Sequence[str], *, number: int = 15
) -> list[Confusion]:
    """The pairs with the most clips; of equal ones, the larger share of their class first."""
    total = confusion.sum(axis=1)
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = np.argwhere(wrong)
    counts = wrong[*pairs.T]
    order = np.lexsort((-counts / total[pairs[:, 0]], -counts))[:number]
    return [Confusion(names[i], names[j], int(wrong[i, j]), int(total[i])) for i, j in pairs[order]]


@dataclass(frozen=True)
class HardClip:
    """A clip that the model gave its own class a low score."""

    id: str
    truth: str
    score: float
    """Of the true class."""
    guesses: list[tuple[str, float]]
    """The highest scores, highest first."""


def hardest_clips(
    predictions: Predictions, head: str, names: Sequence[str], *, number: int = 12
) -> list[HardClip]:
    """The labelled clips whose own class has the lowest score, lowest first."""
    part = predictions.heads[head]
    labelled = (part.labels >= 0).nonzero().flatten()
    own = part.scores[labelled].gather(1, part.labels[labelled][:, None]).flatten()
    chosen = labelled[own.argsort(stable=True)[:number]]
    best = part.scores[chosen].sort(dim=1, descending=True, stable=True)
    return [
        HardClip(
            id=predictions.ids[i],
            truth=names[int(part.labels[i])],
            score=float(part.scores[i, part.labels[i]]),
            guesses=[(names[k], score) for k, score in zip(order[:3], scores[:3], strict=True)],
        )
        for i, order, scores in zip(
            chosen.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def thumbnails(
    records: Sequence[VideoRecord],
    wanted: Collection[str],
    opener: Callable[[VideoRecord], VideoDecoder],
) -> dict[str, str]:
    """Id -> the middle frame of the record as a JPEG data URI; unreadable ones are left out."""
    found = {}
    for record in records:
        if record.id in wanted:
            try:
                found[record.id] = _thumbnail(record, opener)
            except DecodeError:
                continue  # a picture is no reason to lose a report
    return found


def _thumbnail(record: VideoRecord, opener: Callable[[VideoRecord], VideoDecoder]) -> str:
    from PIL import Image

    with opener(record) as video:
        start_s = record.start_s or 0.0
        stop_s = float(video.times[-1]) if record.stop_s is None else record.stop_s
        middle = min(video.index_at((start_s + stop_s) / 2), video.num_frames - 1)
        frame = video.frames(torch.tensor([middle]))[0]
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
