"""3D-ResNeXt-101 (Hara et al., CVPR 2018), the network of the CDB paper's EGTEA experiments.

No library carries it. Parameter names are those of the released `resnext-101-kinetics.pth`.
"""

from __future__ import annotations

from torch import Tensor, nn

from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone, require_clip

# The release subtracts ActivityNet's mean (its default, for Kinetics too) from pixels of 0 to 255
# and leaves the deviation alone: `--std_norm` is off by default, and the authors' own code for
# using the weights (video-classification-3d-cnn-pytorch) normalises by (mean, [1, 1, 1]).
NORMALIZATION = Normalization(
    mean=(114.7748, 107.7354, 99.4750), std=(1.0, 1.0, 1.0), value_range=255.0
)

CARDINALITY = 32
EXPANSION = 2
BLOCKS = (3, 4, 23, 3)
WIDTHS = (128, 256, 512, 1024)


class ResNeXtBlock(nn.Module):
    """1x1x1, grouped 3x3x3 and 1x1x1 convolutions beside a shortcut of type B (a projection)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(
            width, width, 3, stride=stride, padding=1, groups=CARDINALITY, bias=False
        )
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, T, H, W) -> (N, 2 * width, T / stride, H / stride, W / stride)."""
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        out: Tensor = self.relu(residual + self.downsample(maps))
        return out


class ResNeXt3D(nn.Module):
    """Clips (N, 3, T, H, W) to features (N, 2048): time is halved four times, space five."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        inputs = 64
        for stage, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True), start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 1 else 1
                layer.append(ResNeXtBlock(inputs, width, stride))
                inputs = width * EXPANSION
            self.add_module(f"layer{stage}", layer)
        self.pool = GlobalMean()
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: Tensor) -> Tensor:
        """(N, 3, T, H, W) -> (N, 2048)."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        for stage in range(1, len(BLOCKS) + 1):
            maps = self.get_submodule(f"layer{stage}")(maps)
        features: Tensor = self.pool(maps)
        return features


def resnext3d_101(*, num_frames: int, crop_size: int) -> VideoBackbone:
    """3D-ResNeXt-101, cardinality 32, shortcut B: 47.5 M parameters, 2048 features."""
    require_clip("resnext3d_101", num_frames=num_frames, crop_size=crop_size)
    return VideoBackbone(
        ResNeXt3D(), num_features=WIDTHS[-1] * EXPANSION, normalization=NORMALIZATION
    )
