"""The part of a video that a row of a table is about: seconds, or frame numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cdb_video.datasets.annotation_files import Row
from cdb_video.errors import DataError

_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")
# A number, or the name of an image: 00141.jpg, frame_0000000012.png.
_FRAME = re.compile(r"(?:\D*(?P<image>\d+)\.(?:jpe?g|png|webp)|(?P<number>-?\d+))", re.I)


@dataclass(frozen=True, slots=True)
class FrameNumbers:
    """What frame numbers of a table count."""

    fps: float | None = None
    """Frames a second; None: not known, and frame numbers are refused."""
    first: int = 0
    """The number of the first frame."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video."""

    times: str = ""
    """As the file writes them, "@start-stop", for the record's id; "" for the whole video."""
    start_s: float | None = None
    """First second; None: from the start."""
    stop_s: float | None = None
    """End, exclusive; None: to the end."""


def read_segment(row: Row, numbers: FrameNumbers) -> Segment:
    """The segment of a row: `start_s` and `stop_s`, or else `start_frame` and `stop_frame`.

    Either end may be open. `last_frame` stands for `stop_frame` where files name the last frame of
    the segment, so that one frame has equal ends; a row may not have both.

    Raises:
        DataError: naming the row, if the cells are no times, or in no order.
    """
    if row.cells.get("start_s") or row.cells.get("stop_s"):
        return _in_seconds(row)
    if any(row.cells.get(f"{end}_frame") for end in ("start", "stop", "last")):
        return _in_frames(row, numbers)
    return Segment()


def _in_seconds(row: Row) -> Segment:
    start, stop = row.cells.get("start_s", ""), row.cells.get("stop_s", "")
    try:
        start_s = _parse_seconds(start) if start else None
        stop_s = _parse_seconds(stop) if stop else None
    except ValueError as error:
        raise DataError(
            f"{row.where}: {start!r} to {stop!r} are not seconds or hh:mm:ss"
        ) from error
    if (start_s or 0) < 0 or (stop_s is not None and stop_s <= (start_s or 0)):
        raise DataError(f"{row.where}: {start!r} to {stop!r}: expected 0 <= start < stop")
    return Segment(f"@{start}-{stop}", start_s, stop_s)


def _in_frames(row: Row, numbers: FrameNumbers) -> Segment:
    start, stop, last = (row.cells.get(f"{end}_frame", "") for end in ("start", "stop", "last"))
    if stop and last:
        raise DataError(
            f"{row.where}: stop_frame {stop!r} (exclusive) and last_frame {last!r} (inclusive); "
            "give one of them"
        )
    if numbers.fps is None:
        raise DataError(f"{row.where}: start_frame and stop_frame need data.annotation_fps")
    end = stop or last
    try:
        first_index = _parse_frame(start) - numbers.first if start else None
        end_index = _parse_frame(end) - numbers.first + bool(last) if end else None
    except ValueError as error:
        raise DataError(f"{row.where}: {start!r} to {end!r} are not whole frame numbers") from error
    if (first_index or 0) < 0 or (end_index is not None and end_index <= (first_index or 0)):
        order = "start <= last" if last else "start < stop"
        raise DataError(f"{row.where}: {start!r} to {end!r}: expected {numbers.first} <= {order}")
    return Segment(
        f"@{start}-{end}",
        None if first_index is None else first_index / numbers.fps,
        None if end_index is None else end_index / numbers.fps,
    )


def _parse_frame(text: str) -> int:
    match = _FRAME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match["image"] or match["number"])


def _parse_seconds(text: str) -> float:
    clock = _CLOCK.fullmatch(text)
    if clock:
        return 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds
