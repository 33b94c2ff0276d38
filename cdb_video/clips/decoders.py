"""Open a video: one function, four decoders, the same frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cdb_video.clips.base import BaseDecoder, Image, VideoDecoder, Window, cut, errors_name
from cdb_video.clips.child import ChildDecoder
from cdb_video.clips.images import is_image, open_image, read_image, read_size
from cdb_video.clips.index import FrameIndex, open_container, packet_index
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.pyav import PyavDecoder
from cdb_video.datasets.images import IMAGE_SUFFIXES
from cdb_video.errors import DecodeError

DecoderName = Literal["pyav", "decord", "torchcodec", "frames"]


def open_video(
    path: str | Path,
    *,
    decoder: DecoderName = "pyav",
    fps: float | None = None,
    index_folder: IndexFolder | None = None,
    untrusted: bool = False,
    deadline_s: float | None = None,
) -> VideoDecoder:
    """An open video, a context manager; close it, or use `with`.

    `pyav` is the default and reads everything. `decord` and `torchcodec` number frames by the same
    packet index, and refuse files that it cannot vouch for. All three give the same bits for 8-bit
    video of even width and height. Elsewhere they widen the chroma differently: means over a frame
    differ by up to 6 grey levels of 255 (10-bit 4:2:0 and odd sizes), single pixels at sharp colour
    edges by much more.

    Args:
        path: a video file; an image, or a file of many such as MNIST's, whatever the decoder: a
            frame an image, one a second; or for `frames` a folder of jpg, png or webp images, which
            are taken in the order of the numbers in their names.
        decoder: see above. decord bundles an FFmpeg of 2020: for files that you trust.
        fps: frames a second of a folder of frames, which needs it; never for a file.
        index_folder: where the packet index of a file is kept, for `pyav`; without, a file is read
            through each time that a process opens it first.
        untrusted: the strict rules of `untrusted.py` for codecs and sizes; for `pyav` and `frames`.
        deadline_s: decode in a process of its own (`ChildDecoder`), where opening and each call
            may take so many seconds, and an untrusted video so much memory. None: in this one.

    Raises:
        DecodeError: the path cannot be read as a video.
    """
    if decoder not in get_args(DecoderName):
        raise ValueError(f"decoder={decoder!r}: must be one of {', '.join(get_args(DecoderName))}")
    if "://" in str(path):
        raise DecodeError(f"{path}: only local files are read, no URLs")
    if untrusted and decoder in _OTHER_DECODERS:
        raise ValueError(f"decoder={decoder!r}: untrusted videos are for pyav alone")
    path = Path(path)
    open_here = partial(_open_here, path, decoder, fps, index_folder, untrusted)
    with errors_name(path):
        if deadline_s is None:
            return open_here()
        return ChildDecoder(path, open_here, deadline_s=deadline_s, limited=untrusted)


def _open_here(
    path: Path,
    decoder: DecoderName,
    fps: float | None,
    index_folder: IndexFolder | None,
    untrusted: bool,
) -> VideoDecoder:
    if decoder == "frames":
        return FolderDecoder(path, fps=fps, untrusted=untrusted)
    _check_file(path, fps)
    if is_image(path):
        return open_image(path, untrusted=untrusted)
    if decoder == "pyav":
        return PyavDecoder(path, index_folder=index_folder, untrusted=untrusted)
    return _OTHER_DECODERS[decoder](path)


def _check_file(path: Path, fps: float | None) -> None:
    if fps is not None:
        raise DecodeError(f"{path}: fps={fps} is for a folder of frames; a file has its own times")
    if path.is_dir():
        raise DecodeError(f"{path}: a folder; use decoder='frames' to read its images")
    if not path.exists():
        raise DecodeError(f"{path}: no such file")
    if not path.is_file():
        raise DecodeError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise DecodeError(f"{path}: the file is empty")


class FolderDecoder(BaseDecoder):
    """A folder of images as a video: image i is shown at i / fps seconds."""

    def __init__(self, path: Path, *, fps: float | None, untrusted: bool = False) -> None:
        if not path.is_dir():
            raise DecodeError(f"{path}: not a folder of frames")
        if fps is None or not fps > 0:
            raise DecodeError(f"{path}: fps={fps}: a folder of frames needs its frames a second")
        images = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DecodeError(f"{path}: no frames: no jpg, png or webp file in this folder")
        self._images = sorted(images, key=_number_order)
        _check_no_gap(path, self._images)
        if untrusted:
            _refuse_links_out(path, self._images)
        times = torch.arange(len(images), dtype=torch.float64) / fps
        height, width = read_size(self._images[0], path, untrusted=untrusted)
        super().__init__(path, times=times, fps=fps, height=height, width=width)

    def close(self) -> None:
        """Nothing is held open."""

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        size = self.height, self.width
        return [cut(read_image(self._images[i], size), window) for i in wanted]


def _refuse_links_out(path: Path, images: Sequence[Path]) -> None:
    folder = path.resolve()
    for image in images:
        if image.is_symlink() and not image.resolve().is_relative_to(folder):
            raise DecodeError(f"{image}: data.untrusted: a link out of its folder")


def _number_order(image: Path) -> tuple[list[tuple[int, str]], str]:
    """frame_9 before frame_10."""
    parts = re.findall(r"\d+|\D+", image.stem)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts], image.name


def _check_no_gap(path: Path, images: list[Path]) -> None:
    """A frame missing in the middle would shift the time of all after it."""
    numbers = [int(n[-1]) for image in images if (n := re.findall(r"\d+", image.stem))]
    if len(numbers) < len(images):
        return
    steps = [after - before for before, after in pairwise(numbers)]
    for number, step in zip(numbers, steps, strict=False):
        if step != min(steps):
            raise DecodeError(f"{path}: frames are missing after number {number}")


def _checked_index(
    path: Path, decoder: str, *, refused: frozenset[str] = frozenset()
) -> FrameIndex:
    """The packet index that says what another decoder ought to see; also keeps playlists out."""
    container, stream = open_container(path)
    with container:
        if container.format.name in refused:
            raise DecodeError(
                f"{path}: {decoder} misreads {container.format.name} files; use decoder='pyav'"
            )
        index = packet_index(container, stream)
    if index is None:
        raise DecodeError(
            f"{path}: timestamps are missing or unclear; {decoder} cannot number the frames,"
            " use decoder='pyav'"
        )
    return index


def _check_count(path: Path, decoder: str, counted: int, index: FrameIndex) -> None:
    if counted != len(index.times):
        raise DecodeError(
            f"{path}: {decoder} counts {counted} frames where {len(index.times)} are shown;"
            " use decoder='pyav'"
        )


class DecordDecoder(BaseDecoder):
    """decord 0.6, one thread; it turns frames upright itself."""

    # Random access gave wrong frames without an error in each of these.
    _MISREAD = frozenset({"avi", "mpegts", "mpeg"})

    def __init__(self, path: Path) -> None:
        decord = _import("decord", path)
        decord.logging.set_level(decord.logging.QUIET)
        index = _checked_index(path, "decord", refused=self._MISREAD)
        if index.open_gop:
            raise DecodeError(
                f"{path}: decord misnumbers open groups of pictures; use decoder='pyav'"
            )
        # More threads hang in forked workers and decode ahead without limit.
        self._reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        _check_count(path, "decord", len(self._reader), index)
        super().__init__(
            path, times=index.times, fps=index.fps, height=index.height, width=index.width
        )

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._reader = None

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        return [cut(image, window) for image in self._reader.get_batch(wanted).asnumpy()]


class TorchcodecDecoder(BaseDecoder):
    """torchcodec, exact seeking, one thread; it turns frames upright itself."""

    # It reads the packets without FFmpeg's parser, and comes short of frames.
    _MISREAD = frozenset({"mpeg"})

    def __init__(self, path: Path) -> None:
        decoders = _import("torchcodec.decoders", path)
        index = _checked_index(path, "torchcodec", refused=self._MISREAD)
        self._reader = decoders.VideoDecoder(
            str(path.absolute()), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        _check_count(path, "torchcodec", len(self._reader), index)
        super().__init__(
            path, times=index.times, fps=index.fps, height=index.height, width=index.width
        )

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._reader = None

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        return [cut(image, window) for image in self._reader.get_frames_at(wanted).data.numpy()]


def _import(module: str, path: Path) -> Any:
    """An optional library; Any, as neither of them is typed."""
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        name = module.split(".")[0]
        raise DecodeError(f"{path}: decoder='{name}' cannot be loaded; is it installed?") from error


_OTHER_DECODERS: dict[str, type[DecordDecoder | TorchcodecDecoder]] = {
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}
