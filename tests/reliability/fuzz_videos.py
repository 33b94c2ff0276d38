"""Row 12: damaged videos end no process, hang nowhere, and never come out short without a word."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch.utils.data import Dataset

from cdb_video.clips.decoders import open_video
from cdb_video.clips.guarded_loader import GuardedLoader
from cdb_video.clips.watchdog import DecodePolicy
from cdb_video.datasets.annotations import VideoRecord
from tests.clips.files import pictures, write_pictures
from tests.conftest import write_coded_video
from tests.reliability.outcome import Outcome, Row

LIMIT_S = 20.0
"""Of a file: the slowest takes less than one second."""
AT_A_TIME = 200
"""Files that are on the disk."""


@dataclass(frozen=True)
class Decoded:
    """A file that was not refused."""

    shown: int
    """Frames that came."""
    stored: int
    """Frames that the container tells of, counted past our code."""


class AllFrames(Dataset[Decoded]):
    """Every frame of a file, as a loader's process decodes it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> Decoded:
        """A DecodeError where it is refused."""
        path = self.paths[index]
        shown = 0
        with open_video(path) as video:
            for part in torch.arange(video.num_frames).split(64):
                shown += len(video.frames(part))
        return Decoded(shown, stored_frames(path))


def stored_frames(path: Path) -> int:
    """Of the container's own index, where it has one of every frame; else its packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        hidden = sum(packet.is_discard for packet in packets)  # by the file's own edit list
        stored = len(stream.index_entries) if "mp4" in container.format.name else len(packets)
        return stored - hidden


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Damage files and decode them."""
    draw = random.Random(seed)
    sources = write_sources(folder)
    failures = [
        f"{path.name}, undamaged: {result}"
        for path, result in decode_all(sources)
        if kind_of(result) != "decoded"
    ]
    contents = {path: path.read_bytes() for path in sources}
    tally: Counter[str] = Counter()
    slowest = 0.0
    for first in range(0, count, AT_A_TIME):
        jobs = {
            path: how
            for i in range(first, min(first + AT_A_TIME, count))
            for path, how in [damaged(contents, draw, folder / f"{i}")]
        }
        before = time.monotonic()
        for path, result in decode_all(list(jobs)):
            slowest = max(slowest, time.monotonic() - before)
            before = time.monotonic()
            kind = kind_of(result)
            tally[kind] += 1
            if kind in BROKEN:
                failures.append(f"{path.name}, {jobs[path]}: {kind}: {result}")
            path.unlink()
    figures = {kind: float(tally[kind]) for kind in (*BROKEN, "refused", "decoded")}
    return Outcome(count, tuple(failures), {**figures, "slowest_s": slowest})


BROKEN = ("hung", "decoder died", "short without a word")


def kind_of(result: Decoded | str) -> str:
    """The promise that a result breaks, or what else it is."""
    if isinstance(result, Decoded):
        return "decoded" if result.shown >= result.stored else "short without a word"
    if "took longer than" in result:
        return "hung"
    return "decoder died" if "the process that decoded" in result else "refused"


def decode_all(paths: Sequence[Path]) -> Iterator[tuple[Path, Decoded | str]]:
    """Each file in a loader's process, with what came of it; the error is a line."""
    records = [
        VideoRecord(id=path.name, path=path, video_id="", recording="", labels={}) for path in paths
    ]
    loader = GuardedLoader(
        AllFrames(paths),
        records,
        collate=list,
        policy=DecodePolicy(on_error="skip", max_skipped=len(paths), timeout_s=LIMIT_S),
        num_workers=1,
    )
    plan = [[i] for i in range(len(paths))]
    for path, (found, skipped) in zip(paths, loader.batches(plan), strict=True):
        yield path, found[0] if found else skipped[0].message


def write_sources(folder: Path) -> list[Path]:
    """A file of each container that is read, and of the codecs that data sets use."""
    web = folder / "web.mp4"
    plain = write_coded_video(folder / "plain.mp4", num_frames=48)
    header_first(plain, web)
    return [
        plain,
        web,
        write_coded_video(folder / "open.mkv", num_frames=48, open_gop=True),
        write_coded_video(folder / "stream.ts", num_frames=48),
        write_coded_video(folder / "by_order.avi", num_frames=48),
        write_coded_video(folder / "old.avi", num_frames=48, codec="mpeg4", options={}),
        write_coded_video(folder / "old.mpg", num_frames=48, codec="mpeg2video", options={}),
        write_pictures(folder / "vp9.webm", pictures(20, (64, 48)), codec="libvpx-vp9"),
        write_coded_video(
            folder / "hevc.mp4",
            num_frames=24,
            codec="libx265",
            options={"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
        ),
    ]


def header_first(path: Path, target: Path) -> None:
    """The same mp4 with its index before the frames, as files for the web have it."""
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", options={"movflags": "faststart"}) as written,
    ):
        stream = written.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)


def damaged(contents: dict[Path, bytes], draw: random.Random, target: Path) -> tuple[Path, str]:
    """Write a damaged copy of one of the files; its path and what was done."""
    source = draw.choice(list(contents))
    how = draw.choice(list(DAMAGE))
    path = target.with_suffix(source.suffix)
    path.write_bytes(DAMAGE[how](contents[source], draw, contents))
    return path, f"{source.name}, {how}"


def _cut(data: bytes, draw: random.Random, _: object) -> bytes:
    return data[: draw.randrange(1, len(data))]


def _flip(data: bytes, draw: random.Random, _: object) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 10, 100])):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _zero(data: bytes, draw: random.Random, _: object) -> bytes:
    size = draw.choice([64, 512, 4096])
    start = draw.choice([0, draw.randrange(len(data))])
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


def _splice(data: bytes, draw: random.Random, contents: dict[Path, bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = draw.choice(list(contents.values()))
    return data[: draw.randrange(1, len(data))] + other[draw.randrange(len(other)) :]


def _drop(data: bytes, draw: random.Random, _: object) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice([1, 100, 2000]) :]


Damage = Callable[[bytes, random.Random, dict[Path, bytes]], bytes]
DAMAGE: dict[str, Damage] = {
    "cut off": _cut,
    "bits flipped": _flip,
    "page of zeros": _zero,
    "spliced": _splice,
    "part missing": _drop,
}

ROW = Row(
    name="damaged videos",
    promise="a damaged video crashes nothing and hangs nowhere; fewer frames than its container "
    "has never come out without an error",
    measure=measure,
    quick=600,
    full=5000,
)
