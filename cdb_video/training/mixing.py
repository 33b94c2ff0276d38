"""Mixup and CutMix: a clip and the next one of its micro batch, in one, with both labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412; Yun et al.,
"CutMix", ICCV 2019, arXiv 1905.04899. One share for a micro batch, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdb_video.losses import MultiHeadLoss


@dataclass(frozen=True)
class Mixed:
    """How the clips of a micro batch were mixed."""

    share: float = 1.0
    """Of its own clip in each; the rest is the next one's. 1: they were not mixed."""

    @property
    def is_mixed(self) -> bool:
        """Whether there is anything of another clip in them."""
        return self.share < 1

    def losses(
        self,
        criterion: MultiHeadLoss,
        logits: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Head -> share * loss of the own labels + (1 - share) * loss of the other clip's, ().

        So a loss weighs each label by its own class weight, whatever its base. A label that is
        missing adds nothing.
        """
        own: dict[str, Tensor] = criterion(logits, labels)
        if not self.is_mixed:
            return own
        other = criterion(logits, {head: part.roll(1) for head, part in labels.items()})
        return {head: self.share * own[head] + (1 - self.share) * other[head] for head in own}


NOT_MIXED = Mixed()


def make_mixing(*, mixup: float, cutmix: float) -> Mixing | NoMixing:
    """By what the configuration has: see `Mixing`."""
    return Mixing(mixup=mixup, cutmix=cutmix) if mixup or cutmix else NoMixing()


class NoMixing:
    """Clips as they are."""

    def __call__(self, clips: Tensor) -> tuple[Tensor, Mixed]:
        """(N, C, T, H, W), unchanged."""
        return clips, NOT_MIXED


class Mixing:
    """Mixes the clips of a micro batch.

    What is drawn comes from torch's generator of the CPU, which the trainer seeds with (seed, step,
    rank) before each step. So resuming changes nothing; the number of ranks and the size of the
    micro batch do, as they decide which clips are together. Nothing waits for the device.

    Args:
        mixup: alpha: shares are drawn from Beta(alpha, alpha); 0: off.
        cutmix: the same, for a rectangle of the other clip, the same in all frames. With both, each
            micro batch is given one of the two.

    """

    def __init__(self, *, mixup: float, cutmix: float) -> None:
        self.mixup = mixup
        self.cutmix = cutmix

    def __call__(self, clips: Tensor) -> tuple[Tensor, Mixed]:
        """(N, C, T, H, W) normalised -> the same shape, and how they were mixed."""
        # `.tolist()` of a CPU tensor: a number without an operator that waits.
        generator = np.random.default_rng(torch.randint(1 << 62, ()).tolist())
        if len(clips) < 2:
            return clips, NOT_MIXED
        cuts = bool(self.cutmix) and (not self.mixup or generator.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = float(generator.beta(alpha, alpha))
        if cuts:
            return _cut(clips, share, generator)
        return torch.lerp(clips.roll(1, 0), clips, share), Mixed(share)


def _cut(clips: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, Mixed]:
    """A rectangle of 1 - `share` of the area, of which the frame's edge may cut off some."""
    height, width = clips.shape[-2:]
    side = math.sqrt(1 - share)
    top, bottom = _span(height, side, generator)
    left, right = _span(width, side, generator)
    mixed = clips.clone()
    mixed[..., top:bottom, left:right] = clips.roll(1, 0)[..., top:bottom, left:right]
    return mixed, Mixed(1 - (bottom - top) * (right - left) / (height * width))


def _span(length: int, part: float, generator: np.random.Generator) -> tuple[int, int]:
    half = round(length * part) // 2
    middle = int(generator.integers(length))
    return max(middle - half, 0), min(middle + half, length)
