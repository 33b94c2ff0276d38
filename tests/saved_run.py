"""A run's folder without the training: random weights whose scores are far from even."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdb_video.build import build_model
from cdb_video.config_file import dump_config
from cdb_video.training.checkpoint import save_checkpoint
from tests.tiny import tiny_config

CLASSES = {"verb": ["close", "open"], "noun": ["bowl", "cup", "pot"]}


def save_run(output: Path, **sections: dict[str, Any]) -> Path:
    """`output/tiny` with one checkpoint; `sections` are merged over `tiny_values`."""
    config = tiny_config(output / "data", output, **sections)
    torch.manual_seed(0)
    model = build_model(
        config.model,
        num_classes={head: len(names) for head, names in CLASSES.items()},
        num_frames=config.clip.num_frames,
        crop_size=config.clip.crop_size,
    )
    use_odd_statistics(model)
    for head in model.heads.values():
        nn.init.normal_(head.weight, std=1.0)  # type: ignore[arg-type]
    known = {
        head: {"names": names, "train_counts": [1] * len(names)} for head, names in CLASSES.items()
    }
    about = {"classes": known, "normalization": model.normalization._asdict()}
    texts = {"config.yaml": dump_config(config), "model.json": json.dumps(about)}
    folder = output / "tiny"
    save_checkpoint(folder / "checkpoints", 1, model=model.state_dict(), training={}, texts=texts)
    return folder


def use_odd_statistics(model: nn.Module) -> None:
    """Batch norms as after training, so that one that is left in training mode shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
