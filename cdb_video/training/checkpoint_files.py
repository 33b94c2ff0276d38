"""The files of a checkpoint: tensors in safetensors, the rest in JSON, a SHA-256 manifest last.

It is a folder `step-<n>`, written beside, flushed to the disk and renamed, so that a folder of that
name is whole. No pickle is read or written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.files import free_space, sync
from cdb_video.training.manifest import MANIFEST, verify, write_manifest
from cdb_video.training.tensor_tree import put_tensors, take_tensors

MODEL = "model.safetensors"
TRAINING = ("training.json", "training.safetensors")
REPLACED = ".old"
"""Behind the name of a checkpoint while one of the same step takes its place."""


@dataclass(frozen=True)
class Content:
    """Of a checkpoint, in memory of its own: what training does meanwhile does not change it."""

    tensors: dict[str, dict[str, Tensor]]
    """File name -> tensors."""
    texts: dict[str, str]
    """File name -> text."""

    @classmethod
    def copy_of(
        cls, model: Mapping[str, Tensor], training: Mapping[str, Any], texts: Mapping[str, str]
    ) -> Content:
        """The content of a checkpoint; see `save_checkpoint`."""
        state: dict[str, Tensor] = {}
        values = take_tensors(training, "training", state)
        tensors = {MODEL: _copied(model), "training.safetensors": _copied(state)}
        return cls(tensors, {"training.json": json.dumps(values), **texts})

    @property
    def num_bytes(self) -> int:
        """What it takes on the disk, but for headers and the manifest."""
        tensors = sum(t.nbytes for part in self.tensors.values() for t in part.values())
        return tensors + sum(len(text.encode()) for text in self.texts.values())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    form = torch.contiguous_format  # the only one that a safetensors file knows
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=form)
        for name, tensor in tensors.items()
    }


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    training: Mapping[str, Any],
    texts: Mapping[str, str],
) -> Path:
    """Write `folder/step-<step>` and return its path, when it is on the disk.

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
    return write_checkpoint(folder, step, Content.copy_of(model, training, texts))


def write_checkpoint(folder: Path, step: int, content: Content) -> Path:
    """Write `folder/step-<step>`; see `save_checkpoint`."""
    target, beside = folder / f"step-{step}", folder / f".step-{step}.tmp"
    doing = beside
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, tensors in content.tensors.items():
            doing = beside / name
            save_file(tensors, doing)
            sync(doing)
        for name, text in content.texts.items():
            doing = beside / name
            doing.write_text(text, encoding="utf-8")
            sync(doing)
        doing = beside / MANIFEST
        write_manifest(beside)
        doing = target
        _put_in_place(beside, target)
    # A full disk is an OSError of Python's and a SafetensorError of the library's.
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"{target}: {doing.name} could not be written ({reason}); the checkpoint needs "
            f"{content.num_bytes / 1e6:.1f} MB, {free_space(folder)} free; earlier checkpoints are "
            "untouched"
        ) from error
    finally:  # also of what is no matter of the disk, such as Ctrl-C
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _put_in_place(beside: Path, target: Path) -> None:
    """Rename; one of the same step gives way in two moves, and is whole under one of its names."""
    old = target.with_name(target.name + REPLACED)
    if target.exists():
        remove_checkpoint(old)
        target.rename(old)
    beside.rename(target)
    sync(target.parent)
    remove_checkpoint(old)


def remove_checkpoint(path: Path) -> list[str]:
    """Delete a checkpoint, which is never half there under its name; a line if it cannot be."""
    if not path.exists():
        return []
    try:
        return delete(path.rename(path.with_name(f".{path.name}.removed")))
    except OSError as error:
        return [f"{path}: could not be deleted ({error.strerror})"]


def delete(path: Path) -> list[str]:
    """Delete a file or folder; a line if it cannot be."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        return [f"{path}: could not be deleted ({error.strerror})"]
    return []


def load_model(path: Path) -> dict[str, Tensor]:
    """The model's state dict, of a checkpoint whose manifest holds but for the training state.

    Raises:
        RunError: not a checkpoint, or damaged.

    """
    verify(path, without=TRAINING)
    return _load_tensors(path / MODEL)


def load_training(path: Path) -> dict[str, Any]:
    """The training state of a checkpoint, as it was given to `save_checkpoint`.

    Raises:
        RunError: not a checkpoint, or its training state is damaged.

    """
    verify(path, only=TRAINING)
    tensors = _load_tensors(path / "training.safetensors")
    try:
        values = json.loads((path / "training.json").read_text(encoding="utf-8"))
        state: dict[str, Any] = put_tensors(values, tensors)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(f"{path / 'training.json'}: not a training state of ours: {error}") from None
    return state


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
