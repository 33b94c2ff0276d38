"""The image networks of the long-tail literature that no library carries."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from cdb_video.models.base import GlobalMean, Normalization, require_clip
from cdb_video.models.images import IMAGENET, ImageBackbone, use_global_mean

# Black to -1, white to 1: one centring for the grey images of MNIST, Fashion-MNIST and their like,
# whose means differ and matter little to a network trained from scratch.
GREY = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Of the training images of CIFAR-10, as nearly all code for CIFAR has it.
CIFAR = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def lenet(*, num_frames: int, crop_size: int) -> ImageBackbone:
    """LeNet-5 (LeCun et al., Proceedings of the IEEE 1998) as it is used today: 84 features.

    C1 6 maps (5x5, two pixels of padding in place of 32x32 images), S2, C3 16 maps (5x5), S4, C5
    120 maps (5x5), F6 84 units. Unlike the paper's: ReLU for tanh, maxima for the two subsampling
    layers, each map of C3 sees all of S2, three input channels as grey images come as RGB, and a
    linear head for radial basis functions. C5 is a convolution as in the paper: of 28x28 pixels its
    maps are one pixel, of larger images their mean is taken.
    """
    require_clip("lenet", num_frames=num_frames, crop_size=crop_size, min_crop=28)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 6, 5, padding=2),
        relu1=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(6, 16, 5),
        relu3=nn.ReLU(inplace=True),
        pool4=nn.MaxPool2d(2),
        conv5=nn.Conv2d(16, 120, 5),
        relu5=nn.ReLU(inplace=True),
        mean=GlobalMean(),
        fc6=nn.Linear(120, 84),
        relu6=nn.ReLU(inplace=True),
    )
    return ImageBackbone(nn.Sequential(layers), num_features=84, normalization=GREY)


def option_a(maps: Tensor, channels: int) -> Tensor:
    """(N, C, H, W) -> (N, channels, ceil(H / 2), ceil(W / 2)): a shortcut without parameters.

    Every second pixel, with channels of zeros, half of them before and half behind (He et al., CVPR
    2016, 3.3, option A, which does not say where; so does akamaster/pytorch_resnet_cifar10).
    """
    # `maps[:, :, ::2, ::2]` is the same, but its gradient is not channels last.
    halved = F.avg_pool2d(maps, kernel_size=1, stride=2)
    before = (channels - maps.shape[1]) // 2
    return F.pad(halved, (0, 0, 0, 0, before, channels - maps.shape[1] - before))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or option A where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        shortcut = maps if self.stride == 1 else option_a(maps, self.outputs)
        out: Tensor = self.relu(residual + shortcut)
        return out


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def resnet32(*, num_frames: int, crop_size: int) -> ImageBackbone:
    """ResNet-32 for CIFAR (He et al., CVPR 2016, 4.2): 0.46 M parameters, 64 features.

    Three stages of five blocks, 16, 32 and 64 channels wide, shortcuts of option A. Parameters are
    named as torchvision names those of its ResNets.
    """
    require_clip("resnet32", num_frames=num_frames, crop_size=crop_size)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(3, 16), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)
    )
    for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
        first = CifarBlock(inputs, outputs, 1 if stage == 1 else 2)
        others = (CifarBlock(outputs, outputs, 1) for _ in range(4))
        layers[f"layer{stage}"] = nn.Sequential(first, *others)
    layers["pool"] = GlobalMean()
    return ImageBackbone(nn.Sequential(layers), num_features=64, normalization=CIFAR)


def resnet10(*, num_frames: int, crop_size: int) -> ImageBackbone:
    """ResNet-10, one basic block a stage: the network of ImageNet-LT (Liu et al., CVPR 2019)."""
    require_clip("resnet10", num_frames=num_frames, crop_size=crop_size)
    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.fc = nn.Identity()
    use_global_mean(net)
    return ImageBackbone(net, num_features=512, normalization=IMAGENET)
