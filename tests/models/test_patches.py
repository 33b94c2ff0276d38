"""Patches by a linear layer, and positions of another grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdb_video.models.patches import PatchLinear, use_patch_linear
from cdb_video.models.positions import resize_positions


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), (2, 3, 6, 8, 12)),
        (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=False), (1, 3, 5, 9, 11)),  # a rest
        (nn.Conv2d(3, 8, 4, stride=4), (3, 3, 8, 12)),
    ],
)
def test_it_is_the_convolution_with_its_parameters_and_gradients(
    conv: nn.Conv3d | nn.Conv2d, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(shape)
    expected = conv(pixels)
    expected.square().sum().backward()
    assert conv.weight.grad is not None
    gradient = conv.weight.grad.clone()
    conv.zero_grad()
    linear = PatchLinear(conv)

    found = linear(pixels)
    found.square().sum().backward()

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, gradient, rtol=1e-4, atol=1e-4)
    assert list(linear.state_dict()) == list(conv.state_dict())


def test_only_convolutions_that_cut_patches_are_replaced() -> None:
    net = nn.Sequential(
        nn.Conv3d(3, 4, 2, stride=2),
        nn.Conv3d(4, 4, 3, stride=2),
        nn.Conv3d(4, 4, 1),
        nn.Conv3d(4, 4, 2, stride=2, groups=4),
        nn.Conv3d(4, 4, 2, stride=2, padding=1),
    )

    use_patch_linear(net)

    assert [type(part).__name__ for part in net] == ["PatchLinear", *["Conv3d"] * 4]


def test_positions_of_a_plane_stay_on_it() -> None:
    # A table that grows by 1 a frame, 10 a row, 100 a column: interpolated at the centres of the
    # new grid's patches, inside the old one's.
    def plane(frames: int, rows: int, columns: int) -> torch.Tensor:
        t, y, x = (
            ((torch.arange(n) + 0.5) * whole / n - 0.5)
            for n, whole in ((frames, 4), (rows, 8), (columns, 8))
        )
        return t[:, None, None] + 10 * y[None, :, None] + 100 * x[None, None]

    table = plane(4, 8, 8).reshape(1, -1, 1)
    token = torch.full((1, 1, 1), -7.0)

    found = resize_positions(torch.cat([token, table], 1), (4, 8, 8), (8, 16, 4), prefix=1)

    assert found[0, 0] == -7
    inside = found[0, 1:, 0].reshape(8, 16, 4)[1:-1, 4:-4, 1:-1]
    # torch's bicubic kernel misses a slope by up to 1 % of a step; one place off is 10 or 100.
    torch.testing.assert_close(inside, plane(8, 16, 4)[1:-1, 4:-4, 1:-1], rtol=0, atol=1)


def test_the_same_grid_is_left_as_it_is_and_another_length_refused() -> None:
    table = torch.randn(1, 1 + 8, 3)

    assert resize_positions(table, (2, 2, 2), (2, 2, 2), prefix=1) is table
    with pytest.raises(ValueError, match="is no table of 0"):
        resize_positions(table, (2, 2, 2), (4, 2, 2))
