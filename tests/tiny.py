"""A configuration that trains in seconds on the `tiny_data` fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdb_video.config import Config
from cdb_video.config_file import parse_config


def tiny_values(root: Path, output: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Nested values of the configuration; `sections` are merged over them."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "output_dir": str(output), "trackers": []},
        "data": {"root": str(root), "num_workers": 0},
        "clip": {"num_frames": 4, "stride": 1, "crop_size": 16, "short_side": 16},
        "augment": {"crop": "jitter", "scale": [1.0, 1.0]},
        "model": {"backbone": "r3d_10", "dropout": 0.0},
        "loss": {"name": "cdb"},
        "optim": {"name": "adamw", "lr": 0.003},
        "train": {"epochs": 2, "global_batch_size": 6, "micro_batch_size": 6, "device": "cpu"},
    }
    for name, section in sections.items():
        values[name] |= section
    return values


def tiny_config(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    """The configuration of `tiny_values`."""
    return parse_config(tiny_values(root, output, **sections), source="tiny")
