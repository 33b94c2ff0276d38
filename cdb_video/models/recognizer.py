"""Clips to the logits of every head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.errors import ConfigError
from cdb_video.models.base import Backbone

COSINE_SCALE = 30.0
"""What cosines are multiplied by, so that a softmax of them can be sure (LDAM's code: 30)."""

HeadType = Literal["linear", "cosine"]


class CosineHead(nn.Module):
    """Logits (N, K) = 30 cos(features (N, F), weight (K, F)): neither length matters."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K)."""
        cosines = F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))
        return COSINE_SCALE * cosines


class Recognizer(nn.Module):
    """A backbone, dropout and one head a label: (N, C, T, H, W) -> {head: (N, K)}.

    Linear heads start at N(0, 0.01) as SlowFast's do: large first logits would swamp a pretrained
    backbone.

    Raises:
        ConfigError: without a head, or with a head name that PyTorch cannot hold.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: Mapping[str, int],
        dropout: float = 0.5,
        head_type: HeadType = "linear",
    ) -> None:
        super().__init__()
        if not num_classes:
            raise ConfigError("model.heads: none; at least one label is needed")
        self.backbone = backbone
        self.normalization = backbone.normalization
        self.num_classes = dict(num_classes)
        self._backbone_is_frozen = False
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        for head, classes in num_classes.items():
            try:
                self.heads[head] = _build_head(head_type, backbone.num_features, classes)
            except KeyError as error:  # a dot, or an attribute of modules such as "type"
                raise ConfigError(
                    f"model.heads: {head!r} cannot name a head; rename the label"
                ) from error

    def freeze_backbone(self) -> None:
        """Train the heads alone: no gradients for the backbone, and its batch norm as it is."""
        self._backbone_is_frozen = True
        cast(nn.Module, self.backbone).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self._backbone_is_frozen:
            cast(nn.Module, self.backbone).eval()
        return self

    def refuses_one_clip(self, *, num_frames: int, crop_size: int) -> str | None:
        """Why a forward of a single clip cannot be trained on; None where it can.

        Batch norm needs more than one number a channel, which small clips have not. For a model on
        the meta device: statistics elsewhere would move.
        """
        try:
            self.train()(torch.zeros(1, 3, num_frames, crop_size, crop_size, device="meta"))
        except ValueError as error:
            return str(error)
        return None

    def features(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, F), before dropout."""
        return self.backbone(clips)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """(N, C, T, H, W) -> {head: logits (N, K)}."""
        features = self.dropout(self.features(clips))
        return {head: module(features) for head, module in self.heads.items()}


def _build_head(head_type: HeadType, num_features: int, num_classes: int) -> nn.Module:
    if head_type == "cosine":
        return CosineHead(num_features, num_classes)
    linear = nn.Linear(num_features, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear
