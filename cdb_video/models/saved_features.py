"""The backbone of saved features: it gives on what another one has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization
from cdb_video.models.tokens import TokenBackbone, TokenMean

FEATURES = "features"
"""Its name, and that of the data format that it goes with."""
AS_THEY_ARE = Normalization(mean=(0.0,), std=(1.0,), value_range=255.0)


class SavedFeatures(TokenBackbone):
    """Features travel as clips (N, D, L, 1, 1): channels are features, frames are tokens.

    Pooled features are one token. Without parameters, so the heads are all there is to train.
    """

    def tokens(self, clips: Tensor) -> Tensor:
        """(N, D, L, 1, 1) -> (N, L, D)."""
        return clips.flatten(2).mT


def saved_features(architecture: Mapping[str, Any] | None) -> SavedFeatures:
    """The backbone for features of some width, `architecture["num_features"]`.

    Raises:
        ConfigError: the width is not known.
    """
    if not architecture or "num_features" not in architecture:
        raise ConfigError("model.backbone: features is for data.format=features")
    return SavedFeatures(
        nn.Identity(),
        pool=TokenMean(),
        num_features=int(architecture["num_features"]),
        normalization=AS_THEY_ARE,
        architecture=dict(architecture),
    )
