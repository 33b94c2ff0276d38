"""Backbones of `torchvision.models.video`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone, require_clip
from cdb_video.models.images import IMAGENET
from cdb_video.models.patches import use_patch_linear
from cdb_video.models.tokens import FirstToken, TokenBackbone, TokenMean

# The `transforms` of torchvision's weight enums.
KINETICS = Normalization(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
MVIT = Normalization(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


def _create(name: str) -> Any:
    """`torchvision.models.video.<name>` without weights; Any, for modules' attributes are set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        video = importlib.import_module("torchvision.models.video")
        return getattr(video, name)(weights=None)


def _resnet(name: str) -> Callable[..., VideoBackbone]:
    def build(*, num_frames: int, crop_size: int) -> VideoBackbone:
        require_clip(name, num_frames=num_frames, crop_size=crop_size)
        net = _create(name)
        net.avgpool, net.fc = GlobalMean(), nn.Identity()
        return VideoBackbone(net, num_features=512, normalization=KINETICS)

    return build


def s3d(*, num_frames: int, crop_size: int) -> VideoBackbone:
    """S3D (Xie et al., ECCV 2018): separable convolutions, 7 frames and 32 pixels at least."""
    # Its last pool is 2x2x2 without padding; from 7 frames on, all it sees comes from the clip.
    require_clip("s3d", num_frames=num_frames, crop_size=crop_size, min_frames=7, min_crop=32)
    net = _create("s3d")
    net.avgpool, net.classifier = GlobalMean(keepdim=True), nn.Identity()
    return VideoBackbone(net, num_features=1024, normalization=KINETICS)


class _MViT(TokenBackbone):
    def tokens(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 1 + L, D): the library's forward, but for its last two lines."""
        net: Any = self.net
        tokens = net.pos_encoding(net.conv_proj(clips).flatten(2).transpose(1, 2))
        grid = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
        for block in net.blocks:
            tokens, grid = block(tokens, grid)
        normed: Tensor = net.norm(tokens)
        return normed


def mvit_v2_s(*, num_frames: int, crop_size: int) -> TokenBackbone:
    """MViTv2-S (Li et al., CVPR 2022) for the configured clip.

    Its relative position tables keep the published size (16 frames, 224 pixels), so published
    weights fit any clip: the network interpolates them to the clip as it runs.
    """
    require_clip(
        "mvit_v2_s",
        num_frames=num_frames,
        crop_size=crop_size,
        min_frames=2,
        frames_multiple=2,
        min_crop=32,
        crop_multiple=32,
    )
    net = _create("mvit_v2_s")
    net.pos_encoding.temporal_size = num_frames // 2
    net.pos_encoding.spatial_size = (crop_size // 4, crop_size // 4)
    net.head = nn.Identity()
    return _MViT(net, pool=FirstToken(), num_features=768, normalization=MVIT)


class _TokensOfMaps(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, flat: Tensor) -> Tensor:
        """(N, D T H W), which is what Swin gives its head -> (N, T H W, D)."""
        tokens: Tensor = flat.unflatten(1, (self.num_features, -1)).mT
        return tokens


def _swin(name: str, *, num_features: int) -> Callable[..., VideoBackbone]:
    def build(*, num_frames: int, crop_size: int) -> TokenBackbone:
        require_clip(name, num_frames=num_frames, crop_size=crop_size)
        net = _create(name)
        _fit_windows(net, grid=(-(-num_frames // 2), -(-crop_size // 4)))
        net.avgpool, net.head = nn.Identity(), _TokensOfMaps(num_features)
        use_patch_linear(net)
        return TokenBackbone(
            net, pool=TokenMean(), num_features=num_features, normalization=IMAGENET
        )

    return build


def _fit_windows(net: Any, *, grid: tuple[int, int]) -> None:
    """Make position tables right where maps are smaller than the 8x7x7 windows.

    There torchvision (0.29) shrinks the window but takes the first rows of the index of the full
    one, which are other positions. The index is reordered: a small window's tokens come first.
    """
    frames, side = grid
    for layer in net.features:
        if not isinstance(layer, nn.Sequential):  # patch merging
            side = -(-side // 2)
            continue
        for block in layer:
            attention: Any = block.attn
            window = attention.window_size
            inside = torch.zeros(*window, dtype=torch.bool, device="cpu")
            inside[:frames, :side, :side] = True
            order = inside.flatten().long().argsort(descending=True, stable=True)
            index = attention.relative_position_index
            order = order.to(index.device)
            # Made from the clip's size, so it is no part of the weights.
            attention.register_buffer(
                "relative_position_index", index[order][:, order], persistent=False
            )


BUILDERS: dict[str, Callable[..., VideoBackbone]] = {
    "r3d_18": _resnet("r3d_18"),
    "mc3_18": _resnet("mc3_18"),
    "r2plus1d_18": _resnet("r2plus1d_18"),
    "s3d": s3d,
    "mvit_v2_s": mvit_v2_s,
    "swin3d_t": _swin("swin3d_t", num_features=768),
    "swin3d_s": _swin("swin3d_s", num_features=768),
    "swin3d_b": _swin("swin3d_b", num_features=1024),
}
