"""Video files with a picture to them, and the plain way to decode any: from the start, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

NEAR_LOSSLESS = {
    "libx264": {"crf": "6", "preset": "veryfast", "x264-params": "threads=1"},
    "libvpx-vp9": {"crf": "6", "b": "0", "cpu-used": "8"},
}


def pictures(count: int, size: tuple[int, int], *, seed: int = 0) -> list[np.ndarray]:
    """Soft shapes in every colour with grey grain, moving: (H, W, 3) uint8."""
    width, height = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(size)
    waves = [(random.uniform(1, 4, 3), random.uniform(0, 6, 3)) for _ in range(4)]
    images = []
    for i in range(count):
        image = np.full((height, width, 3), 128.0)
        for (down, across, speed), phase in waves:
            angle = (down * y + across * x + 0.05 * speed * i)[..., None]
            image += 30 * np.sin(2 * angle + phase)
        image += random.normal(0, 3, (height, width, 1))
        images.append(image.clip(0, 255).astype(np.uint8))
    return images


def write_pictures(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    colorspace: int | None = None,
    color_range: int | None = None,
) -> Path:
    """A video of (H, W, 3) images at 25 frames a second, tagged with a matrix and a range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = NEAR_LOSSLESS[codec]
        stream.codec_context.thread_count = 1
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_all(path: Path, limit: int | None = None) -> Tensor:
    """(T, C, H, W) uint8 RGB, upright; one thread, no seek."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            image = torch.from_numpy(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
            frames.append(torch.rot90(image, round(frame.rotation / 90)).permute(2, 0, 1))
            if len(frames) == limit:
                break
    return torch.stack(frames)
