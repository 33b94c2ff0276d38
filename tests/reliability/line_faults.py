"""Faults of annotations: lines that the readers are to refuse, each by its file and line."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.clean_sets import EGTEA, EPIC100

OPTIONS: dict[str, dict[str, Any]] = {
    "table": {"format": "table"},
    "list": {"format": "table"},
    "folder": {"format": "folder"},
    "egtea": EGTEA,
    "epic100": EPIC100,
}
"""Format -> what the configuration needs."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a data set."""

    name: str
    format: str
    plant: Callable[[Path, random.Random], str]
    """Does it, and says what a finding of it must name."""


def cell(column: str, text: str) -> Callable[[Path, random.Random], str]:
    """Of clips.csv, in a row that is drawn."""

    def plant(root: Path, draw: random.Random) -> str:
        file = root / "clips.csv"
        lines = file.read_text().splitlines()
        row = draw.randrange(1, len(lines))
        cells = lines[row].split(",")
        cells[lines[0].split(",").index(column)] = text
        lines[row] = ",".join(cells)
        file.write_text("\n".join(lines) + "\n")
        return f"clips.csv:{row + 1}"

    return plant


def line(
    name: str, change: Callable[[str], str], *, header: bool = False, named: str = ""
) -> Callable[[Path, random.Random], str]:
    """Of a file, one that is drawn; or its header."""

    def plant(root: Path, draw: random.Random) -> str:
        file = root / name
        lines = file.read_text().splitlines()
        first = 1 if "," in lines[0] and not header else 0
        row = 0 if header else draw.randrange(first, len(lines))
        lines[row] = change(lines[row])
        file.write_text("\n".join(lines) + "\n")
        return named or (name if header else f"{name}:{row + 1}")

    return plant


def _repeat(root: Path, draw: random.Random) -> str:
    file = root / "clips.csv"
    lines = file.read_text().splitlines()
    lines.append(draw.choice(lines[1:8]))
    file.write_text("\n".join(lines) + "\n")
    return f"clips.csv:{len(lines)}"


def _latin(root: Path, draw: random.Random) -> str:
    file = root / "clips.csv"
    file.write_bytes(file.read_bytes().replace(b"open", "öffnen".encode("latin-1"), 1))
    return "clips.csv: not UTF-8"


def _field(number: int, text: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        fields = line.split()
        fields[number] = text
        return " ".join(fields)

    return change


def _comma_field(number: int, text: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        fields = line.split(",")
        fields[number] = text
        return ",".join(fields)

    return change


def _empty_class(root: Path, draw: random.Random) -> str:
    name = draw.choice(["train", "val"])
    (root / name / "peel").mkdir()
    return f"{name}/peel"


def _too_deep(root: Path, draw: random.Random) -> str:
    video = draw.choice(sorted((root / "train").rglob("*.mp4")))
    (video.parent / "more").mkdir()
    video.rename(video.parent / "more" / video.name)
    return "expected videos at"


def _no_classes(root: Path, draw: random.Random) -> str:
    (root / "noun_idx.txt").unlink()
    return "noun_idx.txt"


READER_FAULTS = (
    Fault("no column of paths", "table", line("clips.csv", lambda s: "file" + s[4:], header=True)),
    Fault(
        "a column twice",
        "table",
        line("clips.csv", lambda s: s.replace("participant", "verb"), header=True),
    ),
    Fault(
        "no column of labels",
        "table",
        line("clips.csv", lambda s: s.replace("verb", "deed"), header=True),
    ),
    Fault("a cell too many", "table", line("clips.csv", lambda s: s + ",more")),
    Fault("a cell too few", "table", line("clips.csv", lambda s: s.rpartition(",")[0])),
    Fault(
        "a quote that stays open", "table", line("clips.csv", lambda s: f'"{s}', named="clips.csv:")
    ),
    Fault("another encoding", "table", _latin),
    Fault("a time of NaN", "table", cell("start_s", "nan")),
    Fault("an infinite time", "table", cell("stop_s", "inf")),
    Fault("a word for a time", "table", cell("stop_s", "soon")),
    Fault("no length", "table", cell("stop_s", "0")),
    Fault("end before start", "table", cell("start_s", "0.75")),
    Fault("a negative time", "table", cell("start_s", "-1")),
    Fault("no path", "table", cell("path", "")),
    Fault("a URL", "table", cell("path", "https://host/a.mp4")),
    Fault("a playlist", "table", cell("path", "a.m3u8")),
    Fault("no split", "table", cell("split", "")),
    Fault("a row twice", "table", _repeat),
    Fault("a line without a label", "list", line("train.txt", lambda s: s.rpartition(" ")[0])),
    Fault("a line with two labels", "list", line("train.txt", lambda s: s + " 2")),
    Fault("an unknown class", "egtea", line("train_split1.txt", _field(1, "3"))),
    Fault("class 0, where 1 is the first", "egtea", line("test_split1.txt", _field(2, "0"))),
    Fault("a word for a class", "egtea", line("train_split1.txt", _field(3, "cup"))),
    Fault("too few fields", "egtea", line("train_split1.txt", lambda s: " ".join(s.split()[:3]))),
    Fault(
        "a clip's name of another form", "egtea", line("train_split1.txt", _field(0, "P01-clip"))
    ),
    Fault(
        "a number of a class left out",
        "egtea",
        line(
            "verb_idx.txt",
            lambda s: s.replace(" 2", " 3").replace(" 1", " 4"),
            named="verb_idx.txt",
        ),
    ),
    Fault("no list of classes", "egtea", _no_classes),
    Fault("a time of another form", "epic100", line("EPIC_100_train.csv", _comma_field(4, "0:0"))),
    Fault(
        "a class out of range", "epic100", line("EPIC_100_validation.csv", _comma_field(10, "7"))
    ),
    Fault("a class folder without a video", "folder", _empty_class),
    Fault("a folder too deep", "folder", _too_deep),
)
"""What the readers of annotations tell of."""
