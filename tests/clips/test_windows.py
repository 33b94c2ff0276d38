"""A window of a frame: the same bits as cut out of the whole, whatever the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdb_video.clips.base import Window
from cdb_video.clips.dataset import ClipSampler
from cdb_video.clips.decoders import open_video
from cdb_video.clips.memory import ClipMemory
from cdb_video.datasets.annotations import VideoRecord
from tests.clips.files import pictures, write_pictures

FRAMES = torch.tensor([4, 1, 1])
ODD = (45, 33)  # (width, height)

# name, size, options of `write_pictures`: FFmpeg converts each of them on another way.
FILES = {
    "even": ("video.mp4", (64, 48), {}),
    "full_range": ("video.mp4", (64, 48), {"color_range": 2}),
    "bt709": ("video.mp4", (64, 48), {"colorspace": 1}),
    "odd_width": ("video.webm", (45, 48), {"codec": "libvpx-vp9"}),
    "odd_height": ("video.webm", (64, 33), {"codec": "libvpx-vp9"}),
    "odd_both": ("video.webm", ODD, {"codec": "libvpx-vp9"}),
    "ten_bits": ("video.mp4", (64, 48), {"pixel_format": "yuv420p10le"}),
    "chroma_422": ("video.mp4", (64, 48), {"pixel_format": "yuv422p"}),
    "chroma_444": ("video.mp4", ODD, {"pixel_format": "yuv444p"}),
}


def windows(height: int, width: int) -> list[Window]:
    """Even and odd edges, the whole, a pixel in each corner of the frame, a row, a column."""
    return [
        Window(0, 0, height, width),
        Window(8, 12, 16, 20),
        Window(7, 11, 15, 19),
        Window(7, 12, 16, 19),
        Window(0, 0, 1, 1),
        Window(height - 1, width - 1, 1, 1),
        Window(height - 1, 0, 1, 1),
        Window(5, 0, 1, width),
        Window(0, width - 1, height, 1),
    ]


def assert_windows_are_cuts(video):
    whole = video.frames(FRAMES)
    assert whole.shape == (3, 3, video.height, video.width)
    assert whole.float().std() > 5, "a flat picture would hide a shift"
    for window in windows(video.height, video.width):
        top, left, height, width = window
        expected = whole[..., top : top + height, left : left + width]
        assert torch.equal(video.frames(FRAMES, window=window), expected), window


@pytest.mark.parametrize("case", FILES)
def test_window_of_a_file_is_a_cut_of_the_whole(case, tmp_path):
    name, size, options = FILES[case]
    path = write_pictures(tmp_path / name, pictures(6, size), **options)

    with open_video(path) as video:
        assert (video.width, video.height) == size
        assert_windows_are_cuts(video)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_window_of_a_turned_file_is_a_cut_of_the_upright_frame(degrees, coded_video):
    with open_video(coded_video(num_frames=6, rotation=degrees)) as video:
        assert (video.width, video.height) == ((64, 48) if degrees == 180 else (48, 64))
        assert_windows_are_cuts(video)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_window_of_another_decoder_is_a_cut_of_the_whole(decoder, tmp_path):
    pytest.importorskip(decoder)
    path = write_pictures(tmp_path / "video.mp4", pictures(6, (64, 48)))

    with open_video(path, decoder=decoder) as video:
        assert_windows_are_cuts(video)


def test_window_of_a_folder_of_frames_is_a_cut_of_the_whole(tmp_path):
    for i, image in enumerate(pictures(6, ODD)):
        Image.fromarray(image).save(tmp_path / f"f_{i}.png")

    with open_video(tmp_path, decoder="frames", fps=25) as video:
        assert (video.width, video.height) == ODD
        assert_windows_are_cuts(video)


def test_window_of_a_video_in_memory_is_a_cut_of_the_whole(tmp_path):
    path = write_pictures(tmp_path / "video.mp4", pictures(6, (64, 48)))
    record = VideoRecord(id="a", video_id="a", recording="a", path=path, labels={"verb": 0})
    memory = ClipMemory(sampler=ClipSampler(num_frames=4, stride=1), short_side=40)

    memory.load([record])

    with memory.open(record) as video:
        assert (video.width, video.height) == (53, 40)
        assert_windows_are_cuts(video)


@pytest.mark.parametrize("case", ["even", "odd_both"])
def test_any_window_and_indices_are_a_cut_of_the_whole(case, tmp_path):
    name, size, options = FILES[case]
    path = write_pictures(tmp_path / name, pictures(12, size), **options)

    with open_video(path) as video:
        whole = video.frames(torch.arange(12))

        @settings(max_examples=15, deadline=None)
        @given(st.data())
        def check(data):
            indices = torch.tensor(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=5)))
            top = data.draw(st.integers(0, video.height - 1))
            left = data.draw(st.integers(0, video.width - 1))
            height = data.draw(st.integers(1, video.height - top))
            width = data.draw(st.integers(1, video.width - left))

            part = video.frames(indices, window=Window(top, left, height, width))

            assert torch.equal(part, whole[indices][..., top : top + height, left : left + width])

        check()


def open_any(kind: str, folder: Path):
    images = pictures(2, (64, 48))
    if kind == "pyav":
        return open_video(write_pictures(folder / "video.mp4", images))
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"f_{i}.png")
    return open_video(folder, decoder="frames", fps=25)


@pytest.mark.parametrize("kind", ["pyav", "frames"])
def test_window_outside_the_frame_is_refused_with_both_sizes(kind, tmp_path):
    outside = [
        Window(0, 0, 49, 64),
        Window(0, 0, 48, 65),
        Window(-1, 0, 8, 8),
        Window(0, -1, 8, 8),
        Window(41, 0, 8, 8),
        Window(0, 57, 8, 8),
        Window(0, 0, 0, 8),
        Window(0, 0, 8, 0),
    ]
    with open_any(kind, tmp_path) as video:
        for window in outside:
            with pytest.raises(ValueError, match=r"Window\(.*not inside a frame of 48 x 64"):
                video.frames(torch.tensor([0]), window=window)
