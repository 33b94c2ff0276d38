"""RandAugment and erasing: the same on every frame, a function of the generator."""

from __future__ import annotations

from pathlib import Path

import torch

from cdb_video.build_clips import build_training_clips
from cdb_video.build_data import read_data
from cdb_video.clips.pixel_changes import GREY, change_pixels
from tests.tiny import tiny_config


def frames() -> torch.Tensor:
    """Four times the same noise."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(256, (1, 3, 24, 24), generator=generator, dtype=torch.uint8)
    return one.expand(4, -1, -1, -1).contiguous()


def change(seed: int, **options: object) -> torch.Tensor:
    known = {"rand_augment": None, "erase": 0.0} | options
    return change_pixels(frames(), **known, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_without_either_nothing_changes() -> None:
    assert torch.equal(change(0), frames())


def test_all_frames_of_a_clip_change_alike_and_clips_differ() -> None:
    found = [change(seed, rand_augment=(2, 15), erase=0.5) for seed in range(8)]

    for clip in found:
        assert (clip.shape, clip.dtype) == ((4, 3, 24, 24), torch.uint8)
        assert all(torch.equal(frame, clip[0]) for frame in clip)
    assert len({clip.numpy().tobytes() for clip in found}) > 5


def test_erasing_makes_one_rectangle_grey() -> None:
    changed = change(1, erase=1.0) != frames()

    where = changed[0].any(0)
    rows, columns = where.any(1), where.any(0)
    assert 0.02 < float(where.double().mean()) < 0.4
    inside = change(1, erase=1.0)[0][:, rows][:, :, columns]
    assert bool((inside == int(GREY)).all())


def test_the_generator_decides_and_torchs_own_goes_on_as_if_nothing_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)

    first = change(3, rand_augment=(2, 9))

    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(change(3, rand_augment=(2, 9)), first)


def test_a_training_clip_is_changed_and_depends_on_its_key_alone(
    tiny_data: Path, tmp_path: Path
) -> None:
    plain, changed = (
        build_training_clips(config, read_data(config).train)
        for config in (
            tiny_config(tiny_data, tmp_path, augment=augment)
            for augment in ({}, {"rand_augment": [2, 20], "erase": 1.0})
        )
    )

    clips = [changed[0, i].clips for i in range(6)]  # type: ignore[index]

    assert all(torch.equal(changed[0, i].clips, clips[i]) for i in range(6))  # type: ignore[index]
    assert not any(torch.equal(plain[0, i].clips, clips[i]) for i in range(6))  # type: ignore[index]
