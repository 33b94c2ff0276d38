"""A video file -> the top classes of each head, by the very pipeline of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.clips.dataset import (
    ClipSampler,
    EvaluationViews,
    Pixels,
    RecordOpener,
    open_record,
)
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.clips.watchdog import RAISE, DecodePolicy
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision

Ranking = list[tuple[str, float]]
"""(class name, score) pairs, the highest score first."""


@dataclass(frozen=True)
class Scorer:
    """Scores videos or segments of them as evaluation does."""

    model: Recognizer
    """On its device."""
    sampler: ClipSampler
    crops: EvaluationCrops
    num_clips: int = 1
    opener: RecordOpener = open_record
    pixels: Pixels = "rgb"
    precision: Precision = "fp32"
    micro_batch_size: int = 32
    """Clips a forward, at most."""
    timeout_s: float = RAISE.timeout_s
    """Longest time that one segment may take to decode."""

    def __call__(
        self, records: Sequence[VideoRecord], *, opener: RecordOpener | None = None
    ) -> dict[str, Tensor]:
        """Head -> scores (len(records), K), the mean over the views of each.

        Raises:
            DecodeError: naming the file.

        """
        views = EvaluationViews(
            records,
            sampler=self.sampler,
            crops=self.crops,
            num_clips=self.num_clips,
            opener=opener or self.opener,
            pixels=self.pixels,
        )
        report = evaluate(
            self.model,
            EvaluationLoader(
                views,
                clips_per_batch=self.micro_batch_size,
                policy=DecodePolicy(timeout_s=self.timeout_s),
            ),
            device=next(self.model.parameters()).device,
            precision=self.precision,
            micro_batch_size=self.micro_batch_size,
        )
        return {head: part.scores for head, part in report.predictions.heads.items()}

    def predict(
        self,
        path: str | Path,
        *,
        class_names: Mapping[str, Sequence[str]],
        fps: float | None = None,
        top: int = 5,
    ) -> dict[str, Ranking]:
        """See `predict`."""
        if top < 1:
            raise ValueError(f"top={top}: must be at least 1")
        scores = self([segment_record(path, fps=fps)])
        return {
            head: rank_classes(part[0], class_names[head], top=top) for head, part in scores.items()
        }


def predict(
    model: Recognizer,
    path: str | Path,
    *,
    class_names: Mapping[str, Sequence[str]],
    sampler: ClipSampler,
    crops: EvaluationCrops,
    num_clips: int = 1,
    opener: RecordOpener = open_record,
    pixels: Pixels = "rgb",
    fps: float | None = None,
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    top: int = 5,
) -> dict[str, Ranking]:
    """The `top` classes of each head with their scores, never more than there are.

    Args:
        model: on its device.
        path: a video file, or with `fps` a folder of frames, taken from its start to its end.
        class_names: head -> names.
        sampler: which frames make a clip.
        crops: the windows of a frame.
        num_clips: clips that are averaged.
        opener: opens the video.
        pixels: as the decoder gives them.
        fps: frames a second of a folder of frames; None: a file.
        precision: of the forward pass.
        micro_batch_size: clips a forward, at most.
        top: how many classes, at least 1.

    Raises:
        DecodeError: naming the file.

    """
    scorer = Scorer(
        model,
        sampler=sampler,
        crops=crops,
        num_clips=num_clips,
        opener=opener,
        pixels=pixels,
        precision=precision,
        micro_batch_size=micro_batch_size,
    )
    return scorer.predict(path, class_names=class_names, fps=fps, top=top)


def rank_classes(scores: Tensor, names: Sequence[str], *, top: int) -> Ranking:
    """The best of scores (K,) with their names; the lower index first on ties."""
    order = torch.argsort(scores, descending=True, stable=True)[:top]
    return [(names[i], float(scores[i])) for i in order.tolist()]


def segment_record(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float | None = None,
    stop_s: float | None = None,
) -> VideoRecord:
    """A record without labels: a part of a video, or all of it."""
    path = Path(path)
    return VideoRecord(
        id=f"{path}@{start_s}-{stop_s}",
        path=path,
        video_id=path.stem,
        recording=path.stem,
        labels={},
        start_s=start_s,
        stop_s=stop_s,
        fps=fps,
    )
