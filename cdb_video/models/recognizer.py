"""Clips to the logits of every head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cdb_video.errors import ConfigError
from cdb_video.models.base import Backbone
from cdb_video.models.heads import HeadType, build_head
from cdb_video.models.tokens import TokenBackbone


class Recognizer(nn.Module):
    """A backbone, dropout and one head a label: (N, C, T, H, W) -> {head: (N, K)}.

    Linear and cosine heads see the backbone's features, attentive ones its tokens.

    Raises:
        ConfigError: without a head, with a head name that PyTorch cannot hold, or with attentive
            heads on a backbone that has no tokens.
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
        self.sees_tokens = head_type == "attentive"
        if self.sees_tokens:
            _give_up_pool(backbone)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        for head, classes in num_classes.items():
            try:
                self.heads[head] = build_head(
                    head_type, backbone.num_features, classes, dropout=dropout
                )
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
        if not any(isinstance(module, _BatchNorm) for module in self.modules()):
            return None
        try:
            self.train()(torch.zeros(1, 3, num_frames, crop_size, crop_size, device="meta"))
        except ValueError as error:
            return str(error)
        return None

    def features(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, F), before dropout."""
        return self.backbone(clips)

    def tokens(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, L, D), of a backbone that has them.

        Raises:
            ConfigError: it has none.
        """
        return require_tokens(self.backbone).tokens(clips)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """(N, C, T, H, W) -> {head: logits (N, K)}."""
        seen = self.tokens(clips) if self.sees_tokens else self.dropout(self.features(clips))
        return {head: module(seen) for head, module in self.heads.items()}


def require_tokens(backbone: Backbone) -> TokenBackbone:
    """The backbone, when it has tokens.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(backbone, TokenBackbone):
        raise ConfigError(
            "model.backbone: has no tokens, which model.head_type=attentive and --tokens need; "
            "MViT, Swin and hf: models have"
        )
    return backbone


def _give_up_pool(backbone: Backbone) -> None:
    """Nothing trains the pool where heads see tokens; DDP must not wait for its gradients."""
    require_tokens(backbone).pool.requires_grad_(False)
