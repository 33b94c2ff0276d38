"""The video transformers of `transformers` that can be a backbone, and what their configs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdb_video.errors import ConfigError
from cdb_video.models.hub_files import (
    CONFIG,
    hub_commit,
    model_folder,
    read_json,
    read_normalization,
    transformers,
)
from cdb_video.models.positions import Grid


@dataclass(frozen=True)
class Family:
    """What differs between the library's video transformers."""

    model: str
    """The class that is built: without classifier, and without what training leaves idle."""
    published: str
    """The class that weights are read as."""
    names: Mapping[str, str]
    """Prefix of a tensor's name there -> prefix of ours; others are not ours."""
    frames: str = "num_frames"
    size: str = "image_size"
    class_token: bool = True
    tables: tuple[str, ...] = ()
    """Learned position tables, by our names."""


FAMILIES = {
    "videomae": Family(
        "VideoMAEModel",
        "VideoMAEForVideoClassification",
        {"videomae.": "net.", "fc_norm.": "pool.norm."},
        class_token=False,
    ),
    "vjepa2": Family(
        "VJEPA2Model",
        "VJEPA2Model",
        {"encoder.": "net."},
        frames="frames_per_clip",
        size="crop_size",
        class_token=False,
    ),
    "timesformer": Family(
        "TimesformerModel",
        "TimesformerModel",
        {"": "net."},
        tables=("net.embeddings.position_embeddings", "net.embeddings.time_embeddings"),
    ),
    "vivit": Family(
        "VivitModel",
        "VivitForVideoClassification",
        {"vivit.": "net."},
        tables=("net.embeddings.position_embeddings",),
    ),
}
"""`model_type` of a model's config.json -> its family."""


def read_architecture(source: str) -> dict[str, Any]:
    """What it takes to build a model without its source: its config and pixels, as JSON has them.

    Of a model of the hub, its commit there as well.

    Raises:
        ConfigError: no such model, of another kind, or one that needs code of its own.
    """
    folder = model_folder(source)
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        if "auto_map" in config:
            raise ConfigError(
                f"model.backbone: hf:{source}: model_type {kind!r} is code in its repository "
                "(auto_map), and code of a repository is never run here; allowed are "
                f"{', '.join(FAMILIES)}"
            )
        raise ConfigError(
            f"model.backbone: hf:{source}: model_type {kind!r}; allowed are {', '.join(FAMILIES)}"
        )
    known = {"config": config, "normalization": read_normalization(folder)._asdict()}
    commit = hub_commit(folder)
    return known if commit is None else {**known, "commit": commit}


def family_of(architecture: Mapping[str, Any]) -> Family:
    """Of what `read_architecture` gave."""
    return FAMILIES[architecture["config"]["model_type"]]


def config_of(name: str, architecture: Mapping[str, Any]) -> Any:
    """The library's configuration object, a new one each time."""
    family = family_of(architecture)
    config_class = getattr(transformers(), family.model).config_class
    try:
        return config_class.from_dict(dict(architecture["config"]))
    except Exception as error:  # its checks raise several kinds
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"model.backbone: {name}: {CONFIG} is no {config_class.__name__} "
            f"({reason[-1] if reason else type(error).__name__})"
        ) from error


def side_of(name: str, size: Any) -> int:
    """Of a square, that a config gives as a number or as two equal ones."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ConfigError(f"model.backbone: {name}: its frames or patches are {size}, not square")
    return int(sides.pop())


def patch_of(name: str, config: Any) -> tuple[int, int]:
    """(frames, side) of a patch."""
    if config.model_type == "vivit":
        return int(config.tubelet_size[0]), side_of(name, config.tubelet_size[1:])
    side = side_of(name, config.patch_size)
    return (1 if config.model_type == "timesformer" else int(config.tubelet_size)), side


def grid_of(config: Any, family: Family) -> Grid:
    """Patches of the clip that a config says."""
    frames, side = patch_of(config.model_type, config)
    rows = side_of(config.model_type, getattr(config, family.size)) // side
    return getattr(config, family.frames) // frames, rows, rows
