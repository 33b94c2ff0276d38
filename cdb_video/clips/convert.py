"""Decoded frames to arrays: RGB, or the YUV planes as they are; of a window no more than it needs.

The matrix and range are those that the file is tagged with (BT.601 and limited where it is not).
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from cdb_video.clips.base import Image, Planes, Window, cut
from cdb_video.clips.index import quarter_turns, upright_size

EIGHT_BIT_420 = frozenset({"yuv420p", "yuvj420p"})
"""Pixel formats of which FFmpeg converts each pixel by its own chroma sample, without blending."""
FULL_RANGE = 2
"""AVCOL_RANGE_JPEG."""
LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}
"""AVColorSpace -> weights of red and blue in the luma."""
BT_601 = (0.299, 0.114)


class ToRgb:
    """Frame -> (H, W, C) uint8 of the window, upright.

    Of 8-bit 4:2:0 frames of even size, which is what cameras write, the window alone is converted,
    widened to even edges: the same bits as cut out of the whole frame. Others are blended over
    their neighbours (bicubic, as FFmpeg's own filters do), and so converted whole.
    """

    def __init__(self, window: Window, height: int, width: int) -> None:
        self._window = window
        self._size = height, width
        # Kept for the clip: it would be made anew for every frame, at 0.1 ms each.
        self._reformatter = VideoReformatter()
        self._part: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame) -> Image:
        """The window's pixels: a view of memory of their own."""
        _check_size(frame, self._size)
        turns = quarter_turns(frame)
        is_whole = self._window == Window(0, 0, *self._size)
        even = frame.height % 2 == frame.width % 2 == 0
        if turns or is_whole or not even or frame.format.name not in EIGHT_BIT_420:
            return cut(np.rot90(self._rgb(frame), turns), self._window)
        outer = widened(self._window)
        return cut(self._rgb(self._cut(frame, outer)), self._window.within(outer))

    def _rgb(self, frame: av.VideoFrame) -> Image:
        # The default threads cost a third more.
        converted = self._reformatter.reformat(
            frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        return _plane(converted, 0, 3)

    def _cut(self, frame: av.VideoFrame, window: Window) -> av.VideoFrame:
        """The planes of a window of even edges, as a frame."""
        if self._part is None or self._part.format.name != frame.format.name:
            self._part = av.VideoFrame(window.width, window.height, frame.format.name)
        for i in range(3):
            _plane(self._part, i)[:] = cut(_plane(frame, i), window if i == 0 else halved(window))
        self._part.colorspace = frame.colorspace
        self._part.color_range = frame.color_range
        return self._part


class ToPlanes:
    """Frame -> (luma, chroma, chroma) of the window, upright; see `Planes`.

    Formats other than 8-bit 4:2:0 are converted to it first.
    """

    def __init__(self, window: Window, height: int, width: int) -> None:
        self._window = window
        self._size = height, width
        self._reformatter = VideoReformatter()
        self._to_rgb: Tensor | None = None

    def __call__(self, frame: av.VideoFrame) -> tuple[Image, Image, Image]:
        """The window's planes: copies, as they are smaller than the frame."""
        _check_size(frame, self._size)
        turns = quarter_turns(frame)
        if frame.format.name not in EIGHT_BIT_420:
            frame = self._reformatter.reformat(
                frame, format="yuv420p", interpolation=Interpolation.BICUBIC, threads=1
            )
        to_rgb = rgb_matrix(frame)
        if self._to_rgb is None:
            self._to_rgb = to_rgb
        elif not torch.equal(to_rgb, self._to_rgb):
            raise ValueError("the matrix or range of colours changes; use data.pixels=rgb")
        half = halved(widened(self._window))
        luma, u, v = (
            cut(np.rot90(_plane(frame, i), turns), self._window if i == 0 else half).copy()
            for i in range(3)
        )
        return luma, u, v

    def stack(
        self, planes: Sequence[tuple[Image, Image, Image]], position: Sequence[int]
    ) -> Planes:
        """The planes of frames, repeated as `position` says."""
        assert self._to_rgb is not None  # noqa: S101 - there is a frame
        luma = np.stack([planes[i][0][None] for i in position])
        chroma = np.stack([planes[i][1:] for i in position])
        return Planes(torch.from_numpy(luma), torch.from_numpy(chroma), self._to_rgb)


def rgb_matrix(frame: av.VideoFrame) -> Tensor:
    """(3, 4) fp32: RGB = M (Y, U, V, 1), in the frame's matrix and range (ITU-T H.273, 8.3).

    RGB is in [0, 255] where the colour exists, and outside where it does not: clip it.
    """
    red, blue = LUMA_WEIGHTS.get(int(frame.colorspace), BT_601)
    green = 1 - red - blue
    is_full = int(frame.color_range) == FULL_RANGE or frame.format.name == "yuvj420p"
    black, luma, chroma = (0, 1.0, 1.0) if is_full else (16, 255 / 219, 255 / 224)
    u, v = 2 * (1 - blue) * chroma, 2 * (1 - red) * chroma
    matrix = torch.tensor(
        [
            [luma, 0, v],
            [luma, -u * blue / green, -v * red / green],
            [luma, u, 0],
        ],
        dtype=torch.float64,
    )
    zero = torch.tensor([black, 128, 128], dtype=torch.float64)
    return torch.cat([matrix, -(matrix @ zero)[:, None]], 1).float()


def widened(window: Window) -> Window:
    """The window with its edges moved outwards to even numbers; of odd frames, past their end."""
    top, left = window.top // 2 * 2, window.left // 2 * 2
    bottom, right = window.top + window.height, window.left + window.width
    return Window(top, left, bottom + bottom % 2 - top, right + right % 2 - left)


def halved(window: Window) -> Window:
    """Where a window of even edges lies in the chroma planes."""
    return Window(*(edge // 2 for edge in window))


def _plane(frame: av.VideoFrame, i: int, channels: int = 1) -> Image:
    """A plane (H, W) or (H, W, C) of a frame: a view of its memory."""
    plane = frame.planes[i]
    # memoryview: PyAV's types do not tell that a plane is a buffer.
    rows: Image = np.frombuffer(memoryview(plane), np.uint8)
    image = rows.reshape(plane.height, plane.line_size)[:, : plane.width * channels]
    return image if channels == 1 else image.reshape(plane.height, plane.width, channels)


def _check_size(frame: av.VideoFrame, size: tuple[int, int]) -> None:
    if upright_size(frame) != size:
        height, width = upright_size(frame)
        raise ValueError(
            f"frames change their size, from {size[1]}x{size[0]} to {width}x{height} pixels"
        )
