"""Small data sets without a fault, one of each format."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import write_coded_video

EGTEA = {
    "format": "egtea",
    "train_split": "train_split1",
    "val_split": None,
    "test_split": "test_split1",
}
EPIC100 = {"format": "epic100", "val_split": "validation"}


def table(root: Path, draw: random.Random) -> dict[str, Any]:
    """clips.csv with times, a participant and a split: twelve clips of twelve videos."""
    root.mkdir(parents=True)
    lines = ["path,video_id,start_s,stop_s,verb,participant,split"]
    for i, split in enumerate(["train"] * 7 + ["val"] * 5):
        video(root / f"{i}.mp4", draw, i)
        lines.append(f"{i}.mp4,v{i},0,0.5,{('open', 'close')[i % 2]},p{i},{split}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return {"format": "table"}


def listed(root: Path, draw: random.Random) -> dict[str, Any]:
    """Kinetics-style lists, with a space in every path."""
    root.mkdir(parents=True)
    for offset, split in ((0, "train"), (6, "val")):
        lines = []
        for i in range(offset, offset + 6):
            video(root / f"a clip {i}.mkv", draw, i)
            lines.append(f"a clip {i}.mkv {i % 3}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return {"format": "table"}


def folder(root: Path, draw: random.Random) -> dict[str, Any]:
    """<split>/<class>/<video>."""
    number = 0
    for split in ("train", "val"):
        for name in ("cut", "pour"):
            (root / split / name).mkdir(parents=True)
            for _ in range(3):
                video(root / split / name / f"{number}.mp4", draw, number)
                number += 1
    return {"format": "folder"}


def egtea(root: Path, draw: random.Random) -> dict[str, Any]:
    """The official files; trimmed clips."""
    root.mkdir(parents=True)
    (root / "verb_idx.txt").write_text("Inspect/Read 1\nTake 2\n")
    (root / "noun_idx.txt").write_text("recipe 1\ncup 2\n")
    (root / "action_idx.txt").write_text("Inspect/Read recipe 1\nTake cup 2\n")
    for offset, split in ((0, "train_split1"), (6, "test_split1")):
        lines = []
        for i in range(offset, offset + 6):
            session = f"P{i:02d}-R01-Pizza"
            start = 100 * i
            clip = f"{session}-{start}-{start + 9}-F{start:06d}-F{start + 24:06d}"
            (root / "cropped_clips" / session).mkdir(parents=True)
            video(root / "cropped_clips" / session / f"{clip}.mp4", draw, i)
            lines.append(" ".join([clip, *[str(i % 2 + 1)] * 3]) + " ")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return dict(EGTEA)


TIMES = (
    "narration_id,participant_id,video_id,narration_timestamp,"
    "start_timestamp,stop_timestamp,start_frame,stop_frame"
)
LABELS = ",narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"


def epic100(root: Path, draw: random.Random) -> dict[str, Any]:
    """The official CSVs; untrimmed videos, two segments each."""
    root.mkdir(parents=True)
    (root / "EPIC_100_verb_classes.csv").write_text(
        "id,key,instances,category\n0,take,x,a\n1,cut,x,b\n"
    )
    (root / "EPIC_100_noun_classes.csv").write_text(
        "id,key,instances,category\n0,pan,x,a\n1,cup,x,b\n"
    )
    for offset, split in ((0, "train"), (3, "validation")):
        lines = [TIMES + LABELS]
        for i in range(offset, offset + 3):
            name = f"P{i:02d}_101"
            place = root / f"P{i:02d}" / "videos"
            place.mkdir(parents=True)
            video(place / f"{name}.MP4", draw, i)
            for j in range(2):
                times = f"00:00:00.{2 * j + 1}0,00:00:00.{2 * j + 3}0,1,2"
                words = ("take pan,take,0,pan,0,['pan'],[0]", "cut cup,cut,1,cup,1,['cup'],[1]")[j]
                lines.append(f"{name}_{j},P{i:02d},{name},00:00:00.000,{times},{words}")
        (root / f"EPIC_100_{split}.csv").write_text("\n".join(lines) + "\n")
    return dict(EPIC100)


CLEAN: dict[str, Callable[[Path, random.Random], dict[str, Any]]] = {
    "table": table,
    "list": listed,
    "folder": folder,
    "egtea": egtea,
    "epic100": epic100,
}
"""Format -> writes a set into a new folder, and says what the configuration needs."""


def video(path: Path, draw: random.Random, number: int) -> None:
    """Of another length for each number, so that no two have the same content."""
    write_coded_video(path, num_frames=14 + number, gop=draw.choice([4, 6, 12]))
