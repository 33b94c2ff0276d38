"""Backbones of pytorchvideo 0.1.5, with the arguments of its published models."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone, require_clip
from cdb_video.models.slowfast import PathwayMean, SlowFast
from cdb_video.models.tokens import FirstToken, TokenBackbone

# pytorchvideo's hub pages and PySlowFast's DATA.MEAN / DATA.STD, for every model.
NORMALIZATION = Normalization(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


def _create(builder: str, **arguments: Any) -> Any:
    """The network that `pytorchvideo.models.<module>.<function>` makes, named "module.function".

    Any, for the library is not typed. This is the only import of pytorchvideo; what it warns of at
    import (deprecated calls of its own) is not for our user to mend.
    """
    module, function = builder.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create = getattr(importlib.import_module(f"pytorchvideo.models.{module}"), function)
        return create(**arguments)


def _residual(
    name: str, builder: str, *, min_frames: int = 1, **arguments: Any
) -> Callable[..., VideoBackbone]:
    """A builder of one of the single-pathway residual networks: 2048 features."""

    def build(*, num_frames: int, crop_size: int) -> VideoBackbone:
        require_clip(name, num_frames=num_frames, crop_size=crop_size, min_frames=min_frames)
        net = _create(builder, **arguments)
        net.blocks[-1] = GlobalMean()
        return VideoBackbone(net, num_features=2048, normalization=NORMALIZATION)

    return build


def _slowfast(name: str, *, depth: int, fusion_kernel: int) -> Callable[..., SlowFast]:
    def build(*, num_frames: int, crop_size: int) -> SlowFast:
        require_clip(name, num_frames=num_frames, crop_size=crop_size)
        net = _create(
            "slowfast.create_slowfast",
            model_depth=depth,
            slowfast_fusion_conv_kernel_size=(fusion_kernel, 1, 1),
        )
        net.blocks = net.blocks[:-2].append(PathwayMean())
        return SlowFast(net, num_features=2048 + 256, normalization=NORMALIZATION)

    return build


def _x3d(name: str, *, depth_factor: float) -> Callable[..., VideoBackbone]:
    def build(*, num_frames: int, crop_size: int) -> VideoBackbone:
        require_clip(name, num_frames=num_frames, crop_size=crop_size)
        # Clip length and crop only size the head's pool, which is replaced: XS, S and M are one
        # architecture for clips of different sizes. SiLU is the same function as the library's
        # Swish, whose own backward uses calls that PyTorch deprecates and blocks compile and ONNX.
        net = _create("x3d.create_x3d", depth_factor=depth_factor, inner_act=nn.SiLU)
        head = net.blocks[-1]
        head.pool.pool = GlobalMean(keepdim=True)
        head.dropout = head.proj = head.activation = None
        head.output_pool = nn.Flatten(1)
        return VideoBackbone(net, num_features=2048, normalization=NORMALIZATION)

    return build


def mvit_b(*, num_frames: int, crop_size: int) -> TokenBackbone:
    """MViT-B (Fan et al., ICCV 2021), with position tables for the configured clip."""
    require_clip(
        "mvit_b",
        num_frames=num_frames,
        crop_size=crop_size,
        min_frames=2,
        frames_multiple=2,
        min_crop=32,
        crop_multiple=32,
    )
    device = torch.get_default_device()
    # Its builder reads numbers out of tensors it makes, which "meta" cannot give.
    with torch.device("cpu"):
        net = _create(
            "vision_transformers.create_multiscale_vision_transformers",
            spatial_size=crop_size,
            temporal_size=num_frames,
            embed_dim_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
            atten_head_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
            pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
            pool_kv_stride_adaptive=[1, 8, 8],
            pool_kvq_kernel=[3, 3, 3],
        )
    net.head = None
    for block in net.blocks:
        block.drop_path = StochasticDepth(0.0, "row")  # in place of an identity
    return TokenBackbone(
        net.to(device), pool=FirstToken(), num_features=768, normalization=NORMALIZATION
    )


_NO_TEMPORAL = ((1, 1, 1),) * 4
_I3D_KERNELS = ((3, 1, 1), [(3, 1, 1), (1, 1, 1)], [(3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1)])

BUILDERS: dict[str, Callable[..., VideoBackbone]] = {
    "slowfast_r50": _slowfast("slowfast_r50", depth=50, fusion_kernel=7),
    "slowfast_r101": _slowfast("slowfast_r101", depth=101, fusion_kernel=5),
    "slow_r50": _residual("slow_r50", "resnet.create_resnet", stem_conv_kernel_size=(1, 7, 7)),
    # C2D and I3D halve time by an unpadded pool after the first stage.
    "c2d_r50": _residual(
        "c2d_r50",
        "resnet.create_resnet",
        min_frames=2,
        stem_conv_kernel_size=(1, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=_NO_TEMPORAL,
    ),
    "i3d_r50": _residual(
        "i3d_r50",
        "resnet.create_resnet",
        min_frames=2,
        stem_conv_kernel_size=(5, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=_I3D_KERNELS,
    ),
    "r2plus1d_r50": _residual("r2plus1d_r50", "r2plus1d.create_r2plus1d"),
    "csn_r101": _residual("csn_r101", "csn.create_csn", model_depth=101, stem_pool=nn.MaxPool3d),
    "x3d_xs": _x3d("x3d_xs", depth_factor=2.2),
    "x3d_s": _x3d("x3d_s", depth_factor=2.2),
    "x3d_m": _x3d("x3d_m", depth_factor=2.2),
    "x3d_l": _x3d("x3d_l", depth_factor=5.0),
    "mvit_b": mvit_b,
}
