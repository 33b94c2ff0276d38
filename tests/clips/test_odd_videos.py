"""Other projects' odd test videos: the frames of a plain decode from the start, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdb_video.clips.decoders import open_video
from cdb_video.errors import DecodeError
from tests.clips.files import decode_all

NO_VIDEO = ("torchcodec/nasa_13013.mp4.audio.mp3", "torchcodec/sine_mono_s16.wav")
LIMIT = 40
"""Frames of a file that are compared."""


def usable_files(shared_data: Path) -> list[Path]:
    folder = shared_data / "odd-videos"
    files = [path for path in sorted(folder.glob("*/*")) if path.is_file()]
    assert len(files) >= 50
    return [path for path in files if str(path.relative_to(folder)) not in NO_VIDEO]


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", NO_VIDEO)
def test_file_without_frames_is_refused_in_one_line_that_names_it(name, decoder, shared_data):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    path = shared_data / "odd-videos" / name

    with pytest.raises(DecodeError) as caught:
        open_video(path, decoder=decoder)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_odd_video_equals_its_sequential_decode(shared_data):
    for path in usable_files(shared_data):
        sequential = decode_all(path, limit=LIMIT)
        with open_video(path) as video:
            length = min(video.num_frames, LIMIT)
            assert len(sequential) == length, path.name
            assert (video.height, video.width) == tuple(sequential.shape[-2:]), path.name
            drawn = torch.randint(length, (8,), generator=torch.Generator().manual_seed(0))
            indices = torch.cat([drawn, drawn[:2], torch.tensor([length - 1, 0])])
            assert torch.equal(video.frames(indices), sequential[indices]), path.name


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_every_odd_video_agrees_within_the_documented_difference(decoder, shared_data):
    pytest.importorskip(decoder)
    same, near, refused = [], [], []
    for path in usable_files(shared_data):
        with open_video(path) as video:
            generator = torch.Generator().manual_seed(1)
            indices = torch.randint(min(video.num_frames, 300), (5,), generator=generator)
            indices = torch.cat([indices, indices[:2], torch.tensor([video.num_frames - 1])])
            expected, times = video.frames(indices).int(), video.times
            neighbours = [
                video.frames((indices + step).clamp(0, video.num_frames - 1)).int()
                for step in (-1, 1)
            ]
        try:
            with open_video(path, decoder=decoder) as video:
                found = video.frames(indices).int()
                difference = (found - expected).abs()
                assert torch.equal(video.times, times), path.name
                for other in neighbours:  # an off-by-one would be nearer to these
                    moved = (other - expected).abs().double().mean((1, 2, 3))
                    away = (found - other).abs().double().mean((1, 2, 3))
                    near_enough = difference.double().mean((1, 2, 3)) <= away
                    assert (near_enough | (moved == 0)).all(), path.name
        except DecodeError as error:  # refusing is always allowed, another frame never
            refused.append((path, str(error)))
            continue
        (near if difference.any() else same).append(path.name)
        # Documented as up to 6 grey levels; 5.1 as measured, of an odd height and width.
        assert difference.double().mean(dim=(1, 2, 3)).max() < 5.5, path.name

    print(f"{decoder}: {len(same)} the same, {len(near)} near, {len(refused)} refused")
    assert all(message.startswith(f"{path}: ") for path, message in refused)
    assert len(same) + len(near) >= 35
    assert len(same) >= 20
    # Frames of 8 bits and even sizes are the same bits; it is the others that are near alone.
    assert {"nasa_13013.mp4", "nasa_13013_rotated.mp4", "testsrc2_h265.mp4"} <= set(same)


def test_frames_before_an_edit_list_are_not_counted(shared_data):
    path = shared_data / "odd-videos" / "torchcodec" / "discard_first_keyframe.mp4"

    with open_video(path) as video:
        assert video.num_frames == 25  # its header says 30
        assert torch.equal(video.frames(torch.arange(25)), decode_all(path))


def test_decord_refuses_a_file_that_it_counts_more_frames_of(shared_data):
    pytest.importorskip("decord")
    path = shared_data / "odd-videos" / "torchcodec" / "discard_first_keyframe.mp4"

    with pytest.raises(DecodeError, match="decord counts 30 frames where 25 are shown"):
        open_video(path, decoder="decord")
