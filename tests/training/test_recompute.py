"""Activations that are computed again: the same step, with less kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from cdb_video.errors import ConfigError
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.recompute import recompute_blocks


def pair(backbone: str, *, dropout: float = 0.5) -> tuple[Recognizer, Recognizer, list[str]]:
    """A model, the same one recomputing, and its blocks."""
    torch.manual_seed(0)
    net = BACKBONES[backbone](num_frames=8, crop_size=32)
    plain = Recognizer(net, num_classes={"verb": 3}, dropout=dropout)
    recomputing = copy.deepcopy(plain)
    return plain, recomputing, recompute_blocks(recomputing.backbone)  # type: ignore[arg-type]


def step(model: Recognizer, clips: Tensor) -> int:
    """Forward and backward; the bytes that were kept in between, without the parameters."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(clips)["verb"]
    logits.square().sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize(
    "backbone",
    [
        "slowfast_tiny",
        "resnet32",
        pytest.param("slowfast_r50", marks=pytest.mark.slow),
        pytest.param("mvit_v2_s", marks=pytest.mark.slow),
    ],
)
def test_gradients_and_statistics_are_those_of_the_plain_model(backbone: str) -> None:
    plain, recomputing, _ = pair(backbone)
    generator = torch.Generator().manual_seed(0)

    for _ in range(2):  # statistics move from step to step
        clips = torch.randn(2, 3, 8, 32, 32, generator=generator)
        before = step(plain, clips)
        after = step(recomputing, clips)

    assert after < 0.65 * before
    expected = dict(plain.named_parameters())
    for name, parameter in recomputing.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-6, atol=1e-6)
    # The same names, each batch counted once, running means and variances bit for bit.
    state = plain.state_dict()
    assert recomputing.state_dict().keys() == state.keys()
    for name, buffer in recomputing.named_buffers():
        assert torch.equal(buffer, state[name]), name


def test_blocks_are_the_innermost_ones() -> None:
    _, _, blocks = pair("slowfast_tiny")

    expected = [f"net.{chain}.{i}" for chain in ("slow", "fast", "lateral") for i in range(3)]
    assert sorted(blocks) == sorted(expected)


def test_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.grad_checkpointing=true: .* no chain of blocks"
    ):
        pair("lenet")


def test_evaluation_and_a_copy_of_the_model_work_as_before() -> None:
    plain, recomputing, _ = pair("slowfast_tiny")
    clips = torch.randn(2, 3, 8, 32, 32)
    copied = copy.deepcopy(recomputing)
    with torch.no_grad():
        for parameter in recomputing.parameters():
            parameter.zero_()

    plain.eval(), copied.eval()
    with torch.inference_mode():
        assert torch.equal(copied(clips)["verb"], plain(clips)["verb"])
