"""Name -> builder of every backbone; figures and sources are in docs/backbones.md."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from cdb_video.errors import ConfigError
from cdb_video.models import from_pytorchvideo, from_torchvision, from_transformers
from cdb_video.models.base import Backbone, Normalization
from cdb_video.models.from_transformers import PREFIX
from cdb_video.models.hub_families import read_architecture
from cdb_video.models.image_nets import lenet, resnet10, resnet32
from cdb_video.models.images import REFUSED, image_network, image_networks
from cdb_video.models.resnext3d import resnext3d_101
from cdb_video.models.saved_features import FEATURES, saved_features
from cdb_video.models.tiny import r3d_10, slowfast_tiny

__all__ = ["BACKBONES", "Backbone", "Normalization", "build_backbone"]

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **from_pytorchvideo.BUILDERS,
    **from_torchvision.BUILDERS,
    "resnext3d_101": resnext3d_101,
    "r3d_10": r3d_10,
    "slowfast_tiny": slowfast_tiny,
    "lenet": lenet,
    "resnet10": resnet10,
    "resnet32": resnet32,
}
"""`BACKBONES[name](num_frames=..., crop_size=...)` is an `nn.Module` that obeys `Backbone`.

Convolutional ones take any clip length and crop; MViT and Swin are made for the given one. What a
backbone cannot take is refused with a `ConfigError` naming clip.num_frames or clip.crop_size.
"""


def build_backbone(
    name: str,
    *,
    num_frames: int,
    crop_size: int,
    architecture: Mapping[str, Any] | None = None,
) -> Backbone:
    """A backbone with random weights.

    One of `BACKBONES`, an image network of torchvision, `hf:` and a model, or `features`.

    Args:
        name: `model.backbone`.
        num_frames: T of the clips.
        crop_size: their side in pixels.
        architecture: what a checkpoint knows of it; None: `hf:` models are looked up.

    Raises:
        ConfigError: no such backbone, or a clip that it cannot take.
    """
    clip = {"num_frames": num_frames, "crop_size": crop_size}
    if name.startswith(PREFIX):
        known = architecture or read_architecture(name.removeprefix(PREFIX))
        return from_transformers.build(name, known, **clip)
    if name == FEATURES:
        return saved_features(architecture)
    if name in BACKBONES:
        return BACKBONES[name](**clip)
    images = image_networks()
    if name in images or name in REFUSED:
        return image_network(name, **clip)
    close = difflib.get_close_matches(name, [*BACKBONES, *images], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BACKBONES)}"
    raise ConfigError(
        f"model.backbone: {name!r} is no backbone; {hint}, an image network of torchvision, "
        "or hf: and a model of transformers"
    )
