"""Sliding windows over a long video, each scored as evaluation scores a segment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.clips.base import VideoDecoder
from cdb_video.clips.read_ahead import ReadAhead
from cdb_video.clips.sampling import TIME_TOLERANCE_S
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import UserError
from cdb_video.evaluation.predict import Scorer, segment_record
from cdb_video.evaluation.timeline import Timeline

READ_AHEAD_BYTES = 2**28
"""Decoded frames of neighbouring windows that are held at a time: 41 of 1080p, 1165 of 240p."""
DIGITS = 6
"""Of window times in seconds: as exact as times are compared, and fit to be read."""

ReportProgress = Callable[[float, float], None]
"""Called with what is done and the total."""


def no_progress(done: float, total: float) -> None:
    """Nobody looks."""


def predict_windows(
    scorer: Scorer,
    path: str | Path,
    *,
    class_names: Mapping[str, Sequence[str]],
    window_s: float,
    hop_s: float | None = None,
    fps: float | None = None,
    together: bool = True,
    progress: ReportProgress = no_progress,
) -> Timeline:
    """The scores of a video's sliding windows.

    Each window is a segment like any other: its views are those of evaluation. A window in which no
    frame is shown, as a pause of a variable rate can have it, is left out. What is held in memory
    does not grow with the video, but for the scores.

    Args:
        scorer: scores segments.
        path: a video file, or with `fps` a folder of frames.
        class_names: head -> names.
        window_s: length of a window in seconds.
        hop_s: seconds from one window to the next; None: half a window.
        fps: frames a second of a folder of frames; None: a file.
        together: frames of neighbouring windows are decoded once, in one go; False: each window
            is opened by itself, by an opener that gives no frames outside a segment.
        progress: called with the windows done and their number.

    Raises:
        DecodeError: naming the file.
        UserError: a window or hop that cannot be.

    """
    with scorer.opener(segment_record(path, fps=fps, start_s=0.0, stop_s=window_s)) as video:
        hop_s = _checked_hop(path, window_s=window_s, hop_s=hop_s, frame_s=1 / video.fps)
        # The last frame is shown for one period.
        duration_s = float(video.times[-1]) + 1 / video.fps
        records = [
            segment_record(path, fps=fps, start_s=start, stop_s=stop)
            for start, stop in window_bounds(duration_s, window_s=window_s, hop_s=hop_s)
            if video.index_at(start) < video.index_at(stop)
        ]
        parts: list[dict[str, Tensor]] = []
        done = 0
        for scores in _together(scorer, video, records) if together else _batches(scorer, records):
            parts.append(scores)
            done += len(next(iter(scores.values())))
            progress(done, len(records))
    return Timeline(
        starts_s=torch.tensor([record.start_s for record in records], dtype=torch.float64),
        stops_s=torch.tensor([record.stop_s for record in records], dtype=torch.float64),
        scores={head: torch.cat([part[head] for part in parts]) for head in parts[0]},
        class_names=class_names,
    )


def window_bounds(duration_s: float, *, window_s: float, hop_s: float) -> list[tuple[float, float]]:
    """(start, stop) in seconds of windows from 0 on; the last one ends with the video.

    What is left behind the last full hop gets a window of full length too, which so overlaps more.
    A video shorter than a window is one window.
    """
    last_start = duration_s - window_s
    if last_start <= TIME_TOLERANCE_S:
        return [(0.0, round(duration_s, DIGITS))]
    hops = math.floor((last_start + TIME_TOLERANCE_S) / hop_s)
    starts = [i * hop_s for i in range(hops + 1)]
    if last_start - starts[-1] > TIME_TOLERANCE_S:
        starts.append(last_start)
    return [(round(start, DIGITS), round(start + window_s, DIGITS)) for start in starts]


def _checked_hop(
    path: str | Path, *, window_s: float, hop_s: float | None, frame_s: float
) -> float:
    least = frame_s - TIME_TOLERANCE_S
    if not (math.isfinite(window_s) and window_s >= least):
        raise UserError(f"{path}: window_s={window_s:g}: must be at least a frame, {frame_s:.3g} s")
    if hop_s is None:
        return max(window_s / 2, frame_s)
    if not least <= hop_s <= window_s:
        raise UserError(
            f"{path}: hop_s={hop_s:g}: must be from a frame, {frame_s:.3g} s, to the window's "
            f"{window_s:g} s"
        )
    return hop_s


def _batches(
    scorer: Scorer, records: Sequence[VideoRecord], shared: VideoDecoder | None = None
) -> Iterator[dict[str, Tensor]]:
    """Scores of a few windows at a time, as many as a forward takes."""
    size = max(1, scorer.micro_batch_size // (scorer.num_clips * scorer.crops.num_crops))
    for i in range(0, len(records), size):
        yield scorer(records[i : i + size], opener=(lambda _: shared) if shared else None)


def _together(
    scorer: Scorer, video: VideoDecoder, records: Sequence[VideoRecord]
) -> Iterator[dict[str, Tensor]]:
    """The same from an open video, with the frames of neighbouring windows decoded in one go.

    One by one, each window would be decoded from the key frame before it, which is on average half
    a group of pictures away, often as long as the window itself.
    """
    max_frames = READ_AHEAD_BYTES // (3 * video.height * video.width)
    for part, wanted in _neighbours(scorer, video, records, max_frames=max_frames):
        yield from _batches(scorer, part, ReadAhead(part[0].path, video, wanted))


def _neighbours(
    scorer: Scorer, video: VideoDecoder, records: Sequence[VideoRecord], *, max_frames: int
) -> Iterator[tuple[list[VideoRecord], Tensor]]:
    """Neighbouring windows with the frames (L,) that they need: at most so many, or one window."""
    part: list[VideoRecord] = []
    wanted: set[int] = set()
    for record in records:
        segment = scorer.sampler.segment(video, record)
        clips = segment[scorer.sampler.uniform(len(segment), num_clips=scorer.num_clips)]
        frames = set(clips.flatten().tolist())
        if part and len(wanted | frames) > max_frames:
            yield part, torch.tensor(sorted(wanted))
            part, wanted = [], set()
        part.append(record)
        wanted |= frames
    yield part, torch.tensor(sorted(wanted))
