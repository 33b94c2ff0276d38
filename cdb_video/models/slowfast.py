"""Two pathways over one clip: SlowFast networks (Feichtenhofer et al., ICCV 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdb_video.models.base import VideoBackbone, global_mean

ALPHA = 4
"""Fast frames to a slow frame, of every published SlowFast of this package."""


def slow_indices(num_frames: int, *, device: torch.device | None = None) -> Tensor:
    """(ceil(T / 4),) frames of the slow pathway: evenly spread, the last frame included.

    As the published weights were trained; the fast pathway's lateral convolutions, of temporal
    stride 4, also leave ceil(T / 4) frames.
    """
    count = math.ceil(num_frames / ALPHA)
    return torch.linspace(0, num_frames - 1, count, device=device).long()


class SlowFast(VideoBackbone):
    """Slices the slow pathway's frames itself, so that data never asks which backbone runs."""

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, num_features): slow features, then fast ones."""
        indices = slow_indices(clips.shape[2], device=clips.device)
        # `index_select` lays its result out anew: channels last stay so where it sees them so.
        slow = clips.permute(0, 2, 3, 4, 1).index_select(1, indices).permute(0, 4, 1, 2, 3)
        # A fresh list every time: pytorchvideo's multi-path blocks write into the one they get.
        features: Tensor = self.net([slow, clips])
        return features


class PathwayMean(nn.Module):
    """Slow (N, F1, T1, H, W) and fast (N, F2, T2, H, W) maps to features (N, F1 + F2)."""

    def forward(self, pathways: list[Tensor]) -> Tensor:
        """The mean of every pathway over time and space, side by side."""
        return torch.cat([global_mean(maps) for maps in pathways], dim=1)
