"""A video file -> the top classes of each head, by the very pipeline of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.clips.dataset import ClipSampler, EvaluationViews, RecordOpener, open_record
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision

Ranking = list[tuple[str, float]]
"""(class name, score) pairs, the highest score first."""


def predict(
    model: Recognizer,
    path: str | Path,
    *,
    class_names: Mapping[str, Sequence[str]],
    sampler: ClipSampler,
    crops: EvaluationCrops,
    num_clips: int = 1,
    opener: RecordOpener = open_record,
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
        fps: frames a second of a folder of frames; None: a file.
        precision: of the forward pass.
        micro_batch_size: clips a forward, at most.
        top: how many classes.

    Raises:
        DecodeError: naming the file.

    """
    path = Path(path)
    record = VideoRecord(
        id=str(path), path=path, video_id=path.stem, recording=path.stem, labels={}, fps=fps
    )
    views = EvaluationViews(
        [record], sampler=sampler, crops=crops, num_clips=num_clips, opener=opener
    )
    report = evaluate(
        model,
        EvaluationLoader(views, clips_per_batch=views.num_views),
        device=next(model.parameters()).device,
        precision=precision,
        micro_batch_size=micro_batch_size,
    )
    heads = report.predictions.heads
    return {
        head: rank_classes(part.scores[0], class_names[head], top=top)
        for head, part in heads.items()
    }


def rank_classes(scores: Tensor, names: Sequence[str], *, top: int) -> Ranking:
    """The best of scores (K,) with their names; the lower index first on ties."""
    order = torch.argsort(scores, descending=True, stable=True)[:top]
    return [(names[i], float(scores[i])) for i in order.tolist()]
