"""Tiny models of transformers' four video families, random, in folders as the hub has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdb_video.models.hub_families import FAMILIES
from cdb_video.models.hub_files import quiet, transformers

KINDS = tuple(FAMILIES)
SIZES: dict[str, dict[str, Any]] = {
    "videomae": {"image_size": 16, "patch_size": 8, "num_frames": 4, "intermediate_size": 48},
    "vjepa2": {
        "crop_size": 16,
        "patch_size": 8,
        "frames_per_clip": 4,
        "mlp_ratio": 2,
        "pred_hidden_size": 12,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
    "timesformer": {"image_size": 16, "patch_size": 8, "num_frames": 4, "intermediate_size": 48},
    "vivit": {
        "image_size": 16,
        "tubelet_size": [2, 8, 8],
        "num_frames": 4,
        "intermediate_size": 48,
    },
}
COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.2]}

NAMES_OF_5_0 = {
    "videomae": [
        (r"attention\.query\.bias$", "attention.q_bias"),
        (r"attention\.value\.bias$", "attention.v_bias"),
    ],
    "vivit": [
        (r"net\.layers\.", "net.encoder.layer."),
        (r"attention\.q_proj\.", "attention.attention.query."),
        (r"attention\.k_proj\.", "attention.attention.key."),
        (r"attention\.v_proj\.", "attention.attention.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ],
}
"""Kind -> (the names of today, those that transformers 5.0.0 gave)."""


def by_names_of_5_0(state: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """A recogniser's tensors as a run under transformers 5.0.0 saved them."""
    older = {}
    for name, value in state.items():
        for today, then in NAMES_OF_5_0[kind]:
            name = re.sub(today, then, name)
        older[name] = value.clone()
    return older


def library_model(kind: str, **sizes: Any) -> Any:
    """The library's own model, its weights far from their small first values."""
    reader = getattr(transformers(), FAMILIES[kind].published)
    torch.manual_seed(0)
    with quiet():
        model = reader(reader.config_class(**{**COMMON, **SIZES[kind], **sizes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def save_hub_model(folder: Path, kind: str, *, pixels: Any = PIXELS, **sizes: Any) -> Any:
    """Write a model's folder; the model is returned."""
    model = library_model(kind, **sizes)
    with quiet():
        model.save_pretrained(folder)
    name = "video_preprocessor_config.json" if kind == "vjepa2" else "preprocessor_config.json"
    (folder / name).write_text(json.dumps(pixels))
    return model


def library_tokens(kind: str, model: Any, clips: torch.Tensor) -> torch.Tensor:
    """What the library says of clips (N, C, T, H, W): (N, L, D)."""
    videos = clips.transpose(1, 2)
    if kind == "vjepa2":
        found = model(videos, skip_predictor=True)
    else:
        found = {"videomae": "videomae", "vivit": "vivit"}.get(kind)
        found = (getattr(model, found) if found else model)(videos)
    tokens: torch.Tensor = found.last_hidden_state
    return tokens
