"""What every backbone is: a module from clips (N, C, T, H, W) to features (N, F)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cdb_video.errors import ConfigError


class Normalization(NamedTuple):
    """How a backbone's published weights expect pixels: ((pixel / 255) * value_range - mean) / std.

    It belongs to the weights: another mean is a shift that their first layer never saw.
    """

    mean: tuple[float, ...]
    """Of R, G and B; of saved features, which are as they should be, one number for all."""
    std: tuple[float, ...]
    value_range: float = 1.0


@runtime_checkable
class Backbone(Protocol):
    """Clips (N, C, T, H, W), normalised, to features (N, num_features)."""

    num_features: int
    normalization: Normalization

    def __call__(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, num_features)."""
        ...


class VideoBackbone(nn.Module):
    """A network `net`, ours or a library's, as a `Backbone`.

    Every parameter is named `net.` plus its name in the library, so a published file is renamed by
    one prefix.
    """

    def __init__(self, net: nn.Module, *, num_features: int, normalization: Normalization) -> None:
        super().__init__()
        self.net = net
        self.num_features = num_features
        self.normalization = normalization
        self.architecture: dict[str, Any] = {}
        """What it takes, beside its name and the clip, to build it again; as JSON has it."""
        self.clip_note: str | None = None
        """A line to print where it is built for another clip than its weights were made for."""

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, num_features)."""
        features: Tensor = self.net(clips)
        return features

    def with_todays_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state of this backbone, by the names that its library gives tensors today."""
        return dict(state)


class GlobalMean(nn.Module):
    """(N, F, T, H, W) or (N, F, H, W) -> (N, F), with `keepdim` (N, F, 1, 1, 1) or (N, F, 1, 1).

    In place of the libraries' pools: a fixed kernel ties a model to one clip shape, and the
    backward of `AdaptiveAvgPool3d` is not deterministic on a GPU.
    """

    def __init__(self, *, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, maps: Tensor) -> Tensor:
        """The mean over time and space."""
        means = global_mean(maps)
        return means.unflatten(1, (-1, *[1] * (maps.ndim - 2))) if self.keepdim else means


def global_mean(maps: Tensor) -> Tensor:
    """(N, F, T, H, W) or (N, F, H, W) -> (N, F), the mean over time and space.

    Features are put last first, as they lie in memory: the gradient then is made channels last too,
    where that of `maps.mean((2, 3, 4))` is not, and the layers before would read across it.
    """
    return maps.movedim(1, -1).flatten(1, -2).mean(1)


def place(model: nn.Module, device: torch.device | str) -> None:
    """Move a model to its device, its convolutions channels last: the layout that is fastest.

    In training and after it alike, for a convolution's result depends on it in the last bits.
    """
    model.to(device)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def require_clip(
    backbone: str,
    *,
    num_frames: int,
    crop_size: int,
    min_frames: int = 1,
    min_crop: int = 1,
    frames_multiple: int = 1,
    crop_multiple: int = 1,
) -> None:
    """Refuse a clip that a backbone cannot take.

    Raises:
        ConfigError: names `clip.num_frames` or `clip.crop_size`, its value and what is allowed.
    """
    limits = (
        ("clip.num_frames", num_frames, min_frames, frames_multiple),
        ("clip.crop_size", crop_size, min_crop, crop_multiple),
    )
    for key, value, minimum, multiple in limits:
        if value < minimum or value % multiple:
            steps = f" and a multiple of {multiple}" if multiple > 1 else ""
            raise ConfigError(f"{key}: {value}; {backbone} takes {minimum} or more{steps}")
