"""The first frame of a segment is the one that FFmpeg's own exact seek shows."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cdb_video.clips.decoders import open_video
from tests.clips.files import pictures, write_pictures

FFMPEG = shutil.which("ffmpeg")
# Each frame is a process that reads the file up to it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg program to compare with"),
]


def ffmpeg_frame(path: Path, start_s: float, size: tuple[int, int]) -> torch.Tensor:
    """(C, H, W) uint8: the first frame that ffmpeg shows from a time on. Size: (height, width)."""
    command = [FFMPEG, "-v", "error", "-nostdin", "-threads", "1", "-ss", f"{start_s}", "-i", path]
    # Else ffmpeg would repeat or leave out frames to keep a constant rate.
    command += ["-frames:v", "1", "-vsync", "passthrough", "-an"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-sws_flags", "bicubic", "-"]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    height, width = size
    return (
        torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
        .reshape(height, width, 3)
        .permute(2, 0, 1)
    )


def assert_same_frames(path: Path, starts: list[float]) -> None:
    with open_video(path) as video:
        for start_s in starts:
            index = video.index_at(start_s)
            [frame] = video.frames(torch.tensor([index]))
            expected = ffmpeg_frame(path, start_s, (video.height, video.width))
            assert torch.equal(frame, expected), (path.name, start_s, index)


def test_frame_at_a_time_is_that_of_an_exact_seek(tmp_path):
    path = write_pictures(tmp_path / "video.mp4", pictures(60, (64, 48)))

    # Frames are 0.04 s apart: on one, between two, the last.
    assert_same_frames(path, [0, 0.04, 0.99, 1.0, 2.359])


def test_segments_of_untrimmed_videos_start_as_an_exact_seek_does(shared_data):
    folder = shared_data / "fir-action"
    with (folder / "segments.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    chosen = rows[:: len(rows) // 20]
    assert len({row["path"] for row in chosen}) >= 10

    for row in chosen:
        assert_same_frames(folder / row["path"], [float(row["start_s"])])
