"""The probe at the start: which precision is refused, for which layer, and in which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.build import build_trainer
from cdb_video.errors import ConfigError
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone
from cdb_video.models.recognizer import Recognizer
from cdb_video.prepare import precision_probe
from cdb_video.prepare.precision_probe import conv_layers, probe, probed_precision
from tests.tiny import tiny_config

CPU = torch.device("cpu")
PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)


class WrongWeightGradient(nn.Conv3d):
    """Right in fp32; under autocast its weight gradient is that of another input."""

    def forward(self, maps: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            wrong = super().forward(maps.flip(-1).detach())
            return super().forward(maps) - wrong.detach() + wrong
        return super().forward(maps)


class NanResult(nn.Conv3d):
    def forward(self, maps: Tensor) -> Tensor:
        found = super().forward(maps)
        return found * math.nan if torch.is_autocast_enabled("cpu") else found


def model_of(*layers: nn.Module, features: int = 4) -> Recognizer:
    net = nn.Sequential(*layers, GlobalMean())
    backbone = VideoBackbone(net, num_features=features, normalization=PLAIN)
    return Recognizer(backbone, num_classes={"verb": 2})


def checked(model: Recognizer, precision: Any, *, frames: int = 3, backward: bool = True) -> str:
    return probed_precision(
        precision, model, clips=2, num_frames=frames, crop_size=8, backward=backward, quiet=True
    )


def test_every_convolution_is_looked_at_once_at_the_shape_it_gets() -> None:
    model = model_of(
        nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.Conv3d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 4, 3, padding=1),
        nn.Conv3d(4, 4, 3, padding=1, groups=2),
    )

    layers = conv_layers(model, (2, 3, 5, 8, 8))

    # The third is the second again; the last differs by its groups.
    names = [f"backbone.net.{i}" for i in (0, 1, 4)]
    shapes = [(2, 3, 5, 8, 8), (2, 4, 5, 4, 4), (2, 4, 5, 4, 4)]
    assert [layer.name for layer in layers] == names
    assert [layer.input_shape for layer in layers] == shapes


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_shapes_are_found_without_computing_for_every_backbone(backbone: str) -> None:
    with torch.device("meta"):
        net = BACKBONES[backbone](num_frames=16, crop_size=64)
        model = Recognizer(net, num_classes={"verb": 2})

    # Swin's only one, the patch embedding, runs as a linear layer.
    assert bool(conv_layers(model, (1, 3, 16, 64, 64))) != backbone.startswith("swin3d")


def test_a_wrong_weight_gradient_is_refused_by_name() -> None:
    model = model_of(nn.Conv3d(3, 4, 1), WrongWeightGradient(4, 4, 3, padding=1))

    with pytest.raises(ConfigError) as error:
        checked(model, "bf16")

    message = str(error.value)
    assert message.startswith(
        "train.precision=bf16: bf16 on the CPU is wrong here: weight gradient"
    )
    assert "backbone.net.1 (input 2x4x3x8x8)" in message
    assert f"torch {torch.__version__}" in message
    assert "use train.precision=fp32" in message
    assert "\n" not in message


def test_what_is_not_finite_is_wrong_and_the_forward_pass_is_checked_without_gradients() -> None:
    model = model_of(NanResult(3, 4, 1))

    with pytest.raises(ConfigError, match=r"result not finite in backbone\.net\.0"):
        checked(model, "bf16", backward=False)
    assert checked(model, "fp32") == "fp32"
    assert checked(model, "auto") == "fp32"  # on a CPU


def test_without_gradients_a_wrong_one_does_not_matter() -> None:
    model = model_of(WrongWeightGradient(3, 4, 3, padding=1))
    with torch.no_grad():
        model.backbone.net[0].weight.zero_()  # the probe has weights of its own

    assert checked(model, "bf16", backward=False) == "bf16"


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_bf16_on_this_cpu_is_judged_as_a_plain_comparison_judges_it(frames: int) -> None:
    # torch 2.15.0 with oneDNN 3.13.3 has garbage in the weight gradient of 3x3x3 kernels at T = 2.
    layer = conv_layers(model_of(nn.Conv3d(3, 4, 3, padding=1)), (1, 3, frames, 8, 8))[0]
    assert (probe(layer, CPU, "bf16", backward=True).wrong is None) == sound(frames)


def sound(frames: int) -> bool:
    """Whether bf16's weight gradient is fp32's to 2 % in eight tries, each in used memory."""
    found = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        clips = torch.randn(1, 3, frames, 8, 8, generator=generator)
        weight = torch.randn(4, 3, 3, 3, 3, generator=generator, requires_grad=True)
        expected = torch.autograd.grad(F.conv3d(clips, weight, padding=1).square().sum(), weight)[0]
        used = [torch.full((4**n,), math.nan) for n in range(4, 11)]
        del used
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = F.conv3d(clips, weight, padding=1)
        gradient = torch.autograd.grad(result.float().square().sum(), weight)[0]
        found.append(float((gradient - expected).norm() / expected.norm()))
    return all(error < 0.02 for error in found)


def test_training_starts_with_the_probe(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No rounding is small enough: every layer is wrong.
    monkeypatch.setattr(precision_probe, "LARGEST_ERROR", 0.0)
    config = tiny_config(tiny_data, tmp_path, train={"precision": "bf16"})

    with pytest.raises(ConfigError, match=r"bf16 on the CPU is wrong here: result off by 0 %"):
        build_trainer(config, quiet=True)


def test_slow_is_said_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision_probe, "SLOW", 0.0)
    model = model_of(nn.Conv3d(3, 4, 3, padding=1))

    found = probed_precision("bf16", model, clips=1, num_frames=4, crop_size=8, backward=True)

    assert found == "bf16"
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "times as long as fp32, the most in backbone.net.0" in said


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_slowfast_passes_on_this_gpu(precision: Any) -> None:
    net = BACKBONES["slowfast_r50"](num_frames=32, crop_size=224)
    model = Recognizer(net, num_classes={"verb": 2}).cuda()

    found = probed_precision(
        precision, model, clips=4, num_frames=32, crop_size=224, backward=True, quiet=True
    )

    assert found == precision
