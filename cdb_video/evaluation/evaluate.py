"""Score a split: average a video's views, count it once, over every rank."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.clips.batch import Batch
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.evaluation.predictions import HeadPredictions, Predictions
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast
from cdb_video.progress import Progress


@dataclass(frozen=True)
class EvalReport:
    """What an evaluation found; the same on every rank."""

    predictions: Predictions
    num_views: int
    counts: dict[str, ClassCounts] = field(init=False)
    """Head -> class counts: the source of every figure, and of CDB's difficulty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", self.predictions.counts)

    @property
    def loss(self) -> float:
        """Cross entropy of the video-level scores, summed over heads."""
        return sum(part.loss for part in self.predictions.heads.values())


def evaluate(
    model: Recognizer,
    loader: EvaluationLoader,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    description: str = "evaluating",
    quiet: bool = True,
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

    """
    device = torch.device(device)
    records = loader.views.records
    scorer = _Scorer(model, device=device, precision=precision, micro_batch_size=micro_batch_size)
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
    was_training = model.training
    model.eval()
    with Progress(description, total=len(loader.order.indices), unit="videos", quiet=quiet) as bar:
        for batch in loader:
            for head, view_scores in scorer(batch).items():
                heads[head].scores[batch.indices] = view_scores.mean(1)
                heads[head].view_scores[batch.indices] = view_scores.half()
            bar.advance(len(batch))
    model.train(was_training)
    for part in heads.values():
        distributed.all_reduce(part.scores)
        distributed.all_reduce(part.view_scores)
    predictions = Predictions(tuple(record.id for record in records), heads)
    return EvalReport(predictions, num_views=loader.views.num_views)


class _Scorer:
    """Batch -> {head: (B, V, K) fp32 probabilities on the CPU}."""

    def __init__(
        self,
        model: Recognizer,
        *,
        device: torch.device,
        precision: Precision,
        micro_batch_size: int,
    ) -> None:
        self.model = model
        self.device = device
        self.to_input = ToModelInput(*model.normalization).to(device)
        self.autocast: AbstractContextManager[None] = autocast(device, precision)
        self.micro_batch_size = micro_batch_size

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        num_videos, num_views = batch.clips.shape[:2]
        parts: dict[str, list[Tensor]] = {}
        for clips in batch.clips.flatten(0, 1).split(self.micro_batch_size):
            with self.autocast:
                logits = self.model(self.to_input(clips.to(self.device, non_blocking=True)))
            for head, values in logits.items():
                parts.setdefault(head, []).append(values.float().softmax(1))
        return {
            head: torch.cat(scores).reshape(num_videos, num_views, -1).cpu()
            for head, scores in parts.items()
        }
