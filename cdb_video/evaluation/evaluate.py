"""Score a split: average a video's views, count it once, over every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.clips.batch import Skipped
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.errors import DecodeError
from cdb_video.evaluation.full_forwards import score_batches
from cdb_video.evaluation.predictions import HeadPredictions, Predictions, metadata_of
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast, input_type
from cdb_video.progress import Progress


class EvaluationStoppedError(Exception):
    """An evaluation was ended, on every rank, as one of them was asked to."""


def to_the_end(videos_done: int) -> bool:
    """`keep_going` of an evaluation that nobody ends."""
    return True


@dataclass(frozen=True)
class EvalReport:
    """What an evaluation found; the same on every rank."""

    predictions: Predictions
    num_views: int
    skipped: tuple[tuple[str, str], ...] = ()
    """(id, reason) of the videos that do not decode, in the order of the split; the predictions
    do not have them."""
    counts: dict[str, ClassCounts] = field(init=False)
    """Head -> class counts: the source of every figure, and of CDB's difficulty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", self.predictions.counts)

    @property
    def loss(self) -> float:
        """Cross entropy of the video-level scores, summed over heads with a label; NaN without."""
        heads = self.predictions.heads.values()
        losses = [part.loss for part in heads if bool((part.labels >= 0).any())]
        return sum(losses) if losses else math.nan


def evaluate(
    model: Recognizer,
    loader: EvaluationLoader,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    description: str = "evaluating",
    quiet: bool = True,
    keep_going: Callable[[int], bool] = to_the_end,
) -> EvalReport:
    """Score every video of the loader's split, over all ranks of the process group.

    A video's score is the mean over its views of the softmax in fp32. Every rank scores its part;
    each video is in exactly one part, so the sum over ranks of zero-filled tables is the whole.

    Args:
        model: not wrapped in DDP; left in training mode if it was.
        loader: this rank's part of the split.
        device: where the model is.
        precision: of the forward pass.
        micro_batch_size: clips a forward, at most.
        description: what the progress bar says.
        quiet: show no progress bar.
        keep_going: asked with the number of videos that this rank has done, after each batch of
            the rank that has most of them, on all ranks; it has to say the same on all.

    Raises:
        DecodeError: naming a video that does not decode; or too many were skipped, or all.
        EvaluationStoppedError: it was not to keep going.

    """
    device = torch.device(device)
    records = loader.views.records
    scorer = ViewScorer(model, device=device, precision=precision)
    # A rank without a video keeps zeros, and still takes part in the sum.
    heads = {
        head: HeadPredictions(
            scores=torch.zeros(len(records), num_classes),
            view_scores=torch.zeros(
                len(records), loader.views.num_views, num_classes, dtype=torch.float16
            ),
            labels=torch.tensor([record.labels.get(head, UNLABELLED) for record in records]),
        )
        for head, num_classes in model.num_classes.items()
    }
    skipped: list[Skipped] = []
    asked = 0
    was_training = model.training
    model.eval()
    with Progress(description, total=len(loader.order.indices), unit="videos", quiet=quiet) as bar:
        for batch, scores in score_batches(loader, scorer, size=micro_batch_size, device=device):
            for head, view_scores in scores.items():
                heads[head].scores[batch.indices] = view_scores.mean(1)
                heads[head].view_scores[batch.indices] = view_scores.half()
            skipped += batch.skipped
            bar.advance(len(batch) + len(batch.skipped))
            asked += 1
            if not keep_going(int(bar.done)):
                model.train(was_training)
                raise EvaluationStoppedError
        # The others are still at it: an answer that ranks give one another is given by all.
        if not all(keep_going(int(bar.done)) for _ in range(asked, loader.order.most_batches)):
            model.train(was_training)
            raise EvaluationStoppedError
    model.train(was_training)
    for part in heads.values():
        distributed.all_reduce(part.scores)
        distributed.all_reduce(part.view_scores)
    reasons = gather_skipped(loader, skipped)
    kept = [i for i in range(len(records)) if i not in reasons]
    records = [records[i] for i in kept]
    return EvalReport(
        Predictions(
            tuple(record.id for record in records),
            {head: _rows(part, kept) for head, part in heads.items()} if reasons else heads,
            metadata=metadata_of(records),
        ),
        num_views=loader.views.num_views,
        skipped=tuple((loader.views.records[i].id, why) for i, why in reasons.items()),
    )


def gather_skipped(loader: EvaluationLoader, skipped: Sequence[Skipped]) -> dict[int, str]:
    """Index -> reason of what every rank left out of a pass over its part, by index.

    Raises:
        DecodeError: more than may be, or every video of the split.

    """
    noted = {one.index: one.message for one in skipped}
    found = dict(
        sorted(pair for part in distributed.gather_objects(noted) for pair in part.items())
    )
    records = loader.views.records
    loader.policy.check({records[i].id: reason for i, reason in found.items()})
    if found and len(found) == len(records):
        raise DecodeError(
            f"none of the split's {len(records)} videos decodes; the first is {found[min(found)]}"
        )
    return found


def _rows(part: HeadPredictions, kept: list[int]) -> HeadPredictions:
    return HeadPredictions(part.scores[kept], part.view_scores[kept], part.labels[kept])


class ViewScorer:
    """Clips (n, C, T, H, W) uint8 on the device -> {head: (n, K) fp32 probabilities} there."""

    def __init__(self, model: Recognizer, *, device: torch.device, precision: Precision) -> None:
        self.model = model
        self.to_input = ToModelInput(*model.normalization, dtype=input_type(precision)).to(device)
        self.autocast: AbstractContextManager[None] = autocast(device, precision)

    @torch.inference_mode()
    def __call__(self, clips: Tensor, to_rgb: Tensor | None) -> dict[str, Tensor]:
        """`to_rgb` (n, 3, 4) is that of clips of YUV planes."""
        inputs = self.to_input(clips, to_rgb=to_rgb)
        with self.autocast:
            logits = self.model(inputs)
        return {head: values.float().softmax(1) for head, values in logits.items()}
