"""Each thing that the doctor finds, once, from a real defect of a real file."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cdb_video.clips.dataset import ClipSampler
from cdb_video.prepare.check import check_data, find_files
from cdb_video.prepare.files import Digest, FileCheck, Timing, VideoFile
from cdb_video.prepare.findings import KINDS, Finding
from cdb_video.prepare.splits import same_content
from tests.prepare.made import make_record, make_split

# Each starts processes that import PyTorch. tests/tools/test_check_data.py has the quick one.
pytestmark = pytest.mark.slow

MakeVideo = Callable[..., Path]
CHECK = FileCheck(ClipSampler(num_frames=4, stride=1))


def found(path: Path, *, check: FileCheck = CHECK, **values: Any) -> list[tuple[str, str]]:
    """(kind, message) of what is found in a file with one record."""
    file = VideoFile(path, (("train", make_record(path, **values)),))
    return [(probe.kind, probe.message) for probe in check(file) if isinstance(probe, Finding)]


def packet_places(path: Path) -> list[tuple[int, int]]:
    """(first byte, size) of every video packet."""
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.video[0])
        return [(packet.pos or 0, packet.size) for packet in packets if packet.size]


def header_first(path: Path) -> Path:
    """The same mp4 with its table of packets before them, as files for the web have it."""
    moved = path.with_name(f"web_{path.name}")
    with (
        av.open(str(path)) as source,
        av.open(str(moved), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return moved


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_good_files_are_found_good(coded_video: MakeVideo, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16)).save(frames / f"{i}.jpg")

    assert found(coded_video("a.mp4")) == []
    assert found(coded_video("b.mkv", num_frames=30)) == []
    assert found(coded_video("c.mp4", num_frames=24), start_s=0.25, stop_s=1.0) == []
    assert found(coded_video("d.mp4", rotation=90), check=replace(CHECK, full=True)) == []
    assert found(frames, fps=24.0) == []


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    empty, text, pipe = (tmp_path / name for name in ("empty.mp4", "text.mp4", "pipe.mp4"))
    empty.touch()
    text.write_text("not a video\n" * 100)
    os.mkfifo(pipe)

    assert found(tmp_path / "none.mp4") == [("missing", "no such file")]
    assert found(empty) == [("empty", "the file has no content")]
    [(kind, message)] = found(text)
    assert (kind, "does not open as a video" in message) == ("unreadable", True)
    [(kind, message)] = found(pipe)
    assert (kind, message.endswith("not a regular file")) == ("unreadable", True)


def test_a_file_of_sound_alone_is_unreadable(tmp_path: Path) -> None:
    [(kind, message)] = found(write_sound(tmp_path / "sound.mp4"))

    assert kind == "unreadable"
    assert message.endswith("no video in this file (sound only)")


def test_a_file_without_its_end_is_an_error_wherever_it_was_cut(coded_video: MakeVideo) -> None:
    last_header = coded_video(num_frames=48, b_frames=0)
    first_header = header_first(last_header)
    content, places = first_header.read_bytes(), packet_places(first_header)
    start, size = places[20]

    last_header.write_bytes(last_header.read_bytes()[:1500])
    assert [kind for kind, _ in found(last_header)] == ["unreadable"]
    first_header.write_bytes(content[: start + size // 2])
    assert [kind for kind, _ in found(first_header)] == ["unreadable"]
    # Between two packets: 21 frames that would decode without a complaint.
    first_header.write_bytes(content[: start + size])
    [(kind, message)] = found(first_header)
    assert kind == "unreadable"
    assert message.endswith("damaged or cut off: 21 frames are there of the 48 in its index")


def test_a_matroska_file_without_its_end_is_an_error(coded_video: MakeVideo) -> None:
    path = coded_video("a.mkv", num_frames=240)
    start, _ = packet_places(path)[60]
    path.write_bytes(path.read_bytes()[:start])

    # Nothing of packet 60 is there.
    message = "it claims 10.000 s of video; 60 frames, 2.500 s can be shown"
    assert found(path) == [("cut off", message)]


def test_sound_that_goes_on_after_the_video_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", rate=10), container.add_stream("aac", 16_000)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for _ in range(10):
            image = np.zeros((32, 32, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 64_000), np.float32), "fltp", "mono")
        frame.rate = 16_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))

    [(kind, message)] = found(path)

    assert (kind, KINDS[kind].level) == ("header", "note")
    assert message.startswith("it claims 4.1")
    assert message.endswith("s of video or sound; 10 frames, 1.000 s can be shown")


def test_a_header_that_counts_wrongly_is_noted(coded_video: MakeVideo) -> None:
    path = coded_video("a.avi", codec="mpeg4", options={})
    content = bytearray(path.read_bytes())
    # dwLength of the stream header, 32 bytes into it, behind its name and size.
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 1920)
    path.write_bytes(content)

    [(kind, message)] = found(path)

    assert (kind, KINDS[kind].level) == ("header", "note")
    assert message.startswith("it claims 1920 frames; 10 frames")


@pytest.mark.parametrize(("frame", "full"), [(9, False), (5, False), (7, True)])
def test_a_frame_that_does_not_decode_is_an_error(
    coded_video: MakeVideo, frame: int, full: bool
) -> None:
    # Key frames alone, so that one that is damaged leaves the others whole.
    path = coded_video(gop=1, b_frames=0)
    start, size = packet_places(path)[frame]
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)

    assert [kind for kind, _ in found(path, check=replace(CHECK, full=full))] == ["damaged"]
    if full:
        assert found(path) == []


@pytest.mark.parametrize(
    ("start_s", "stop_s", "kind"),
    [
        (1.0, 2.0, "segment"),  # behind the end
        (0.2, 9.0, "segment"),  # mostly behind the end
        (0.2, 0.6, "segment end"),  # 0.18 s more than there is
        (0.2, 0.45, None),  # a rounded end: less than a frame
        (0.3, 0.3, "segment"),
        (0.3, 0.2, "segment"),
        (0.21, 0.22, "segment"),  # between two frames
    ],
)
def test_segments_are_held_against_the_file(
    coded_video: MakeVideo, start_s: float, stop_s: float, kind: str | None
) -> None:
    # 10 frames at 24 a second: the last is shown from 0.375 s to 0.417 s.
    path = coded_video()

    kinds = [kind for kind, _ in found(path, start_s=start_s, stop_s=stop_s)]

    assert kinds == ([kind] if kind else [])


def test_one_bad_segment_does_not_hide_the_next(coded_video: MakeVideo) -> None:
    path = coded_video()
    good = make_record(path, id="good", start_s=0.0, stop_s=0.2)
    records = [make_record(path, id=f"bad{i}", start_s=i, stop_s=i + 1) for i in (5, 6)]

    file = VideoFile(path, (("train", records[0]), ("val", good), ("test", records[1])))
    probes = [probe for probe in CHECK(file) if isinstance(probe, Finding)]

    assert [(p.split, p.where) for p in probes] == [
        ("train", f"{path}@5-6"),
        ("test", f"{path}@6-7"),
    ]


def test_equal_files_are_found_by_their_content(coded_video: MakeVideo, tmp_path: Path) -> None:
    first, other = coded_video("a.mp4"), coded_video("b.mp4", num_frames=11)
    copies = [tmp_path / "c.mp4", tmp_path / "d.mp4"]
    for copy in copies:
        copy.write_bytes(first.read_bytes())
    changed = bytearray(first.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "e.mp4").write_bytes(changed)
    splits = {
        "train": make_split(make_record(first), make_record(other), make_record(copies[0])),
        "test": make_split(make_record(copies[1]), make_record(tmp_path / "e.mp4")),
    }

    files = find_files(splits)
    digests = {
        file.path: probe.hexdigest
        for file in files
        for probe in CHECK(file)
        if isinstance(probe, Digest)
    }
    findings = list(same_content(files, digests))

    # Only files of one size are read, the changed one among them.
    assert digests.keys() == {first, *copies, tmp_path / "e.mp4"}
    assert [(f.kind, f.level, f.split, f.where) for f in findings] == [
        ("same content", "note", "train", str(copies[0])),
        ("same content in two splits", "error", "train, test", str(copies[1])),
    ]
    assert findings[1].message == f"the same bytes as {first} (train)"


def frames_that_block(folder: Path) -> Path:
    """A folder of frames, one of which is a FIFO: its reader waits for a writer."""
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16)).save(folder / f"{i}.jpg")
    (folder / "2.jpg").unlink()
    os.mkfifo(folder / "2.jpg")
    return folder


def test_a_file_whose_decoder_is_killed_is_named_with_its_segment(tmp_path: Path) -> None:
    frames = frames_that_block(tmp_path / "frames")
    before = multiprocessing.active_children()

    def kill_the_reader() -> None:
        # Opens once the process reads; then it is killed, as for want of memory.
        with (frames / "2.jpg").open("wb"):
            for child in multiprocessing.active_children():
                if child not in before:
                    child.kill()

    record = make_record(frames, start_s=0.0, stop_s=1.0, fps=3.0)
    killer = threading.Thread(target=kill_the_reader)
    killer.start()
    diagnosis = check_data({"val": make_split(record)}, CHECK, timeout_s=600, quiet=True)
    killer.join()

    [finding] = diagnosis.findings
    assert (finding.kind, finding.level) == ("crashed", "error")
    assert finding.where == f"{frames}@0-1"
    assert finding.message.endswith("died: SIGKILL")


def test_a_clip_of_a_training_file_is_timed(coded_video: MakeVideo, tmp_path: Path) -> None:
    record = make_record(coded_video())
    splits = {"val": make_split(make_record(tmp_path / "b.mp4")), "train": make_split(record)}

    files = find_files({role: splits[role] for role in ("train", "val")})
    [timing] = [probe for probe in CHECK(files[0]) if isinstance(probe, Timing)]

    assert [file.timing_seed is not None for file in files] == [True, False]
    assert 0 < timing.index_s < 10
    assert 0 < timing.clip_s < 10
