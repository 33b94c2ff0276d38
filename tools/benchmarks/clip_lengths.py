"""How long EGTEA Gaze+'s clips are: what a loader decodes depends on it more than on anything."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cdb_video.errors import DataError

LIST = "train_split1.txt"
LEVELS = (*(i / 20 for i in range(20)), 0.98, 0.99, 1.0)
"""More of them where lengths spread: a straight line from 0.95 to 1 would add half to the mean."""
LENGTHS = (
    *(15, 23, 26, 29, 32, 37, 40, 43, 49, 52, 59, 63),
    *(71, 79, 89, 103, 124, 158, 209, 338, 551, 690, 2801),
)
"""Frames at these quantiles, of the 8,299 clips in the official train_split1.txt (frame numbers in
their names, start inclusive, stop exclusive). Their mean is 100.7; 54 % are shorter than the 63
frames that a clip of 32 at stride 2 spans."""


def spread_lengths(num_clips: int, *, annotations: Path | None = None) -> list[int]:
    """Frames of `num_clips` clips, evenly spread over the distribution, the shortest first.

    Args:
        num_clips: clip i of n has the length at quantile (i + 0.5) / n.
        annotations: folder with the official train_split1.txt; None: the stored quantiles.

    Raises:
        DataError: the list is missing, or a line of it has no frame numbers.

    """
    wanted = (np.arange(num_clips) + 0.5) / num_clips
    if annotations is None:
        found = np.interp(wanted, LEVELS, LENGTHS)
    else:
        found = np.quantile(listed_lengths(annotations / LIST), wanted)
    return [round(length) for length in found]


def listed_lengths(path: Path) -> list[int]:
    """Frames of each clip of an official list, from `...-F006979-F007088` in its name.

    Raises:
        DataError: no such file, or a line without frame numbers.

    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; --annotations takes the folder of EGTEA's lists")
    lengths = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        name = re.search(r"-F(\d+)-F(\d+)\b", line)
        if name is None:
            raise DataError(f"{path}:{number}: no frame numbers (-F...-F...) in {line!r}")
        lengths.append(int(name[2]) - int(name[1]))
    return lengths
