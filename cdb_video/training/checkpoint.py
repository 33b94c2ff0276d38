"""Checkpoints: tensors in safetensors, the rest in JSON, a SHA-256 manifest written last.

A checkpoint is a folder `step-<n>`. It is written beside, flushed to the disk and renamed, so a
folder of that name is whole; the manifest finds what a disk or a copy damaged afterwards, which
neither torch nor safetensors does. No pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from cdb_video.errors import RunError

MANIFEST = "manifest.json"
BEST = "best.json"


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    training: Mapping[str, Any],
    texts: Mapping[str, str],
) -> Path:
    """Write `folder/step-<step>` and return its path.

    Args:
        folder: the run's `checkpoints` folder.
        step: optimiser steps done.
        model: the model's state dict.
        training: part -> state dict of everything else; nested dicts and lists of tensors and
            JSON values.
        texts: file name -> content of further files, such as the configuration.

    Raises:
        RunError: the disk is full or cannot be written; what was there before is untouched.

    """
    target = folder / f"step-{step}"
    beside = folder / f".step-{step}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        values = _without_tensors(training, "training", tensors)
        _save_tensors(beside / "model.safetensors", model)
        _save_tensors(beside / "training.safetensors", tensors)
        for name, text in {"training.json": json.dumps(values), **texts}.items():
            (beside / name).write_text(text, encoding="utf-8")
        _write_manifest(beside)
        if target.exists():  # the same step again, after a resume from before it
            shutil.rmtree(target)
        beside.rename(target)
        _sync(folder)
    # A full disk is an OSError in some writers and a RuntimeError in others.
    except (OSError, RuntimeError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(
            f"{target}: the checkpoint could not be written ({error}); "
            "earlier checkpoints are untouched"
        ) from error
    return target


def load_model(path: Path) -> dict[str, Tensor]:
    """The model's state dict of a checkpoint whose manifest holds.

    Raises:
        RunError: not a checkpoint, or damaged.

    """
    verify(path)
    return load_file(path / "model.safetensors")


def load_training(path: Path) -> dict[str, Any]:
    """The training state of a checkpoint, as it was given to `save_checkpoint`."""
    verify(path)
    tensors = load_file(path / "training.safetensors")
    values = json.loads((path / "training.json").read_text(encoding="utf-8"))
    state: dict[str, Any] = _with_tensors(values, tensors)
    return state


def verify(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        RunError: a file is missing or differs; the message names it.

    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if _sha256(path / name) != expected:
                raise RunError(f"{path / name}: damaged, its SHA-256 is not the manifest's")
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: not a whole checkpoint: {error}") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by step, the newest last; nothing is verified."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose manifest holds, and a line for each damaged one.

    Damaged ones are renamed to `damaged-<name>`, so that they are neither loaded nor counted.
    """
    lines: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except RunError as error:
            path.rename(path.with_name(f"damaged-{path.name}"))
            lines.append(f"{error}; set aside as damaged-{path.name}")
        else:
            return path, lines
    return None, lines


def save_best(folder: Path, best: Mapping[str, Any]) -> None:
    """Write `best.json`: {"checkpoint": "step-<n>", ...} with the figures that picked it."""
    beside = folder / f".{BEST}.tmp"
    beside.write_text(json.dumps(best, indent=1) + "\n")
    beside.replace(folder / BEST)


def load_best(folder: Path) -> dict[str, Any] | None:
    """What `save_best` wrote; None where nothing was selected yet."""
    path = folder / BEST
    if not path.exists():
        return None
    best: dict[str, Any] = json.loads(path.read_text())
    return best


def prune(folder: Path, *, keep_last: int) -> None:
    """Delete all checkpoints but the last `keep_last` and the best, and stale temporaries."""
    best = load_best(folder) or {}
    for path in checkpoints(folder)[:-keep_last]:
        if path.name != best.get("checkpoint"):
            shutil.rmtree(path)
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _write_manifest(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    manifest = {name: _sha256(folder / name) for name in names}
    for name in names:
        _sync(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    _sync(folder / MANIFEST)
    _sync(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; its tensors go to `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        # A list of pairs: the optimiser's keys are integers, and JSON knows text alone.
        items = [
            [key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()
        ]
        return {"items": items}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint holds tensors and JSON")


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _with_tensors(item, tensors) for key, item in value["items"]}
    return value


class CheckpointFolder:
    """Saves a run's checkpoints on rank 0.

    Args:
        path: the run's `checkpoints` folder.
        texts: file name -> content that every checkpoint carries, such as the configuration.
        keep_last: how many to keep, besides the best.

    """

    def __init__(self, path: Path, *, texts: Mapping[str, str], keep_last: int) -> None:
        self.path = path
        self.texts = texts
        self.keep_last = keep_last

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        training: Mapping[str, Any],
        best: Mapping[str, Any] | None,
    ) -> None:
        """Save a checkpoint; `best` names the best one so far and the figures that made it so."""
        save_checkpoint(self.path, step, model=model, training=training, texts=self.texts)
        if best is not None:
            save_best(self.path, best)
        prune(self.path, keep_last=self.keep_last)


class NoCheckpoints:
    """Saves nothing: every rank but 0."""

    def save(self, step: int, **state: Any) -> None:
        """Nothing."""
