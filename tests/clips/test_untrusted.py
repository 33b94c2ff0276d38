"""Videos of strangers: what is refused before it is decoded, and what a process may take."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cdb_video.clips import untrusted
from cdb_video.clips.base import Window
from cdb_video.clips.child import FILE_BYTES, MEMORY_BYTES, ChildDecoder
from cdb_video.clips.decoders import open_video
from cdb_video.clips.untrusted import FFMPEG_FLOORS, is_mended, refuse_size
from cdb_video.errors import ConfigError, DecodeError

MakeVideo = Callable[..., Path]
DEADLINE_S = 20.0
"""Far more than a decode takes."""


def write_one_frame(path: Path, *, codec: str, pixel_format: str, side: int = 64) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = side
        stream.pix_fmt = pixel_format
        image = np.zeros((side, side, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_lying_header(path: Path, *, side: int) -> Path:
    """An AVI that tells of 64x64 pixels and holds a JPEG of another size."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width = encoder.height = side
    encoder.pix_fmt = "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    image = np.zeros((side, side, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    return path


def first_frame(path: Path, **options: object) -> torch.Tensor:
    with open_video(path, **options) as video:  # type: ignore[arg-type]
        return video.frames(torch.tensor([0]))


def test_a_codec_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    path = write_one_frame(tmp_path / "a.avi", codec="magicyuv", pixel_format="gbrp")

    assert first_frame(path).shape == (1, 3, 64, 64)
    with pytest.raises(DecodeError, match=r"a\.avi: data\.untrusted: codec magicyuv; allowed are"):
        first_frame(path, untrusted=True)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("b.webm", "libvpx"),
        ("a.mov", "mpeg4"),
    ],
)
def test_usual_codecs_are_on_the_list(name: str, codec: str, tmp_path: Path) -> None:
    path = write_one_frame(tmp_path / name, codec=codec, pixel_format="yuv420p")

    assert first_frame(path, untrusted=True).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.mov", "frames of 3104x3104 pixels; at most 9,437,184"),
        ("a.avi", "frames of unknown size, or of more than 9,437,184 pixels"),
    ],
)
def test_a_large_frame_is_refused_by_its_header(name: str, message: str, tmp_path: Path) -> None:
    path = write_one_frame(tmp_path / name, codec="mjpeg", pixel_format="yuvj420p", side=3104)

    with pytest.raises(DecodeError, match=message):
        first_frame(path, untrusted=True)


def test_a_large_frame_behind_a_small_header_is_not_decoded(tmp_path: Path) -> None:
    path = write_lying_header(tmp_path / "a.avi", side=3104)

    assert first_frame(path).shape == (1, 3, 3104, 3104)
    with pytest.raises(DecodeError, match=r"a\.avi: "):
        first_frame(path, untrusted=True)


def test_too_many_frames_are_refused_before_a_decode() -> None:
    path = Path("a.mp4")
    refuse_size(path, height=1080, width=1920, num_frames=500_000)

    with pytest.raises(DecodeError, match="1,000,001 frames of 16x16"):
        refuse_size(path, height=16, width=16, num_frames=1_000_001)
    with pytest.raises(DecodeError, match="300,000 frames of 3840x2160"):
        refuse_size(path, height=2160, width=3840, num_frames=300_000)


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ("8.1.2", True),
        ("8.1.1", False),
        ("8.0.3", True),
        ("n8.0.2-12-gabc", False),
        ("7.1.5", True),
        ("7.1", False),
        ("7.0.9", False),
        ("4.1.6", False),
        ("9.0", True),
        ("8.2", True),
        ("N-12345-gabcdef", False),
        ("", False),
    ],
)
def test_versions_of_ffmpeg(version: str, mended: bool) -> None:
    assert is_mended(version) is mended


def test_an_old_ffmpeg_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    untrusted.refuse_old_ffmpeg()
    newer = ((*FFMPEG_FLOORS[0][:2], 99), (99, 0, 0))
    monkeypatch.setattr(untrusted, "FFMPEG_FLOORS", newer)

    with pytest.raises(ConfigError, match=r"^data\.untrusted=true: PyAV .* needed is 8\.1\.99"):
        untrusted.refuse_old_ffmpeg()


def test_other_decoders_are_not_for_strangers(coded_video: MakeVideo) -> None:
    with pytest.raises(ValueError, match="untrusted videos are for pyav alone"):
        open_video(coded_video(), decoder="decord", untrusted=True)


def test_an_untrusted_folder_of_frames_holds_images_of_its_own(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (16, 12)).save(frames / "0.jpg")
    Image.new("RGB", (16, 12)).save(tmp_path / "1.jpg")
    assert first_frame(frames, decoder="frames", fps=5, untrusted=True).shape == (1, 3, 12, 16)

    (frames / "1.jpg").symlink_to(tmp_path / "1.jpg")

    assert first_frame(frames, decoder="frames", fps=5).shape == (1, 3, 12, 16)
    with pytest.raises(DecodeError, match=r"1\.jpg: data\.untrusted: a link out of its folder"):
        first_frame(frames, decoder="frames", fps=5, untrusted=True)


def test_an_image_of_another_kind_is_refused_whatever_its_name(tmp_path: Path) -> None:
    # Pillow would start Ghostscript to read it.
    Image.new("RGB", (16, 12)).save(tmp_path / "0.eps")
    (tmp_path / "0.eps").rename(tmp_path / "0.jpg")

    with pytest.raises(DecodeError, match=r"0\.jpg: not an image; JPEG, PNG, WEBP are read"):
        first_frame(tmp_path, decoder="frames", fps=5)


def test_a_child_shows_the_same_frames(coded_video: MakeVideo) -> None:
    path, indices, window = (
        coded_video(num_frames=30),
        torch.tensor([7, 2, 2, 29]),
        Window(3, 5, 21, 31),
    )

    with (
        open_video(path) as here,
        open_video(path, untrusted=True, deadline_s=DEADLINE_S) as there,
    ):
        assert torch.equal(there.times, here.times)
        assert (there.fps, there.height, there.width) == (here.fps, here.height, here.width)
        for part in (None, window):
            assert torch.equal(
                there.frames(indices, window=part), here.frames(indices, window=part)
            )
            for one, other in zip(
                there.planes(indices, window=part), here.planes(indices, window=part), strict=True
            ):
                assert torch.equal(one, other)


def test_a_child_refuses_as_its_decoder_does(coded_video: MakeVideo, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")

    with pytest.raises(DecodeError, match=r"text\.mp4: not a video file of a format that is read"):
        open_video(text, deadline_s=DEADLINE_S)
    with (
        open_video(coded_video(num_frames=4), deadline_s=DEADLINE_S) as video,
        pytest.raises(IndexError, match="frame 4 of a video of 4 frames"),
    ):
        video.frames(torch.tensor([4]))


def hang() -> None:
    # PyDLL keeps the interpreter's lock: no Python code of the process runs any more.
    ctypes.PyDLL(None).sleep(1000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_memory() -> None:
    bytearray(2 * MEMORY_BYTES)


def fill_the_disk() -> None:
    Path("filled").write_bytes(bytes(FILE_BYTES + 1))


def open_everything() -> None:
    for _ in range(100):
        os.open("/dev/null", os.O_RDONLY)


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        (hang, r"a\.mp4: took longer than 0\.3 s to decode \(data\.decode_timeout_s\)"),
        (die, r"a\.mp4: the process that decoded it died \(SIGKILL\)"),
        (fill_the_memory, r"a\.mp4: needs more memory than a video may take"),
        (fill_the_disk, r"a\.mp4: File too large"),
        (open_everything, r"a\.mp4: Too many open files"),
    ],
)
def test_what_a_process_does_ends_it_alone(
    deed: Callable[[], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()

    with pytest.raises(DecodeError, match=f"^{message}$"):
        ChildDecoder(
            Path("a.mp4"),
            deed,  # type: ignore[arg-type]
            deadline_s=0.3 if deed is hang else DEADLINE_S,
            limited=True,
        )

    assert time.monotonic() - start < DEADLINE_S / 2
    assert not Path("filled").exists() or Path("filled").stat().st_size <= FILE_BYTES


def test_limits_are_set_where_a_process_may_not_dump_its_core_anyway() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from cdb_video.clips.child import FILE_BYTES, limit_process
limit_process()
print(resource.getrlimit(resource.RLIMIT_FSIZE)[0] == FILE_BYTES)
print(resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "True"]
