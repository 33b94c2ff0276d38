"""Patch embeddings as what they are: a linear layer over cut out blocks of pixels.

A convolution whose stride is its kernel looks at every pixel once. As a `Conv3d` it may run up to
thousands of times slower on a GPU (transformers issue 45750, and sglang-omni issue 539: 3.7 s a
call on an H100), in bf16 most of all.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchLinear(nn.Module):
    """What a convolution with stride = kernel computes, by one matrix product.

    It takes the convolution's parameters as they are, so names and shapes of a state dict stay.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.kernel_size = conv.kernel_size
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, *sizes) -> (N, D, *patches), a view of channels-last memory.

        Pixels behind the last whole patch are left out, as a convolution does.
        """
        kernel = self.kernel_size
        counts = [size // k for size, k in zip(pixels.shape[2:], kernel, strict=True)]
        whole = tuple(slice(count * k) for count, k in zip(counts, kernel, strict=True))
        pixels = pixels[(slice(None), slice(None), *whole)]
        sizes = [size for pair in zip(counts, kernel, strict=True) for size in pair]
        blocks = pixels.reshape(*pixels.shape[:2], *sizes)
        axes = range(2, 2 + 2 * len(kernel), 2)
        blocks = blocks.permute(0, *axes, 1, *(axis + 1 for axis in axes))
        patches = F.linear(blocks.flatten(1 + len(kernel)), self.weight.flatten(1), self.bias)
        return patches.movedim(-1, 1)


def use_patch_linear(net: nn.Module) -> None:
    """Replace, in place, every convolution of a network whose stride is its kernel."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d | nn.Conv3d) and _cuts_patches(child):
                setattr(module, name, PatchLinear(child))


def _cuts_patches(conv: nn.Conv2d | nn.Conv3d) -> bool:
    return (
        conv.stride == conv.kernel_size
        and max(conv.kernel_size) > 1
        and conv.groups == 1
        and set(conv.padding) == {0}
        and set(conv.dilation) == {1}
    )
