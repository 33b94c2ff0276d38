"""What the heads of a model see of every video of a split; kept as one .npz without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.clips.batch import Batch
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.errors import DataError
from cdb_video.evaluation.predictions import _NOT_SUCH_A_FILE, HeadClasses
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast
from cdb_video.progress import Progress


@dataclass(frozen=True)
class Features:
    """The features of M videos, in the order of their split."""

    ids: tuple[str, ...]
    features: Tensor
    """(M, D) fp32: the mean over a video's views of the backbone's output, before dropout."""
    labels: Mapping[str, Tensor]
    """Head -> (M,) int64, -1 where unlabelled."""
    source: str = ""
    """What they were made with, for whoever keeps them; any text."""

    def __post_init__(self) -> None:
        sizes = {len(self.ids), len(self.features), *map(len, self.labels.values())}
        if self.features.ndim != 2 or len(sizes) != 1:
            raise ValueError(f"ids, features (M, D) and labels differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.ids)


def extract_features(
    model: Recognizer,
    loader: EvaluationLoader,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    description: str = "extracting features",
    quiet: bool = True,
) -> Features:
    """The features of every video of the loader's split, the same on every rank.

    As `evaluate` does: every rank computes its part, unpadded, and the sum over ranks of
    zero-filled tables is the whole. The labels are those of the model's heads.

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
    features = torch.zeros(len(records), model.backbone.num_features)
    to_input = ToModelInput(*model.normalization).to(device)
    was_training = model.training
    model.eval()
    with Progress(description, total=len(loader.order.indices), unit="videos", quiet=quiet) as bar:
        for batch in loader:
            with autocast(device, precision):
                features[batch.indices] = _video_features(model, batch, to_input, micro_batch_size)
            bar.advance(len(batch))
    model.train(was_training)
    return Features(
        ids=tuple(record.id for record in records),
        features=distributed.all_reduce(features),
        labels={
            head: torch.tensor([record.labels.get(head, UNLABELLED) for record in records])
            for head in model.num_classes
        },
    )


@torch.inference_mode()
def _video_features(
    model: Recognizer, batch: Batch, to_input: ToModelInput, micro_batch_size: int
) -> Tensor:
    """(B, D) fp32 on the CPU."""
    device = to_input.mean.device
    parts = [
        model.features(to_input(clips.to(device, non_blocking=True))).float()
        for clips in batch.clips.flatten(0, 1).split(micro_batch_size)
    ]
    features = torch.cat(parts).reshape(*batch.clips.shape[:2], -1)
    return features.mean(1).cpu()


def save_features(path: Path, features: Features, classes: Mapping[str, HeadClasses]) -> None:
    """Write them with the names and training counts of the heads' classes.

    A file of that name is replaced in one move.
    """
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(features.ids, dtype=np.str_),
        "features": features.features.numpy(),
        "source": np.array(features.source, dtype=np.str_),
    }
    for head, labels in features.labels.items():
        arrays[f"labels_{head}"] = labels.numpy()
        arrays[f"class_names_{head}"] = np.array(classes[head].names, dtype=np.str_)
        arrays[f"train_counts_{head}"] = classes[head].train_counts.numpy()
    beside = path.with_name(f"{path.stem}.tmp{os.getpid()}.npz")
    np.savez(beside, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the options for arrays
    beside.replace(path)


def load_features(path: Path) -> tuple[Features, dict[str, HeadClasses]]:
    """The features and classes of a file that `save_features` wrote.

    Raises:
        DataError: not such a file.

    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        heads = [name.removeprefix("labels_") for name in arrays if name.startswith("labels_")]
        if not heads:
            raise ValueError("it has no labels")
        features = Features(
            ids=tuple(arrays["ids"].tolist()),
            features=torch.from_numpy(arrays["features"]),
            labels={head: torch.from_numpy(arrays[f"labels_{head}"]) for head in heads},
            source=str(arrays.get("source", "")),
        )
        classes = {
            head: HeadClasses(
                names=tuple(arrays[f"class_names_{head}"].tolist()),
                train_counts=torch.from_numpy(arrays[f"train_counts_{head}"]),
            )
            for head in heads
        }
    except _NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not a features file: {error}") from None
    return features, classes
