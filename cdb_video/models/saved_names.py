"""The names of a checkpoint's tensors: a library renames its modules from version to version."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.models.base import VideoBackbone
from cdb_video.models.from_transformers import VERSION
from cdb_video.models.recognizer import Recognizer

PREFIX = "backbone."


def by_todays_names(model: Recognizer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names of a model that was built today, as far as is known."""
    if not isinstance(model.backbone, VideoBackbone) or state.keys() == model.state_dict().keys():
        return dict(state)
    own = {n.removeprefix(PREFIX): value for n, value in state.items() if n.startswith(PREFIX)}
    others = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    named = model.backbone.with_todays_names(own)
    return others | {PREFIX + name: value for name, value in named.items()}


def require_names(
    model: Recognizer,
    state: Mapping[str, Tensor],
    *,
    checkpoint: Path,
    architecture: Mapping[str, Any] | None,
) -> None:
    """Refuse a checkpoint whose tensors are not the model's by name.

    Args:
        model: built today.
        state: of the checkpoint.
        checkpoint: its folder.
        architecture: what it keeps of the backbone.

    Raises:
        RunError: names the library's version then and now, and a tensor.
    """
    expected = model.state_dict().keys()
    different = sorted(expected ^ state.keys())
    if not different:
        return
    where = "the model" if different[0] in expected else "the checkpoint"
    reason = f"only {where} has {different[0]}"
    if architecture and "config" in architecture:
        before, now = architecture.get(VERSION, "of an unknown version"), _installed()
        raise RunError(
            f"{checkpoint}: saved with transformers {before}, and {now}, which is here, names "
            f"tensors otherwise ({reason}); install the version that it was saved with"
        )
    raise RunError(f"{checkpoint}: another version's: {reason}")


def _installed() -> str:
    return importlib.metadata.version("transformers")
