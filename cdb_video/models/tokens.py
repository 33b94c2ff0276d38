"""Backbones that end in tokens: a row of features for each place and time of a clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization, VideoBackbone


class TokenBackbone(VideoBackbone):
    """A network that gives tokens (N, L, D), and the pool that makes them features (N, D).

    L depends on the clip. A class token, where there is one, is the first.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        pool: nn.Module,
        num_features: int,
        normalization: Normalization,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(net, num_features=num_features, normalization=normalization)
        self.pool = pool
        self.architecture = architecture or {}

    def tokens(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, L, D)."""
        tokens: Tensor = self.net(clips)
        return tokens

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, num_features)."""
        features: Tensor = self.pool(self.tokens(clips))
        return features


class FirstToken(nn.Module):
    """(N, L, D) -> (N, D): the class token."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The first of the tokens."""
        return tokens[:, 0]


class TokenMean(nn.Module):
    """(N, L, D) -> (N, D): the mean, and with `norm` its layer norm."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean over the tokens."""
        features: Tensor = self.norm(tokens.mean(1))
        return features


def set_drop_path(backbone: nn.Module, rate: float, *, name: str) -> None:
    """Stochastic depth (Huang et al., ECCV 2016): leave out residual branches in training.

    The chance of a block's branches rises linearly from 0 in the first to `rate` in the last, as in
    DeiT and VideoMAE; a branch that stays is divided by its chance to stay.

    Args:
        backbone: changed in place.
        rate: of the last block.
        name: of the backbone, for the message.

    Raises:
        ConfigError: the backbone has no blocks that can be left out.
    """
    places = [module for module in backbone.modules() if isinstance(module, StochasticDepth)]
    if not places:
        raise ConfigError(
            f"model.drop_path: {rate:g}; {name} has no residual blocks that are made for it; it is "
            "for MViT, Swin, ConvNeXt, EfficientNet and hf: models"
        )
    for i, place in enumerate(places):
        place.p = rate * i / max(len(places) - 1, 1)
