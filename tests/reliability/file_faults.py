"""Faults of files and splits, for the doctor to find; each adds a row of its own to clips.csv."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import write_coded_video
from tests.prepare.test_check import packet_places, write_sound
from tests.reliability.fuzz_videos import header_first
from tests.reliability.line_faults import Fault


def _row(
    root: Path,
    name: str,
    *,
    split: str = "train",
    times: str = "0,0.5",
    id: str = "",
    verb: str = "open",
) -> None:
    with (root / "clips.csv").open("a") as file:
        file.write(f"{name},{id or name},{times},{verb},{name},{split}\n")


def _add(root: Path, name: str, draw: random.Random, **values: Any) -> Path:
    """A video with its row."""
    _row(root, name, **values)
    return write_coded_video(root / name, num_frames=draw.randrange(60, 200), b_frames=0)


def _missing(root: Path, draw: random.Random) -> str:
    _row(root, "missing.mp4")
    return "missing: ... missing.mp4"


def _empty(root: Path, draw: random.Random) -> str:
    _row(root, "empty.mp4")
    (root / "empty.mp4").touch()
    return "empty: ... empty.mp4"


def _text(root: Path, draw: random.Random) -> str:
    _row(root, "text.mp4")
    (root / "text.mp4").write_text("not a video\n" * draw.randrange(10, 1000))
    return "unreadable: ... text.mp4"


def _playlist(root: Path, draw: random.Random) -> str:
    _row(root, "playlist.mp4")
    (root / "playlist.mp4").write_text("ffconcat version 1.0\nfile 0.mp4\n")
    return "unreadable: ... playlist.mp4"


def _pipe(root: Path, draw: random.Random) -> str:
    _row(root, "pipe.mp4")
    os.mkfifo(root / "pipe.mp4")
    return "unreadable: ... pipe.mp4"


def _sound(root: Path, draw: random.Random) -> str:
    _row(root, "sound.mp4")
    write_sound(root / "sound.mp4")
    return "unreadable: ... sound.mp4 ... sound only"


def _cut(root: Path, draw: random.Random) -> str:
    plain = _add(root, "plain.mp4", draw)
    _row(root, "cut.mp4")
    header_first(plain, root / "cut.mp4")
    start, size = draw.choice(packet_places(root / "cut.mp4")[5:-5])
    content = (root / "cut.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(content[: start + draw.choice([0, size // 2])])
    return "unreadable: ... cut.mp4 ... cut off"


def _cut_matroska(root: Path, draw: random.Random) -> str:
    path = _add(root, "cut.mkv", draw, times="0,0.1")
    start, _ = draw.choice(packet_places(path)[4:20])
    path.write_bytes(path.read_bytes()[:start])
    return "cut off: ... cut.mkv"


def _damaged(root: Path, draw: random.Random) -> str:
    path = _add(root, "damaged.mp4", draw, times="0,2")
    places = packet_places(path)
    start, size = places[draw.randrange(1, 40)]
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(size) + content[start + size :])
    return "damaged: ... damaged.mp4"


def _outside(root: Path, draw: random.Random) -> str:
    _add(root, "outside.mp4", draw, times="100,101")
    return "segment: ... outside.mp4"


def _past_the_end(root: Path, draw: random.Random) -> str:
    _add(root, "past.mp4", draw, times="0,100")
    return "segment: ... past.mp4"


def _same_content(root: Path, draw: random.Random) -> str:
    path = _add(root, "one.mp4", draw, split="train")
    shutil.copy(path, root / "other.mp4")
    _row(root, "other.mp4", split="val")
    return "same content in two splits: ... other.mp4 ... one.mp4"


def _same_path(root: Path, draw: random.Random) -> str:
    _add(root, "twice.mp4", draw, split="train", id="a")
    _row(root, "twice.mp4", split="val", id="b")
    return "same content in two splits: ... twice.mp4 ... one clip under 2 ids"


def _same_id(root: Path, draw: random.Random) -> str:
    _add(root, "first.mp4", draw, split="train", id="same")
    _add(root, "second.mp4", draw, split="val", id="same", times="0,0.5")
    return "repeated id: ... 'same@0-0.5'"


def _class_without_training(root: Path, draw: random.Random) -> str:
    _add(root, "new.mp4", draw, split="val", verb="juggle")
    return "no train clips: ... juggle"


FILE_FAULTS = tuple(
    Fault(plant.__name__.strip("_").replace("_", " "), "table", plant)
    for plant in (
        _missing,
        _empty,
        _text,
        _playlist,
        _pipe,
        _sound,
        _cut,
        _cut_matroska,
        _damaged,
        _outside,
        _past_the_end,
        _same_content,
        _same_path,
        _same_id,
        _class_without_training,
    )
)
"""What the doctor tells of."""
