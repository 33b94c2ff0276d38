"""Every backbone: it builds, has the published size, trains, and refuses what it cannot take."""

import functools
import importlib

import pytest
import torch
from torch import nn

from cdb_video.errors import ConfigError
from cdb_video.models.backbones import BACKBONES, Backbone

# Millions of parameters with a 400-class head. pytorchvideo's model zoo page (two decimals),
# torchvision's weight enums (exact), Hara et al.'s ResNeXt-101.
PUBLISHED = {
    "slowfast_r50": 34.57,
    "slowfast_r101": 62.83,
    "slow_r50": 32.45,
    "c2d_r50": 24.33,
    "i3d_r50": 28.04,
    "r2plus1d_r50": 28.11,
    "csn_r101": 22.21,
    "x3d_xs": 3.79,
    "x3d_s": 3.79,
    "x3d_m": 3.79,
    "x3d_l": 6.15,
    "mvit_b": 36.61,
    "r3d_18": 33.371472,
    "mc3_18": 11.695440,
    "r2plus1d_18": 31.505325,
    "s3d": 8.320048,
    "mvit_v2_s": 34.537744,
    "swin3d_t": 28.158070,
    "swin3d_s": 49.816678,
    "swin3d_b": 88.048984,
    "resnext3d_101": 48.34,
}
OURS = ("r3d_10", "slowfast_tiny")
IMAGES = ("lenet", "resnet10", "resnet32")  # tests/models/test_images.py

# One clip that is quick on one core, with sizes no published recipe uses where the model allows.
CLIPS = {
    "slowfast_r50": (7, 33),
    "slowfast_r101": (5, 33),
    "slow_r50": (3, 33),
    "c2d_r50": (3, 33),
    "i3d_r50": (3, 33),
    "r2plus1d_r50": (3, 33),
    "csn_r101": (3, 33),
    "x3d_xs": (3, 33),
    "x3d_s": (3, 33),
    "x3d_m": (3, 33),
    "x3d_l": (3, 33),
    "mvit_b": (4, 64),
    "r3d_18": (3, 33),
    "mc3_18": (3, 33),
    "r2plus1d_18": (3, 33),
    "s3d": (8, 33),  # of 7 frames the CPU's gradient is wrong: docs/log.md
    "mvit_v2_s": (4, 64),
    "swin3d_t": (3, 50),
    "swin3d_s": (3, 50),
    "swin3d_b": (3, 50),
    "resnext3d_101": (5, 33),
    "r3d_10": (5, 33),
    "slowfast_tiny": (7, 33),
    "lenet": (3, 33),
    "resnet10": (3, 33),
    "resnet32": (3, 33),
}
QUICK = (
    "r3d_10",
    "slowfast_tiny",
    "slowfast_r50",
    "x3d_s",
    "mc3_18",
    "swin3d_t",
    "mvit_b",
    *IMAGES,
)


def build(name: str, num_frames: int, crop_size: int) -> nn.Module:
    backbone = BACKBONES[name](num_frames=num_frames, crop_size=crop_size)
    assert isinstance(backbone, nn.Module)
    return backbone


@functools.cache
def built_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name, 16, 224)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_tables_of_this_file_name_every_backbone():
    assert sorted(BACKBONES) == sorted([*PUBLISHED, *OURS, *IMAGES]) == sorted(CLIPS)


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_on_meta_as_a_backbone(name):
    backbone = built_on_meta(name)

    assert isinstance(backbone, Backbone)
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())
    assert all(len(values) == 3 for values in backbone.normalization[:2])
    assert backbone.normalization.value_range in (1.0, 255.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name):
    backbone = built_on_meta(name)

    head = nn.Linear(backbone.num_features, 400)

    assert (count(backbone) + count(head)) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.01)


def test_our_small_backbones_have_less_than_a_million_parameters():
    sizes = {name: count(build(name, 16, 64)) for name in OURS}

    # r3d_10 by hand: convolutions of 27 * in * out and of 441 * 16 in the stem, projections of
    # in * out, two numbers a channel and batch norm.
    convolutions = 441 * 16 + 27 * (2 * 16**2 + 3 * 32**2 // 2 + 3 * 64**2 // 2 + 3 * 128**2 // 2)
    projections = 16 * 32 + 32 * 64 + 64 * 128
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64 + 3 * 128)
    assert sizes["r3d_10"] == convolutions + projections + norms
    assert sizes["slowfast_tiny"] < 1_000_000


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLIPS]
)
def test_a_clip_gives_features_and_its_gradient_reaches_every_parameter(name):
    num_frames, crop_size = CLIPS[name]
    torch.manual_seed(0)
    backbone = build(name, num_frames, crop_size)
    clips = torch.randn(2, 3, num_frames, crop_size, crop_size)
    before = clips.clone()

    features = backbone(clips)
    features.square().sum().backward()

    assert features.shape == (2, backbone.num_features)
    assert torch.equal(clips, before)
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in backbone.parameters())


@pytest.mark.parametrize("name", OURS)
def test_no_gradient_of_our_small_backbones_is_zero_throughout(name):
    torch.manual_seed(0)
    backbone = build(name, 8, 32)

    backbone(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()

    assert [n for n, p in backbone.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("name", ["r3d_10", "slowfast_tiny", "x3d_xs", "mc3_18"])
@pytest.mark.parametrize(("num_frames", "crop_size"), [(1, 32), (2, 47), (9, 20)])
def test_convolutional_ones_take_clips_they_were_not_built_for(name, num_frames, crop_size):
    backbone = build(name, 16, 112).eval()

    with torch.no_grad():
        features = backbone(torch.randn(1, 3, num_frames, crop_size, crop_size))

    assert features.shape == (1, backbone.num_features)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("name", "num_frames", "crop_size", "message"),
    [
        ("lenet", 1, 27, r"clip\.crop_size: 27; lenet takes 28 or more"),
        ("s3d", 6, 64, r"clip\.num_frames: 6; s3d takes 7 or more"),
        ("s3d", 8, 31, r"clip\.crop_size: 31; s3d takes 32 or more"),
        ("c2d_r50", 1, 64, r"clip\.num_frames: 1; c2d_r50 takes 2 or more"),
        ("mvit_b", 15, 224, r"clip\.num_frames: 15; mvit_b takes 2 or more and a multiple of 2"),
        ("mvit_b", 16, 112, r"clip\.crop_size: 112; mvit_b takes 32 or more and a multiple of 32"),
        ("mvit_v2_s", 15, 224, r"clip\.num_frames: 15"),
        ("mvit_v2_s", 16, 100, r"clip\.crop_size: 100"),
    ],
)
def test_a_clip_that_a_backbone_cannot_take_is_refused(name, num_frames, crop_size, message):
    with pytest.raises(ConfigError, match=message):
        build(name, num_frames, crop_size)


def test_position_tables_of_swin_are_right_in_windows_smaller_than_published():
    # 6 frames and 50 pixels: maps of 3 x 13, 7, 4 and 2 patches; windows are 8x7x7.
    backbone = build("swin3d_t", 6, 50)
    attention = backbone.net.features[4][0].attn  # third stage: 3x4x4
    table = attention.relative_position_bias_table

    bias = attention.get_relative_position_bias([3, 4, 4])

    # A table row an offset, (dt + 7, dh + 6, dw + 6) in a grid of 15x13x13. Tokens count t, h, w.
    for query, key in (((0, 0, 0), (2, 3, 1)), ((1, 2, 3), (1, 2, 3)), ((2, 3, 3), (0, 1, 0))):
        dt, dh, dw = (q - k for q, k in zip(query, key, strict=True))
        row = ((dt + 7) * 13 + dh + 6) * 13 + dw + 6
        i, j = (16 * t + 4 * h + w for t, h, w in (query, key))
        assert torch.equal(bias[0, :, i, j], table[row])


def test_swin_at_the_published_clip_keeps_torchvisions_index():
    swin = importlib.import_module("torchvision.models.video.swin_transformer")
    reference = swin.ShiftedWindowAttention3d(96, [8, 7, 7], [0, 0, 0], 3)

    attention = build("swin3d_t", 16, 224).net.features[0][1].attn

    assert torch.equal(attention.relative_position_index, reference.relative_position_index)
