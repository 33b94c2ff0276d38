"""Stronger changes of a training clip's pixels, by torchvision: RandAugment and erasing."""

from __future__ import annotations

import torch
import torchvision.transforms.v2 as transforms
from torch import Tensor

GREY = 127.0
"""What an erased rectangle becomes: near to the mean of every normalisation."""


def change_pixels(
    frames: Tensor,
    *,
    rand_augment: tuple[int, int] | None,
    erase: float,
    generator: torch.Generator,
) -> Tensor:
    """Frames (T, C, H, W) uint8 RGB, all changed alike.

    torchvision draws from torch's own generator, which is seeded by ours and put back.

    Args:
        frames: of one clip.
        rand_augment: (operations, magnitude of 0 to 30): so many, chosen at random (Cubuk et al.,
            RandAugment, arXiv 1909.13719); None: none.
        erase: the chance that a random rectangle becomes grey (Zhong et al., arXiv 1708.04896).
        generator: of the clip.
    """
    if rand_augment is None and not erase:
        return frames
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        if rand_augment is not None:
            operations, magnitude = rand_augment
            frames = transforms.RandAugment(operations, magnitude)(frames)
        if erase:
            frames = transforms.RandomErasing(p=erase, value=GREY)(frames)
    return frames
