"""Name -> builder of every backbone; figures and sources are in docs/backbones.md."""

from __future__ import annotations

from collections.abc import Callable

from cdb_video.models import from_pytorchvideo, from_torchvision
from cdb_video.models.base import Backbone, Normalization
from cdb_video.models.resnext3d import resnext3d_101
from cdb_video.models.tiny import r3d_10, slowfast_tiny

__all__ = ["BACKBONES", "Backbone", "Normalization"]

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **from_pytorchvideo.BUILDERS,
    **from_torchvision.BUILDERS,
    "resnext3d_101": resnext3d_101,
    "r3d_10": r3d_10,
    "slowfast_tiny": slowfast_tiny,
}
"""`BACKBONES[name](num_frames=..., crop_size=...)` is an `nn.Module` that obeys `Backbone`.

Convolutional ones take any clip length and crop; MViT and Swin are made for the given one. What a
backbone cannot take is refused with a `ConfigError` naming clip.num_frames or clip.crop_size.
"""
