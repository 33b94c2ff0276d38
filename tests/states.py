"""The whole state of a training, as a checkpoint has it, compared bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cdb_video.training.checkpoint import load_model, load_training
from cdb_video.training.state import join_state


def state_at(run: Path, step: int) -> dict[str, Any]:
    """Part -> its state, of a run's checkpoint."""
    path = run / "checkpoints" / f"step-{step}"
    return join_state(load_model(path), load_training(path))


def differences(mine: Any, theirs: Any, name: str = "state") -> list[str]:
    """Where two states differ: in the bits of a tensor, its type or shape, a value, a name."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape) and torch.equal(
            *(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (mine, theirs))
        )
        return [] if same else [name]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = [key for key in {**mine, **theirs} if (key in mine) != (key in theirs)]
        pairs = [(mine[key], theirs[key], f"{name}.{key}") for key in mine if key in theirs]
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        names = []
        pairs = [(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(zip(mine, theirs, strict=True))]
    else:
        return [] if mine == theirs else [name]
    return [f"{name}.{key}" for key in names] + [
        line for a, b, part in pairs for line in differences(a, b, part)
    ]


def lines_of(run: Path) -> list[tuple[Any, ...]]:
    """What stands in metrics.jsonl of the training, without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Checkpoints come onto the disk when they do, beside the training.
    lines = [line for line in lines if line["event"] not in ("save", "resume")]
    kept = ("event", "epoch", "step", "loss", "id", "clips", "selection")
    return [tuple(line.get(name) for name in kept) for line in lines]
