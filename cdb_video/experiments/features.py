"""What a run's model sees and says of its splits; taken from the run's folder where it is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cdb_video.build_clips import build_evaluation_loader
from cdb_video.build_weights import name_weights
from cdb_video.config import ViewsConfig
from cdb_video.datasets.annotations import Split
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import ConfigError
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.evaluation.features import (
    Features,
    extract_features,
    load_features,
    save_features,
    score_features,
)
from cdb_video.evaluation.predictions import Predictions, load_predictions
from cdb_video.evaluation.token_files import save_tokens, shards_of
from cdb_video.models.recognizer import Recognizer
from cdb_video.training import checkpoint

if TYPE_CHECKING:  # runs stamps its scores with `source_of`
    from cdb_video.experiments.runs import LoadedRun


def source_of(run: LoadedRun) -> str:
    """What a run's features and scores depend on besides the videos.

    The precision is the configuration's: what one machine made with `auto` serves another one.
    """
    about = {
        "weights": _weights_of(run),
        # Of a model of the hub.
        "commit": getattr(run.model.backbone, "architecture", {}).get("commit"),
        "clip": run.config.clip.model_dump(mode="json"),
        "views": run.config.views.model_dump(mode="json"),
        "decoder": run.config.data.decoder,
        "pixels": run.config.data.pixels,
        "precision": run.config.train.precision,
    }
    return json.dumps(about, sort_keys=True)


def _weights_of(run: LoadedRun) -> str:
    """What tells weights apart: of a checkpoint its SHA-256, of a recipe where they come from."""
    manifest = run.checkpoint / checkpoint.MANIFEST
    if not manifest.exists():
        return name_weights(run.config.model)
    found: str = json.loads(manifest.read_text(encoding="utf-8"))["model.safetensors"]
    return found


def _is_on_features(run: LoadedRun) -> bool:
    return run.config.data.format == "features"


def _source_of_features(run: LoadedRun) -> str:
    """`source_of`; of features that the run was given, what its files said."""
    if not _is_on_features(run):
        return source_of(run)
    known = getattr(run.model.backbone, "architecture", {})
    return json.dumps(known.get("source", {}), sort_keys=True)


def write_features(
    run: LoadedRun, split: Split, path: Path, *, tokens: bool = False, ranks: Ranks = ONE_PROCESS
) -> None:
    """Write what the run's backbone sees of every view of a split: `data.format=features` reads it.

    Pooled features (M, V, D), or tokens (M, V, L, D) in files of their own; fp16.

    Raises:
        ConfigError: tokens of a backbone that has none, or the file that a run on features reads.
        RunError: features beyond fp16's range.
    """
    if path.resolve() in {there.resolve() for there in {record.path for record in split.records}}:
        raise ConfigError(f"--features {path}: the run reads this file; give another place")
    description = f"features of {split.name}"
    if tokens:
        save_tokens(
            path,
            run.model,
            build_evaluation_loader(run.config, split, ranks=ranks),
            run.classes,
            device=next(run.model.parameters()).device,
            ranks=ranks,
            source=_source_of_features(run),
            precision=run.precision,
            micro_batch_size=run.config.train.micro_batch_size,
            description=description,
        )
        return
    found = run_features(run, split, by_view=True, description=description, ranks=ranks)
    if ranks.is_main:
        named = dataclasses.replace(found, source=_source_of_features(run))
        save_features(path, named, run.classes, half=True)
        for shard in shards_of(path):  # of tokens, which the file names no more
            shard.unlink()


def run_features(
    run: LoadedRun,
    split: Split,
    *,
    by_view: bool = False,
    description: str = "extracting features",
    ranks: Ranks = ONE_PROCESS,
) -> Features:
    """A split's features by the run's model and views; every rank computes its part."""
    return extract_features(
        run.model,
        build_evaluation_loader(run.config, split, ranks=ranks),
        device=next(run.model.parameters()).device,
        by_view=by_view,
        precision=run.precision,
        micro_batch_size=run.config.train.micro_batch_size,
        description=description,
        quiet=not ranks.is_main,
    )


def view_features(run: LoadedRun, split: Split, role: str) -> Features:
    """The features (M, V, D) of train, val or test, by the run's views.

    They are kept in the run's folder, and taken from there when they are of the same weights,
    clips, views and videos. 4 M V D bytes: 0.6 GB for EGTEA's 2,022 test clips under 30 views by
    SlowFast. Of a run on saved features there is no second copy: to read them is all it takes.

    Raises:
        DataError: the kept file cannot be used.

    """
    if _is_on_features(run):
        return run_features(run, split, by_view=True, description=f"features of {role}")
    views = run.config.views
    path = run.folder / f"posthoc_features_{role}_{views.num_clips}x{views.num_crops}.npz"
    source = source_of(run)
    if path.exists():
        kept, _ = load_features(path)
        if kept.source == source and _is_of(kept, split):
            return kept
    found = run_features(run, split, by_view=True, description=f"features of {role}")
    found = dataclasses.replace(found, source=source)
    save_features(path, found, run.classes)
    return found


def plain_features(run: LoadedRun, role: str) -> Features:
    """One middle clip under the centre crop of each video of train, val or test: (M, D).

    Raises:
        ConfigError: the run has no such split.
        DataError: the annotations, or the kept file, cannot be used.

    """
    split = run.read_split(role)
    plain = run.config.model_copy(update={"views": ViewsConfig()})
    found = view_features(dataclasses.replace(run, config=plain), split, role)
    # One view, but of a run on saved features as many as there are.
    return dataclasses.replace(found, features=found.features.mean(1))


def scores_of(run: LoadedRun, model: Recognizer, features: Features) -> Predictions:
    """What a model of the run's backbone says of the run's features."""
    return score_features(model, features, precision=run.precision)


def run_predictions(run: LoadedRun, split: Split, role: str) -> Predictions:
    """The run's own predictions of train, val or test.

    Those that evaluation left in the run's folder, when they are of the same weights, clips, views
    and videos; else by the features of every view, and always so of a run on saved features, whose
    files may have changed.

    Raises:
        DataError: a kept file cannot be used.

    """
    path = run.folder / f"predictions_{role}.npz"
    source = source_of(run)
    if path.exists() and not _is_on_features(run):
        kept, _ = load_predictions(path)
        if kept.source == source and _is_of(kept, split):
            return kept
    if run.model.sees_tokens:  # which are too many to be kept
        found = evaluate(
            run.model,
            build_evaluation_loader(run.config, split, ranks=ONE_PROCESS),
            device=next(run.model.parameters()).device,
            precision=run.precision,
            micro_batch_size=run.config.train.micro_batch_size,
        ).predictions
    else:
        found = scores_of(run, run.model, view_features(run, split, role))
    return dataclasses.replace(found, source=source)


def asked_subsets(run: LoadedRun, split: Split, role: str) -> dict[str, list[str]]:
    """Name -> ids of the subsets that the split was last evaluated with; empty of another split."""
    path = run.folder / f"predictions_{role}.npz"
    if not path.exists():
        return {}
    about = load_predictions(path)[0].about
    found: dict[str, list[str]] = about.get("subsets", {})
    return found if about.get("annotation_split") == split.name else {}


def _is_of(kept: Features | Predictions, split: Split) -> bool:
    """Whether they have every video of the split, but for those that they say they skipped."""
    skipped = {id_ for id_, _ in kept.skipped}
    there = [i for i, record in enumerate(split.records) if record.id not in skipped]
    return kept.ids == tuple(split.records[i].id for i in there) and all(
        torch.equal(labels, split.labels(head)[there]) for head, labels in kept.labels.items()
    )
