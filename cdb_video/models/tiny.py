"""Two backbones for CPUs, demos and tests: below 1 M parameters, dense convolutions only.

Depthwise ones (X3D) have fewer multiplications but train several times slower on a CPU.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone, require_clip
from cdb_video.models.slowfast import ALPHA, PathwayMean, SlowFast

# Trained from scratch here, so any centring does; the 0.45 / 0.225 of PySlowFast keeps the demo's
# configuration good for the real SlowFast.
NORMALIZATION = Normalization(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))

Size = tuple[int, int, int]


def _conv(inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1)) -> nn.Conv3d:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _stem(outputs: int, kernel: Size) -> nn.Sequential:
    """(N, 3, T, H, W) -> (N, outputs, T, H / 2, W / 2)."""
    conv = _conv(3, outputs, kernel, (1, 2, 2))
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut (He et al., CVPR 2016), in three dimensions."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, kernel, stride)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = _conv(outputs, outputs, kernel)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != (1, 1, 1):
            projection = _conv(inputs, outputs, (1, 1, 1), stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm3d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, T, H, W) -> (N, outputs, T', H', W')."""
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.relu(residual + self.shortcut(maps))
        return out


def r3d_10(*, num_frames: int, crop_size: int) -> VideoBackbone:
    """A 3D ResNet with one basic block a stage, widths 16 to 128: 0.9 M parameters."""
    require_clip("r3d_10", num_frames=num_frames, crop_size=crop_size)
    widths = (16, 16, 32, 64, 128)
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(widths[0], (3, 7, 7)))
    for stage in range(1, 5):
        stride = (1, 1, 1) if stage == 1 else (2, 2, 2)
        block = BasicBlock(widths[stage - 1], widths[stage], (3, 3, 3), stride)
        layers[f"layer{stage}"] = block
    layers["pool"] = GlobalMean()
    net = nn.Sequential(layers)
    return VideoBackbone(net, num_features=widths[-1], normalization=NORMALIZATION)


class TinySlowFast(nn.Module):
    """SlowFast's idea at 1/40 of its size: alpha 4, beta 1/4, three stages of one basic block.

    As in the paper the fast pathway has temporal kernels throughout and the slow one only late,
    and lateral connections carry fast to slow by a time-strided convolution of twice the channels.
    """

    SLOW = (32, 32, 64, 96)
    FAST = (8, 8, 16, 24)
    SLOW_KERNELS: tuple[Size, ...] = ((1, 3, 3), (1, 3, 3), (3, 3, 3))

    def __init__(self) -> None:
        super().__init__()
        self.slow_stem = _stem(self.SLOW[0], (1, 5, 5))
        self.fast_stem = _stem(self.FAST[0], (3, 5, 5))
        self.slow, self.fast, self.lateral = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        stride = (1, 2, 2)
        for stage, kernel in enumerate(self.SLOW_KERNELS):
            fast, slow = self.FAST[stage], self.SLOW[stage]
            lateral = _conv(fast, 2 * fast, (5, 1, 1), (ALPHA, 1, 1))
            norm = nn.BatchNorm3d(2 * fast)
            self.lateral.append(nn.Sequential(lateral, norm, nn.ReLU(inplace=True)))
            fused = slow + 2 * fast
            self.slow.append(BasicBlock(fused, self.SLOW[stage + 1], kernel, stride))
            self.fast.append(BasicBlock(fast, self.FAST[stage + 1], (3, 3, 3), stride))
        self.pool = PathwayMean()

    def forward(self, pathways: list[Tensor]) -> Tensor:
        """Slow (N, 3, ceil(T / 4), H, W) and fast (N, 3, T, H, W) clips -> (N, 120)."""
        slow, fast = self.slow_stem(pathways[0]), self.fast_stem(pathways[1])
        for lateral, slow_block, fast_block in zip(self.lateral, self.slow, self.fast, strict=True):
            slow = slow_block(torch.cat([slow, lateral(fast)], dim=1))
            fast = fast_block(fast)
        features: Tensor = self.pool([slow, fast])
        return features


def slowfast_tiny(*, num_frames: int, crop_size: int) -> SlowFast:
    """A small dense SlowFast: about 0.7 M parameters, for 16x64x64 clips on two CPU cores."""
    require_clip("slowfast_tiny", num_frames=num_frames, crop_size=crop_size)
    features = TinySlowFast.SLOW[-1] + TinySlowFast.FAST[-1]
    return SlowFast(TinySlowFast(), num_features=features, normalization=NORMALIZATION)
