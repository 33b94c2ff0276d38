"""What the heads of a model see of every video of a split; kept as one .npz without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.clips.batch import Batch, Skipped
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.errors import RunError
from cdb_video.evaluation.evaluate import gather_skipped
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    class_arrays,
    classes_of,
    heads_of,
    load_arrays,
    metadata_of,
    save_arrays,
)
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast, input_type
from cdb_video.progress import Progress

VIDEOS_AT_ONCE = 256
"""How many videos' features are scored at once: logits (256, V, K) take little memory."""


@dataclass(frozen=True)
class Features:
    """The features of M videos, in the order of their split: what the backbone gives."""

    ids: tuple[str, ...]
    features: Tensor
    """(M, D), the mean over a video's views; or (M, V, D), of each view. Before dropout."""
    labels: Mapping[str, Tensor]
    """Head -> (M,) int64, -1 where unlabelled."""
    source: str = ""
    """What they were made with, for whoever keeps them; any text."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(id, reason) of the videos of the split that do not decode."""
    recordings: tuple[str, ...] = ()
    """(M,), for folds that keep a recording together; empty: not known."""
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> a value a video; empty where it has none."""

    def __post_init__(self) -> None:
        sizes = {len(self.ids), len(self.features), *map(len, self.labels.values())}
        if self.features.ndim not in (2, 3) or len(sizes) != 1:
            raise ValueError(
                f"features must be (M, D) or (M, V, D), got {tuple(self.features.shape)}; "
                f"ids, features and labels must not differ in length: {sizes}"
            )

    def __len__(self) -> int:
        return len(self.ids)


def extract_features(
    model: Recognizer,
    loader: EvaluationLoader,
    *,
    device: torch.device | str,
    by_view: bool = False,
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    description: str = "extracting features",
    quiet: bool = True,
) -> Features:
    """The features of every video of the loader's split, the same on every rank.

    As `evaluate` does: every rank computes its part, unpadded, and the sum over ranks of
    zero-filled tables is the whole. The labels are those of the model's heads. Videos that are
    skipped have no row.

    Args:
        model: not wrapped in DDP; left in training mode if it was.
        loader: this rank's part of the split.
        device: where the model is.
        by_view: (M, V, D), which `score_features` takes, in place of the mean over views (M, D).
        precision: of the forward pass.
        micro_batch_size: clips a forward, at most.
        description: what the progress bar says.
        quiet: show no progress bar.

    """
    device = torch.device(device)
    records = loader.views.records
    views = (loader.views.num_views,) if by_view else ()
    features = torch.zeros(len(records), *views, model.backbone.num_features)
    to_input = ToModelInput(*model.normalization, dtype=input_type(precision)).to(device)
    skipped: list[Skipped] = []
    was_training = model.training
    model.eval()
    with Progress(description, total=len(loader.order.indices), unit="videos", quiet=quiet) as bar:
        for batch in loader:
            if len(batch):
                with autocast(device, precision):
                    found = _view_features(model, batch, to_input, micro_batch_size)
                features[batch.indices] = (found if by_view else found.mean(1)).cpu()
            skipped += batch.skipped
            bar.advance(len(batch) + len(batch.skipped))
    model.train(was_training)
    distributed.all_reduce(features)
    reasons = gather_skipped(loader, skipped)
    if reasons:
        kept = [i for i in range(len(records)) if i not in reasons]
        records, features = [records[i] for i in kept], features[kept]
    return Features(
        ids=tuple(record.id for record in records),
        features=features,
        labels={
            head: torch.tensor([record.labels.get(head, UNLABELLED) for record in records])
            for head in model.num_classes
        },
        skipped=tuple((loader.views.records[i].id, why) for i, why in reasons.items()),
        recordings=tuple(record.recording for record in records),
        metadata=metadata_of(records),
    )


def _view_features(
    model: Recognizer, batch: Batch, to_input: ToModelInput, micro_batch_size: int
) -> Tensor:
    """(B, V, D) fp32."""
    return see_views(model.features, batch, to_input, micro_batch_size)


@torch.inference_mode()
def see_views(
    see: Callable[[Tensor], Tensor], batch: Batch, to_input: ToModelInput, micro_batch_size: int
) -> Tensor:
    """What a function of clips (N, C, T, H, W) -> (N, ...) gives of each view: (B, V, ...) fp32."""
    parts = [
        see(to_input(clips, to_rgb=to_rgb)).float()
        for clips, to_rgb in batch.to(to_input.scale.device).views(micro_batch_size)
    ]
    views = torch.cat(parts)
    return views.reshape(*batch.clips.shape[:2], *views.shape[1:])


@torch.no_grad()
def score_features(
    model: Recognizer, features: Features, *, precision: Precision = "fp32"
) -> Predictions:
    """What `evaluate` says of the videos, by the model's heads alone.

    As there, a video's score is the mean over its views of the softmax in fp32; sums in another
    order move the last bits.

    Args:
        model: in evaluation mode, on its device.
        features: (M, V, D), by its backbone.
        precision: of the heads.

    """
    device = next(model.parameters()).device
    heads = {}
    for head, module in model.heads.items():
        parts = []
        for views in features.features.split(VIDEOS_AT_ONCE):
            with autocast(device, precision):
                logits = module(views.flatten(0, 1).to(device))
            parts.append(logits.float().softmax(1).cpu().unflatten(0, views.shape[:2]))
        scores = torch.cat(parts)
        heads[head] = HeadPredictions(scores.mean(1), scores.half(), features.labels[head])
    return Predictions(features.ids, heads, about={"skipped": features.skipped})


def save_features(
    path: Path, features: Features, classes: Mapping[str, HeadClasses], *, half: bool = False
) -> None:
    """Write them with the names and training counts of the heads' classes.

    A file of that name is replaced in one move.

    Args:
        path: an .npz.
        features: of a split.
        classes: of the heads that have labels.
        half: as fp16: half of the space, and 3 to 4 digits of each number.

    Raises:
        RunError: features beyond fp16's range.

    """
    values = to_half(features.features, path) if half else features.features
    save_arrays(
        path,
        {"features": values.numpy()} | describing_arrays(features, classes),
        compress=False,  # features hardly compress
    )


def describing_arrays(
    features: Features, classes: Mapping[str, HeadClasses]
) -> dict[str, np.ndarray]:
    """All that a features file holds but the features."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(features.ids, dtype=np.str_),
        "source": np.array(features.source, dtype=np.str_),
        "skipped": np.array(json.dumps(features.skipped), dtype=np.str_),
    }
    if features.recordings:
        arrays["recordings"] = np.array(features.recordings, dtype=np.str_)
    for column, values in features.metadata.items():
        arrays[f"metadata_{column}"] = np.array(values, dtype=np.str_)
    for head, labels in features.labels.items():
        arrays[f"labels_{head}"] = labels.numpy()
    return arrays | class_arrays(classes, features.labels)


def to_half(values: Tensor, path: Path) -> Tensor:
    """The values as fp16.

    Raises:
        RunError: some are beyond its range, or not finite.

    """
    halves = values.half()
    if not bool(halves.isfinite().all()):
        raise RunError(
            f"{path}: a feature is {float(values.abs().max()):g}; fp16 holds up to 65504"
        )
    return halves


def load_features(path: Path) -> tuple[Features, dict[str, HeadClasses]]:
    """The features and classes of a file that `save_features` wrote.

    Raises:
        DataError: not such a file.

    """
    with load_arrays(path, kind="features") as arrays:
        heads = heads_of(arrays, "labels_")
        features = Features(
            ids=tuple(arrays["ids"].tolist()),
            features=torch.from_numpy(arrays["features"]),
            labels={head: torch.from_numpy(arrays[f"labels_{head}"]) for head in heads},
            source=str(arrays.get("source", "")),
            skipped=tuple((id_, why) for id_, why in json.loads(str(arrays.get("skipped", "[]")))),
            recordings=tuple(arrays["recordings"].tolist() if "recordings" in arrays else ()),
            metadata={
                name.removeprefix("metadata_"): tuple(values.tolist())
                for name, values in arrays.items()
                if name.startswith("metadata_")
            },
        )
        return features, classes_of(arrays, heads)
