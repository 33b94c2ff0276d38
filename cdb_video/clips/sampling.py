"""Which frames of a video make a clip: arithmetic only, nothing here opens a file.

`stride` is the source frames between neighbours in a clip; its span, the source frames it covers,
is (num_frames - 1) * stride + 1. Where the video is shorter than the span, its last frame repeats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_TOLERANCE_S = 1e-6
"""Two times this close are one: far under a frame, far over the rounding of float64 seconds."""


def random_clip(
    video_length: int, *, num_frames: int, stride: int, generator: torch.Generator | None = None
) -> Tensor:
    """Indices (T,) int64 of a clip whose start is uniform over every start that fits."""
    _check_positive(video_length=video_length, num_frames=num_frames, stride=stride)
    start = torch.randint(
        _last_start(video_length, num_frames, stride) + 1, (), generator=generator
    )
    return (start + torch.arange(num_frames) * stride).clamp(max=video_length - 1)


def uniform_clips(video_length: int, *, num_clips: int, num_frames: int, stride: int) -> Tensor:
    """Indices (K, T) int64 of evenly spread clips: the first at the start, the last at the end.

    One clip is the middle one.
    """
    _check_positive(
        video_length=video_length, num_clips=num_clips, num_frames=num_frames, stride=stride
    )
    last_start = _last_start(video_length, num_frames, stride)
    if num_clips == 1:
        starts = torch.tensor([last_start // 2])
    else:
        # float32 has no exact integers past 16.7 million frames.
        starts = torch.linspace(0, last_start, num_clips, dtype=torch.float64).round().long()
    return (starts[:, None] + torch.arange(num_frames) * stride).clamp(max=video_length - 1)


def segment_clip(
    video_length: int, *, num_frames: int, generator: torch.Generator | None = None
) -> Tensor:
    """Indices (T,) int64, one out of each of T equal segments (TSN, Wang et al., 2016).

    Drawn uniformly in its segment, or the segment's middle when `generator` is None. A video of
    fewer than T frames repeats neighbours.
    """
    _check_positive(video_length=video_length, num_frames=num_frames)
    bounds = torch.arange(num_frames + 1) * video_length // num_frames
    first = bounds[:-1]
    size = (bounds[1:] - first).clamp(min=1)
    if generator is None:
        return first + size // 2
    draw = torch.rand(num_frames, generator=generator, dtype=torch.float64)
    return first + (draw * size).long()


def segment_clips(video_length: int, *, num_clips: int, num_frames: int) -> Tensor:
    """Indices (K, T) int64: clip k takes the frame (k + 1/2) / K into each of T equal segments.

    One clip is `segment_clip`'s, of middles.
    """
    _check_positive(video_length=video_length, num_clips=num_clips, num_frames=num_frames)
    bounds = torch.arange(num_frames + 1) * video_length // num_frames
    first = bounds[:-1]
    size = (bounds[1:] - first).clamp(min=1)
    return first + size * (2 * torch.arange(num_clips)[:, None] + 1) // (2 * num_clips)


def grid_indices(times: Tensor, *, start_s: float, stop_s: float, fps: float) -> Tensor:
    """Indices (G,) int64 of the frames shown at start_s, start_s + 1 / fps, ... before stop_s.

    Sources of 24, 25, 30 or 60 fps so give the same seconds on the same number of frames. The
    frame shown at a time is the last one that starts at or before it; G is at least 1.

    Args:
        times: (num_frames,) seconds at which the frames are shown, increasing.
        start_s: first time of the grid, seconds.
        stop_s: end of the grid, exclusive, seconds.
        fps: grid steps a second.
    """
    if times.ndim != 1 or times.numel() == 0:
        raise ValueError(f"times: shape {tuple(times.shape)}; (num_frames,) with a frame is needed")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps}: must be positive")
    if not (math.isfinite(start_s) and math.isfinite(stop_s)):
        raise ValueError(f"start_s={start_s}, stop_s={stop_s}: must be finite")
    steps = max(math.ceil((stop_s - start_s - TIME_TOLERANCE_S) * fps), 1)
    grid = start_s + torch.arange(steps, dtype=torch.float64) / fps
    shown = torch.searchsorted(times.double(), grid + TIME_TOLERANCE_S, right=True) - 1
    return shown.clamp(min=0)


def _last_start(video_length: int, num_frames: int, stride: int) -> int:
    span = (num_frames - 1) * stride + 1
    return max(video_length - span, 0)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
