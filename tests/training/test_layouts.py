"""A training step converts the memory layout of its input, and of nothing after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cdb_video.build import build_trainer
from cdb_video.training.trainer import Trainer
from tests.layouts import LayoutConversions
from tests.tiny import tiny_config

CONVERTING_KERNELS = ("nchwtonhwc", "nhwctonchw", "ncdhwtondhwc", "ndhwctoncdhw", "transpose")
"""In names of CUDA kernels, in lower case and without underscores: cuDNN's own conversions."""


def made(root: Path, output: Path, backbone: str, precision: str, device: str = "cpu") -> Trainer:
    config = tiny_config(
        root,
        output,
        clip={"num_frames": 8, "crop_size": 32, "short_side": 32},
        model={"backbone": backbone},
        train={"device": device, "precision": precision},
    )
    return build_trainer(config, quiet=True)


@pytest.fixture
def two_threads() -> Iterator[None]:
    # With one thread and under 16 clips, PyTorch computes 1x1x1 convolutions on a CPU by another
    # library, channels first.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("slowfast_tiny", "fp32"),
        ("resnet32", "fp32"),
        pytest.param("lenet", "fp32", marks=pytest.mark.slow),
        pytest.param("resnet10", "fp32", marks=pytest.mark.slow),
        pytest.param("slowfast_tiny", "bf16", marks=pytest.mark.slow),
        pytest.param("slowfast_r50", "fp32", marks=pytest.mark.slow),
    ],
)
def test_only_the_input_is_converted(
    tiny_data: Path, tmp_path: Path, backbone: str, precision: str
) -> None:
    trainer = made(tiny_data, tmp_path, backbone, precision)
    batch = next(iter(trainer.loader.epoch(0)))

    with LayoutConversions() as conversions:
        trainer.train_step(batch)

    assert [found.split()[0] for found in conversions.found] == ["aten.addcmul.out"]


def test_a_conversion_is_found() -> None:
    maps = torch.zeros(2, 3, 4, 5, 6)

    with LayoutConversions() as conversions:
        maps.contiguous(memory_format=torch.channels_last_3d)
        torch.nn.functional.conv3d(maps, torch.zeros(2, 3, 1, 1, 1))
        maps + maps

    assert len(conversions.found) == 2

    with LayoutConversions() as conversions:
        images = maps[:, :, 0].contiguous(memory_format=torch.channels_last)
        images[:, :, ::2, ::2] + torch.zeros(2, 3, 3, 3)

    assert len(conversions.found) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["slowfast_tiny", "slowfast_r50"])
def test_no_kernel_of_a_step_converts_layouts(
    tiny_data: Path, tmp_path: Path, backbone: str
) -> None:
    trainer = made(tiny_data, tmp_path, backbone, "auto", device="cuda")
    batch = next(iter(trainer.loader.epoch(0)))
    trainer.train_step(batch)  # kernels are chosen in the first step

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        trainer.train_step(batch)
        torch.cuda.synchronize()

    names = {event.key.lower().replace("_", "") for event in profiled.key_averages()}
    assert names, "the profiler saw no kernel"
    assert [name for name in names if any(part in name for part in CONVERTING_KERNELS)] == []
