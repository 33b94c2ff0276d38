"""Write a video with what is predicted drawn on its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image

from cdb_video.clips.base import VideoDecoder
from cdb_video.evaluation.draw import draw_band
from cdb_video.evaluation.predict import Ranking
from cdb_video.evaluation.windows import ReportProgress, no_progress

CHUNK_BYTES = 2**27
"""Decoded frames held at a time. Each chunk costs decoding from the key frame before it."""
TICKS = 90_000
"""A second, in the times of the frames."""
BT709 = 1
"""FFmpeg's number of it, as matrix, primaries and transfer."""

RankingsAt = Callable[[float], Mapping[str, Ranking]]


def save_video(
    target: str | Path,
    video: VideoDecoder,
    rankings_at: RankingsAt,
    *,
    threshold: float = 0.0,
    progress: ReportProgress = no_progress,
) -> None:
    """Write the video with what is predicted drawn on it: H.264, no sound.

    Frames are shown at the times of the source; an odd width or height, which H.264 players do not
    take, gets one more line of pixels. The file is written beside `target`, and renamed when it is
    whole.

    Args:
        target: an mp4 file.
        video: open.
        rankings_at: seconds -> head -> classes to show.
        threshold: a best class below this score is not highlighted.
        progress: called with the frames done and their number.

    Raises:
        DecodeError: a frame does not decode.
        OSError: the file cannot be written.

    """
    target = Path(target)
    beside = target.with_name(f".{target.name}.part")
    try:
        with av.open(str(beside), "w", format="mp4") as container:
            _write_frames(container, video, rankings_at, threshold=threshold, progress=progress)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _write_frames(
    container: OutputContainer,
    video: VideoDecoder,
    rankings_at: RankingsAt,
    *,
    threshold: float,
    progress: ReportProgress,
) -> None:
    height, width = video.height, video.width
    stream = _add_stream(container, width + width % 2, height + height % 2, video.fps)
    times = video.times.tolist()
    shown: Mapping[str, Ranking] | None = None
    for chunk in torch.arange(len(times)).split(max(1, CHUNK_BYTES // (3 * height * width))):
        for i, pixels in zip(chunk.tolist(), video.frames(chunk), strict=True):
            rankings = rankings_at(times[i])
            if rankings != shown:
                band, shown = draw_band((width, height), rankings, threshold=threshold), rankings
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.paste(band, (0, height - band.height), band)
            frame = _yuv(np.asarray(image))
            frame.time_base = Fraction(1, TICKS)
            frame.pts = round(times[i] * TICKS)
            container.mux(stream.encode(frame))
            progress(i + 1, len(times))
    container.mux(stream.encode(None))


def _add_stream(container: OutputContainer, width: int, height: int, fps: float) -> VideoStream:
    rate = Fraction(fps).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "fast"})
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv420p"
    coder = stream.codec_context
    coder.time_base = Fraction(1, TICKS)
    coder.colorspace = coder.color_primaries = coder.color_trc = BT709
    coder.color_range = ColorRange.MPEG
    return stream


def _yuv(image: np.ndarray) -> VideoFrame:
    """Of (H, W, 3) uint8, with even sides."""
    even = np.pad(image, [(0, side % 2) for side in image.shape[:2]] + [(0, 0)], mode="edge")
    frame = VideoFrame.from_ndarray(even, format="rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
