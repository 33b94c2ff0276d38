"""The features of a run's splits."""

from __future__ import annotations

import dataclasses
import json

import torch

from cdb_video.build_data import build_evaluation_loader, read_role
from cdb_video.config import ViewsConfig
from cdb_video.datasets.annotations import Split
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.evaluation.features import Features, extract_features, load_features, save_features
from cdb_video.experiments.runs import LoadedRun
from cdb_video.precision import choose_precision
from cdb_video.training import checkpoint


def run_features(
    run: LoadedRun,
    split: Split,
    *,
    description: str = "extracting features",
    ranks: Ranks = ONE_PROCESS,
) -> Features:
    """A split's features by the run's model and views; every rank computes its part."""
    device = next(run.model.parameters()).device
    return extract_features(
        run.model,
        build_evaluation_loader(run.config, split, ranks=ranks),
        device=device,
        precision=choose_precision(run.config.train.precision, device),
        micro_batch_size=run.config.train.micro_batch_size,
        description=description,
        quiet=not ranks.is_main,
    )


def plain_features(run: LoadedRun, role: str) -> Features:
    """One middle clip under the centre crop of each video of train, val or test.

    They are kept in the run's folder, and taken from there when they are of the same weights, clips
    and videos.

    Raises:
        ConfigError: the run has no such split.
        DataError: the annotations, or the kept file, cannot be used.

    """
    split = read_role(run.config, role, vocabularies=run.vocabularies)
    path = run.folder / f"posthoc_features_{role}.npz"
    source = _source(run)
    if path.exists():
        kept, _ = load_features(path)
        if kept.source == source and _is_of(kept, split):
            return kept
    plain = run.config.model_copy(update={"views": ViewsConfig()})
    found = run_features(
        dataclasses.replace(run, config=plain), split, description=f"features of {role}"
    )
    found = dataclasses.replace(found, source=source)
    save_features(path, found, run.classes)
    return found


def _source(run: LoadedRun) -> str:
    """What plain features depend on besides the videos."""
    manifest = json.loads((run.checkpoint / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    device = next(run.model.parameters()).device
    about = {
        "weights": manifest["model.safetensors"],
        "clip": run.config.clip.model_dump(mode="json"),
        "precision": choose_precision(run.config.train.precision, device),
    }
    return json.dumps(about, sort_keys=True)


def _is_of(features: Features, split: Split) -> bool:
    return features.ids == tuple(record.id for record in split.records) and all(
        torch.equal(labels, split.labels(head)) for head, labels in features.labels.items()
    )
