"""The slow pathway's frames, and that callers' tensors are left alone."""

import pytest
import torch

from cdb_video.models.backbones import BACKBONES
from cdb_video.models.slowfast import slow_indices
from cdb_video.models.tiny import slowfast_tiny


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        # linspace(0, 31, 8): steps of 31 / 7 = 4.43, cut to whole frames.
        (32, [0, 4, 8, 13, 17, 22, 26, 31]),
        (16, [0, 5, 10, 15]),
        (9, [0, 4, 8]),
        (7, [0, 6]),
        (4, [0]),
        (1, [0]),
    ],
)
def test_slow_frames_are_a_quarter_and_reach_the_last_frame(num_frames, expected):
    assert slow_indices(num_frames).tolist() == expected


@pytest.mark.parametrize("num_frames", range(1, 20))
def test_pathways_meet_at_every_clip_length(num_frames):
    backbone = slowfast_tiny(num_frames=16, crop_size=32).eval()

    with torch.no_grad():
        features = backbone(torch.randn(1, 3, num_frames, 16, 16))

    assert features.shape == (1, backbone.num_features)


def test_frames_that_only_the_fast_pathway_sees_change_only_its_input():
    backbone = slowfast_tiny(num_frames=8, crop_size=16).eval()
    seen = []
    backbone.net.register_forward_pre_hook(lambda _, inputs: seen.append(list(inputs[0])))
    clip = torch.randn(1, 3, 8, 16, 16)
    changed = clip.clone()
    changed[:, :, 3] += 1  # slow frames of 8 are 0 and 7

    with torch.no_grad():
        first, second = backbone(clip), backbone(changed)

    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(first, second)


def test_the_same_clips_tensor_gives_the_same_features_twice():
    # pytorchvideo's multi-path forward writes into the list it is given.
    backbone = BACKBONES["slowfast_r50"](num_frames=8, crop_size=32).eval()
    clips = torch.randn(1, 3, 8, 32, 32)
    before = clips.clone()

    with torch.no_grad():
        first, second = backbone(clips), backbone(clips)

    assert torch.equal(first, second)
    assert torch.equal(clips, before)
    assert clips.shape == (1, 3, 8, 32, 32)
