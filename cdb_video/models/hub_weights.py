"""Weights of `hf:` models by our names: published files, and tensors that older versions named."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdb_video.errors import WeightsError
from cdb_video.models.hub_families import (
    FAMILIES,
    Family,
    config_of,
    family_of,
    grid_of,
    read_architecture,
)
from cdb_video.models.hub_files import has_safetensors, model_folder, quiet, transformers
from cdb_video.models.positions import Grid, resize_positions


def pretrained_state(
    source: str, *, num_frames: int, crop_size: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A model's weights by the names of `build`'s backbone, and the tables that were interpolated.

    What its files lack is not among them: the library would fill it at random.

    Raises:
        ConfigError: no such model or weights.
        WeightsError: weights that do not load.
    """
    folder = model_folder(source, weights=True)
    architecture = read_architecture(source)
    family, config = family_of(architecture), config_of(source, architecture)
    try:
        read = _read(
            family,
            config,
            folder,
            use_safetensors=has_safetensors(folder),
            weights_only=True,
            local_files_only=True,
        )
    except Exception as error:  # a foreign or damaged file raises whatever its bytes lead to
        raise WeightsError(
            f"{folder}: not readable as weights of {family.published} ({type(error).__name__}); "
            "allowed are .safetensors, and a pytorch_model.bin that loads with weights_only=True"
        ) from error
    clip = config_of(source, architecture)
    setattr(clip, family.frames, num_frames)
    setattr(clip, family.size, crop_size)
    return read, _fit_tables(read, family, grid_of(config, family), grid_of(clip, family))


def with_todays_names(
    state: Mapping[str, Tensor], expected: Collection[str], config: Any
) -> dict[str, Tensor]:
    """Tensors of a backbone, by today's names where an older version of the library named them.

    The library reads its own older names. A state that it cannot tell stays as it is.

    Args:
        state: by our names.
        expected: today's.
        config: the library's, of the backbone.
    """
    older = {name: value for name, value in state.items() if name not in expected}
    family = FAMILIES[config.model_type]
    theirs = {
        their + name.removeprefix(ours): value
        for name, value in older.items()
        for their, ours in family.names.items()
        if name.startswith(ours)
    }
    if not theirs:
        return dict(state)
    try:
        found = _read(family, copy.deepcopy(config), None, state_dict=theirs)
    except Exception:  # tensors of some other model, in any of the library's ways to say so
        return dict(state)
    named = {name: value for name, value in found.items() if name in expected}
    return {name: value for name, value in state.items() if name in expected} | named


def _read(family: Family, config: Any, source: Path | None, **options: Any) -> dict[str, Tensor]:
    """What the library reads of a file or of tensors, older names included, by our names."""
    with quiet():
        model, found = getattr(transformers(), family.published).from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
    state = {}
    for name, value in model.state_dict().items():
        for theirs, ours in family.names.items():
            if name.startswith(theirs) and name not in found["missing_keys"]:
                state[ours + name.removeprefix(theirs)] = value
                break
    return state


def _fit_tables(state: dict[str, Tensor], family: Family, grid: Grid, to: Grid) -> tuple[str, ...]:
    """Interpolate learned position tables to the clip; the names of those that changed."""
    resized = []
    for name in family.tables:
        if name not in state:  # e.g. without time, for attention in space alone
            continue
        before = state[name]
        if name.endswith("time_embeddings"):
            state[name] = resize_positions(before, (grid[0], 1, 1), (to[0], 1, 1))
        elif family.model == "TimesformerModel":  # one table for all frames
            state[name] = resize_positions(before, (1, *grid[1:]), (1, *to[1:]), prefix=1)
        else:
            state[name] = resize_positions(before, grid, to, prefix=1)
        if state[name] is not before:
            resized.append(name)
    return tuple(resized)
