"""Coded videos: real files whose frame i shows the number i, so a wrong frame is a wrong number."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

# Two test processes, and the tools that they start, with two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Three digits of base 16 in three bars, each a grey 16 levels from the next: coding moves a bar by
# two or three levels, so a misread needs an error of eight.
BASE, STEP = 16, 16
TICKS = 90_000  # a second, for the times of coded frames

MakeVideo = Callable[..., Path]


@pytest.fixture
def coded_video(tmp_path: Path) -> MakeVideo:
    """`coded_video(name="video.mp4", **options) -> Path`; options: see `write_coded_video`."""

    def make(name: str = "video.mp4", **options: object) -> Path:
        return write_coded_video(tmp_path / name, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def read_code() -> Callable[[Tensor], list[int]]:
    """`read_code(frames) -> list[int]`: the numbers that frames (T, C, H, W) uint8 show."""
    return decode_bars


def write_coded_video(
    path: Path,
    *,
    num_frames: int = 10,
    fps: float = 24,
    times: Sequence[float] | None = None,
    start_s: float = 0.0,
    gop: int = 12,
    b_frames: int = 2,
    open_gop: bool = False,
    size: tuple[int, int] = (64, 48),
    rotation: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video; the container follows the name's suffix.

    Args:
        path: where to; its folder must be there.
        num_frames: up to 4096.
        fps: frames a second, unless `times` are given.
        times: seconds at which each frame is shown, for a variable rate.
        start_s: shifts every time.
        gop: frames from one key frame to the next.
        b_frames: frames in a row that also depend on a later one.
        open_gop: let frames depend on the key frame after them and the group before it.
        size: (width, height), even.
        rotation: clockwise quarter turn in degrees that a player has to apply (mp4 and mov).
        codec: an encoder of FFmpeg.
        options: its options, in place of the ones for libx264.
    """
    if times is None:
        times = [i / fps for i in range(num_frames)]
    if options is None:
        options = {
            "crf": "12",
            "preset": "veryfast",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}"
            f":b-adapt=0:open-gop={int(open_gop)}:threads=1",
        }
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        # AVI and MPEG count frames; they have no finer times.
        counts = path.suffix == ".avi" or codec == "mpeg2video"
        unit = Fraction(fps) ** -1 if counts else Fraction(1, TICKS)
        stream.codec_context.time_base = unit
        stream.options = options
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(coded_image(i, size), format="rgb24")
            frame.time_base = unit
            frame.pts = round((start_s + seconds) / unit)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        _rotate(path, rotation)
    return path


def coded_image(code: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """(H, W, 3) uint8: a red mark in the top left corner, the code in three grey bars below."""
    width, height = size
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    image[: height // 3, : width // 3] = (255, 0, 0)
    for bar in range(3):
        digit = code // BASE**bar % BASE
        left, right = width * bar // 3, width * (bar + 1) // 3
        image[height // 2 :, left:right] = digit * STEP + STEP // 2
    return image


def decode_bars(frames: Tensor) -> list[int]:
    """Read the numbers that frames (T, C, H, W) uint8 show."""
    height, width = frames.shape[-2:]
    codes = [0] * len(frames)
    for bar in range(3):
        middle = width * (2 * bar + 1) // 6
        patch = frames[:, :, height * 3 // 4 - 2 : height * 3 // 4 + 2, middle - 2 : middle + 2]
        for i, grey in enumerate(patch.double().mean(dim=(1, 2, 3)).tolist()):
            codes[i] += round((grey - STEP / 2) / STEP) * BASE**bar
    return codes


VERBS, NOUNS = ("open", "close"), ("cup", "pot", "bowl")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips.csv (path, verb, noun, split) and its videos: 12 train, 7 val, 5 test.

    Verbs are shades and nouns are colours, so a tiny network learns them in a few steps. Read-only.
    """
    folder = tmp_path_factory.mktemp("tiny_data")
    rows = ["path,verb,noun,split"]
    for split, count in {"train": 12, "val": 7, "test": 5}.items():
        for i in range(count):
            verb, noun = i % len(VERBS), i % len(NOUNS)
            name = f"{split}_{i}.mp4"
            write_coloured_video(folder / name, channel=noun, level=90 + 120 * verb + i)
            rows.append(f"{name},{VERBS[verb]},{NOUNS[noun]},{split}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_coloured_video(path: Path, *, channel: int, level: int, num_frames: int = 8) -> Path:
    """Write frames of one colour that pulse a little, 32x24 pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(num_frames):
            image = np.full((24, 32, 3), 40, dtype=np.uint8)
            image[..., channel] = level + i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of other people's data sets, beside the repository; skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CDB_VIDEO_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set CDB_VIDEO_TEST_DATA to its folder")
    return folder


def _rotate(path: Path, degrees: int) -> None:
    """Write a display matrix into the track header (ISO/IEC 14496-12, 8.3.2)."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(data)
