"""A finished run as one file for deployment, which says what it is and how to feed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdb_video.errors import RunError
from cdb_video.evaluation.export import check_target, export_model
from cdb_video.experiments.runs import LoadedRun, load_run
from cdb_video.training.run_folder import versions


def export_run(run: str | Path, path: Path) -> tuple[LoadedRun, float]:
    """Write the run's best model to `path`: the run, and the largest difference of a score.

    Args:
        run: a run's folder, or one checkpoint in it.
        path: an .onnx or .pt2; a file of that name is replaced in one move.

    Raises:
        ConfigError: another suffix, or packages that are not installed.
        RunError: no such run, or a file that cannot be written or does not give its scores.

    """
    check_target(path)
    loaded = load_run(run)
    if loaded.config.data.format == "features":
        raise RunError(f"{run}: its heads were trained on saved features, and take no clips")
    clip = loaded.config.clip
    difference = export_model(
        loaded.model,
        path,
        num_frames=clip.num_frames,
        crop_size=clip.crop_size,
        about=describe_run(loaded),
    )
    return loaded, difference


def describe_run(run: LoadedRun) -> dict[str, Any]:
    """What an exported file says of itself, in the words of the configuration."""
    config = run.config
    return {
        "run": config.run.name or run.folder.name,
        "checkpoint": run.checkpoint.name,
        "backbone": config.model.backbone,
        "classes": run.class_names,
        "clip": config.clip.model_dump(mode="json"),
        "views": config.views.model_dump(mode="json"),
        # Applied by the file itself; for the record.
        "normalization": run.model.normalization._asdict(),
        "versions": versions(),
    }
