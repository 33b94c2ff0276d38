"""Images as videos of one frame, and files of many images as videos with a frame an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch

from cdb_video.clips.base import BaseDecoder, Image, Window, cut, errors_name
from cdb_video.clips.untrusted import refuse_size
from cdb_video.datasets.image_files import is_packed, read_pixels
from cdb_video.datasets.images import IMAGE_SUFFIXES
from cdb_video.errors import DataError, DecodeError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Whatever a name says: Pillow reads others too, one of them by starting a program."""
A_SECOND = 1.0
"""Images are shown one a second: image i of a file from second i to i + 1."""


def is_image(path: Path) -> bool:
    """Whether a file, by its name, is an image, or holds many."""
    return is_packed(path) or path.suffix.lower() in IMAGE_SUFFIXES


def open_image(path: Path, *, untrusted: bool = False) -> ImageDecoder | PackedDecoder:
    """An image, or a file of many, by its name."""
    return PackedDecoder(path) if is_packed(path) else ImageDecoder(path, untrusted=untrusted)


class ImageDecoder(BaseDecoder):
    """One image."""

    def __init__(self, path: Path, *, untrusted: bool = False) -> None:
        height, width = read_size(path, path, untrusted=untrusted)
        times = torch.zeros(1, dtype=torch.float64)
        super().__init__(path, times=times, fps=A_SECOND, height=height, width=width)

    def close(self) -> None:
        """Nothing is held open."""

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        return [cut(read_image(self.path, (self.height, self.width)), window)]


class PackedDecoder(BaseDecoder):
    """A file of many images, see `datasets.image_files`; read once a process, and kept."""

    def __init__(self, path: Path) -> None:
        try:
            self._images = _read(path, path.stat().st_mtime_ns)
        except DataError as error:
            raise DecodeError(str(error)) from None
        number, height, width, _ = self._images.shape
        times = torch.arange(number, dtype=torch.float64) / A_SECOND
        super().__init__(path, times=times, fps=A_SECOND, height=height, width=width)

    def close(self) -> None:
        """The file is kept for the next one who opens it: a split opens it for every image."""

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        return [cut(self._images[i], window) for i in wanted]


@lru_cache(maxsize=8)
def _read(path: Path, written: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return read_pixels(path)


@contextmanager
def _opened(path: Path) -> Iterator[PIL.Image.Image]:
    with errors_name(path):
        try:
            image = PIL.Image.open(path, formats=IMAGE_FORMATS)
        except PIL.UnidentifiedImageError:
            raise ValueError(f"not an image; {', '.join(IMAGE_FORMATS)} are read") from None
        with image:
            yield image


def forget_packed() -> None:
    """Give the memory of packed files back that were read."""
    _read.cache_clear()


def read_size(image_path: Path, named: Path, *, untrusted: bool) -> tuple[int, int]:
    """(height, width) of an image, upright; `named` stands in what is said of an enormous one."""
    with _opened(image_path) as image:
        if untrusted:
            refuse_size(named, height=image.height, width=image.width)
        return _upright_size(image)


def read_image(path: Path, size: tuple[int, int]) -> Image:
    """(H, W, C) uint8, upright as its EXIF orientation says."""
    with _opened(path) as image:
        found = image.size[::-1]
        # Before it is decoded, as looking for a PNG's orientation does.
        if sorted(found) == sorted(size):
            found = _upright_size(image)
        if found != size:
            raise ValueError(
                f"{found[1]}x{found[0]} pixels; the first frame of its folder has "
                f"{size[1]}x{size[0]}"
            )
        return np.array(PIL.ImageOps.exif_transpose(image).convert("RGB"))


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    width, height = image.size
    is_turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if is_turned else (height, width)
