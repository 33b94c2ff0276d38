"""Re-encoded files: the same frames at the same times, smaller, in the same colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from cdb_video.clips.decoders import open_video
from cdb_video.clips.index import open_container, packet_index
from cdb_video.errors import DecodeError
from cdb_video.prepare.reencode import Encoded, Settings, planned_size, reencode, verify
from tests.conftest import MakeVideo

VARIABLE = [0.0, 0.05, 0.1, 0.4, 0.45, 0.5, 1.3, 1.35, 1.4, 1.45]


def reencoded(source: Path, settings: Settings | None = None) -> Path:
    """The new file, verified as the tool does it."""
    target = source.with_name("target.mp4")
    steps = reencode(source, target, settings or Settings(preset="superfast"))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            verify(target, end.value)
            return target


# Every container numbers and times in its own way; the last show frames before a key frame, hide
# references, have no presentation times, or start late.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("video.mp4", {"num_frames": 70, "fps": 30000 / 1001}),
        ("video.mkv", {"num_frames": 40, "fps": 30000 / 1001}),
        ("video.mkv", {"times": VARIABLE, "gop": 4, "start_s": 2.5}),
        ("video.mp4", {"num_frames": 1}),
        ("video.ts", {"num_frames": 40, "open_gop": True}),
        ("video.avi", {"num_frames": 40, "b_frames": 2, "fps": 25}),
        (
            "video.webm",
            {
                "num_frames": 40,
                "codec": "libvpx",
                "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "4", "b": "2M"},
            },
        ),
    ],
    ids=["mp4", "mkv", "variable_rate", "one_frame", "open_gop", "avi_b_frames", "vp8_hidden"],
)
def test_the_same_frames_are_shown_at_the_same_times(
    name: str,
    options: dict[str, object],
    coded_video: MakeVideo,
    read_code: Callable[[Tensor], list[int]],
) -> None:
    source = coded_video(name, **options)

    target = reencoded(source)

    with open_video(source) as before, open_video(target) as after:
        everything = torch.arange(before.num_frames)
        assert read_code(after.frames(everything)) == everything.tolist()
        torch.testing.assert_close(after.times, before.times, rtol=0, atol=1e-6)


def test_a_constant_rate_stays_constant_to_the_bit(coded_video: MakeVideo) -> None:
    source = coded_video(num_frames=50, fps=30000 / 1001)

    with open_video(source) as before, open_video(reencoded(source)) as after:
        assert torch.equal(after.times, before.times)
        assert after.fps == before.fps


def test_key_frames_come_every_gop_and_sound_is_dropped(coded_video: MakeVideo) -> None:
    source = coded_video(num_frames=70, gop=12)

    target = reencoded(source, Settings(gop=32, preset="superfast"))

    container, stream = open_container(target)
    with container:
        assert [other.type for other in container.streams] == ["video"]
        index = packet_index(container, stream)
        container.seek(0)
        assert stream.codec_context.name == "h264"
        assert next(container.decode(stream)).format.name == "yuv420p"
    assert index is not None
    assert not index.open_gop
    # Frames 0, 32 and 64 are the key frames: frame i decodes from the i // 32-th.
    assert index.key.tolist() == [i // 32 for i in range(70)]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright_and_their_shorter_side_is_as_asked(
    degrees: int, coded_video: MakeVideo
) -> None:
    source = coded_video(num_frames=3, size=(128, 96), rotation=degrees)

    with open_video(reencoded(source, Settings(short_side=48, crf=12))) as video:
        after = video.frames(torch.tensor([1])).float()
    with open_video(source) as video:
        before = video.frames(torch.tensor([1])).float()

    assert after.shape[2:] == ((64, 48) if degrees in (90, 270) else (48, 64))
    halved = torch.nn.functional.avg_pool2d(before, 2)
    # Means over a quarter of the frame: a turn by another angle would move the red corner.
    quarters = [torch.nn.functional.adaptive_avg_pool2d(clip, 2) for clip in (after, halved)]
    torch.testing.assert_close(*quarters, rtol=0, atol=4)


@pytest.mark.parametrize(
    ("matrix", "full"), [("bt709", 0), ("bt709", 1), ("smpte170m", 0), ("smpte170m", 1), (None, 0)]
)
def test_colours_are_those_of_the_source(matrix: str | None, full: int, tmp_path: Path) -> None:
    source = write_colours(tmp_path / "source.mp4", matrix=matrix, full=full)

    target = reencoded(source, Settings(short_side=64, crf=12))

    with open_video(source) as before, open_video(target) as after:
        shown = [video.frames(torch.tensor([2])).float() for video in (before, after)]
    # A column each; BT.601 taken for BT.709 would be 20 levels off, the range about 15.
    columns = [torch.nn.functional.adaptive_avg_pool2d(clip, (1, 16))[..., 1::4] for clip in shown]
    torch.testing.assert_close(*columns, rtol=0, atol=3)


def write_colours(path: Path, *, matrix: str | None, full: int) -> Path:
    """Four columns of strong colours, whose bytes mean what the tags say."""
    column = [(90, 110, 200), (140, 60, 90), (60, 180, 110), (200, 128, 128)]
    tags = f":colormatrix={matrix}" if matrix else ""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.color_range = 1 + full
        stream.options = {"crf": "8", "x264-params": f"threads=1{tags}"}
        for _ in range(4):
            planes = [
                np.repeat(np.array([c[i] for c in column], np.uint8), width // 4)[None]
                .repeat(height, 0)
                .reshape(-1, 128)
                for i, (height, width) in enumerate([(96, 128), (48, 64), (48, 64)])
            ]
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.concatenate(planes), format="yuv420p"))
            )
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1080, 1920), (256, 456)),  # 455.1 -> 456, the nearest even number
        ((1920, 1080), (456, 256)),
        ((480, 640), (256, 342)),  # 341.3
        ((256, 341), (256, 340)),  # not larger: only made even
        ((101, 99), (100, 98)),
        ((257, 257), (256, 256)),
        ((1, 1), (2, 2)),
    ],
)
def test_sizes_are_even_and_never_larger(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert planned_size(*size, short_side=256) == expected


def test_a_damaged_source_is_refused_where_it_is_damaged(coded_video: MakeVideo) -> None:
    source = coded_video(num_frames=30, gop=10)
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos]
    data = bytearray(source.read_bytes())
    position, size = packets[10]  # the second key frame
    data[position + 4 : position + size] = bytes(size - 4)
    source.write_bytes(data)

    with pytest.raises(DecodeError, match=r"video\.mp4: "):
        reencoded(source)


def test_a_file_that_shows_something_else_is_not_verified(coded_video: MakeVideo) -> None:
    path = coded_video(num_frames=10, fps=24)
    times = torch.arange(10, dtype=torch.float64) / 24

    verify(path, Encoded(times, 24, height=48, width=64))
    for wrong, message in [
        (Encoded(times[:9], 24, height=48, width=64), "10 frames were written of 9"),
        (Encoded(times + 1e-4 * times, 24, height=48, width=64), "from its time"),
        (Encoded(times, 24, height=48, width=62), r"frames of \(48, 64\)"),
    ]:
        with pytest.raises(DecodeError, match=message):
            verify(path, wrong)
