"""The weights that a model starts from: its own, a file's, or heads on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cdb_video.config import Config, ModelConfig
from cdb_video.errors import WeightsError
from cdb_video.models.base import Normalization
from cdb_video.models.from_transformers import PREFIX as HUB
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.weights import WeightsReport, load_heads, load_pretrained


def load_own_weights(model: Recognizer, config: Config, *, quiet: bool) -> None:
    """Fill an `hf:` model with its own weights, and say what was loaded.

    Raises:
        UserError: no such model, or weights that do not load.

    """
    loaded = load_pretrained(
        model,
        config.model.backbone.removeprefix(HUB),
        num_frames=config.clip.num_frames,
        crop_size=config.clip.crop_size,
    )
    if not quiet:
        print_loaded(model, loaded)


def print_loaded(model: Recognizer, loaded: WeightsReport) -> None:
    """What was loaded, and a line where the clip is another than the one weights were made for."""
    note = getattr(model.backbone, "clip_note", None)
    print("\n".join([*loaded.summary(), *([note] if note else [])]))


def put_heads_back(model: Recognizer, config: Config, path: Path, *, quiet: bool) -> None:
    """Fill an `hf:` model with its own weights, and its heads from a run on its saved features.

    Raises:
        WeightsError: heads of another model's features, or that do not fit.

    """
    _refuse_heads_of_others(path, config.model)
    load_own_weights(model, config, quiet=quiet)
    heads = load_heads(model, path)
    if not quiet:
        print(f"{path}: heads {', '.join(heads)} loaded")


def holds_heads_alone(path: Path) -> bool:
    """Whether it is a checkpoint of a run on saved features."""
    return (path / "model.json").exists() and "num_features" in (read_architecture(path) or {})


def _refuse_heads_of_others(path: Path, config: ModelConfig) -> None:
    """Heads on features that another backbone made, or nobody can make again."""
    if not config.backbone.startswith(HUB):
        raise WeightsError(
            f"{path}: has heads alone, of a run on saved features; they go back onto an hf: model, "
            f"which has weights of its own, got model.backbone={config.backbone}"
        )
    source = (read_architecture(path) or {}).get("source", {})
    own = name_weights(config.model_copy(update={"weights": None}))
    if source.get("weights", own) != own and not config.allow_partial_weights:
        raise WeightsError(
            f"{path}: its heads learned from features of {source['weights']!r}, those of this "
            f"recipe are of {own!r}; model.allow_partial_weights=true takes the heads all the same"
        )


def name_weights(config: ModelConfig) -> str:
    """What tells the weights of a recipe's backbone from others."""
    return f"{config.backbone} {config.weights}"


def read_normalization(checkpoint: Path) -> Normalization:
    """What a checkpoint's weights expect of pixels."""
    about = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
    known = about["normalization"]
    return Normalization(tuple(known["mean"]), tuple(known["std"]), known["value_range"])


def read_architecture(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint knows of a backbone that its name does not tell."""
    about = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
    known: dict[str, Any] | None = about.get("architecture")
    return known
