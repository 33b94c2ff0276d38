"""Made-up clips to decode: a camera that looks round a room, a hand before it, sensor noise.

H.264 as a recording has it: half-pixel motion, edges that cover and uncover, noise that no
prediction removes. What EGTEA Gaze+'s own files were encoded with is not known.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from .in_processes import on_all_cores

Image = NDArray[np.uint8]

FPS = 24
"""EGTEA's."""
HALVES = 2
"""Positions a pixel: the room is painted twice as fine as it is seen."""
ROOM = 2
"""The room over the frame, in each direction."""
NOISE_STD = 2.0
"""Grey levels of 255."""
LARGEST_NOISE = 10
VERSION = 1
"""Raise it when the pixels change, so that an old cache is not taken for the new clips."""


@dataclass(frozen=True)
class ClipSet:
    """What is rendered."""

    lengths: Sequence[int]
    """Frames of each clip."""
    width: int = 640
    height: int = 480
    gop: int = 250
    """Frames from one key frame to the next at most; 250 is x264's default."""
    version: int = VERSION

    @property
    def name(self) -> str:
        """Of its folder."""
        frames = sum(self.lengths)
        return f"{len(self.lengths)}x{self.width}x{self.height}-{frames}f-gop{self.gop}"


def make_clips(
    parent: Path, clips: ClipSet, *, progress: Callable[[], None] = lambda: None
) -> list[Path]:
    """The files of a clip set in a folder under `parent`; rendered, on all cores, unless they are.

    The folder appears when its last file is done; `progress` is called for each.
    """
    folder = parent / clips.name
    made_with = json.dumps(asdict(clips))
    marker = folder / "clips.json"
    if marker.is_file() and marker.read_text() == made_with:
        for _ in clips.lengths:
            progress()
    else:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{clips.name}.part-", dir=parent) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            jobs = [
                _Job(new / f"{number:03d}.mp4", number, clips)
                for number in range(len(clips.lengths))
            ]
            # The longest first, so that none is left to one process at the end.
            jobs.sort(key=lambda job: -clips.lengths[job.number])
            on_all_cores(_render, jobs, progress=progress)
            (new / marker.name).write_text(made_with)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    return sorted(folder.glob("*.mp4"))


class _Job(NamedTuple):
    path: Path
    number: int
    clips: ClipSet


def _render(job: _Job) -> Iterator[None]:
    room = _room(job.clips.height, job.clips.width)
    film = room.film(job.clips.lengths[job.number], seed=job.number)
    write_h264(job.path, film, job.clips)
    yield


def write_h264(path: Path, frames: Iterator[Image], clips: ClipSet) -> None:
    """Frames (H, W, C) as x264 encodes by default, scene cuts and B-frames included."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = clips.width, clips.height, "yuv420p"
        # The number of threads changes the bits: the same on every machine.
        stream.options = {"preset": "medium", "crf": "23", "threads": "2", "g": str(clips.gop)}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


class Room:
    """What the camera sees; the same for every clip, as EGTEA's kitchen is."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        rng = np.random.default_rng(0)
        self.walls = painting(rng, ROOM * HALVES * height, ROOM * HALVES * width)
        self.hand = painting(rng, height // 3, width // 3)
        y, x = np.mgrid[-1 : 1 : height // 3 * 1j, -1 : 1 : width // 3 * 1j]
        self.outline = x**2 + y**2 < 1
        grain = rng.normal(0, NOISE_STD, (height + 64, width + 64, 3)).round()
        self.grain = grain.clip(-LARGEST_NOISE, LARGEST_NOISE).astype(np.int8).view(np.uint8)

    def film(self, num_frames: int, *, seed: int) -> Iterator[Image]:
        """Frames (H, W, C) of a clip; every seed looks at another part of the room."""
        rng = np.random.default_rng([1, seed])
        h, w = self.height, self.width
        for number, (top, left) in enumerate(self._gaze(num_frames, rng)):
            view = self.walls[top : top + HALVES * h : HALVES, left : left + HALVES * w : HALVES]
            image = view.copy()
            self._reach(image, 0.12 * number + seed)
            y, x = rng.integers(64, size=2)
            # The walls keep LARGEST_NOISE away from 0 and 255: the sum of bytes never wraps.
            image += self.grain[y : y + h, x : x + w]
            yield image

    def _gaze(self, num_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(num_frames, 2) corners of the view, in half pixels: drifts, and jumps of the head."""
        room = np.array([self.height, self.width]) * HALVES * (ROOM - 1)
        push = rng.normal(0, self.height / 400, (num_frames, 2))
        push += (rng.random((num_frames, 1)) < 0.02) * rng.normal(
            0, self.height / 40, (num_frames, 2)
        )
        speed = np.zeros_like(push)
        for now in range(1, num_frames):
            speed[now] = 0.9 * speed[now - 1] + push[now]
        place = rng.random(2) * room + speed.cumsum(0) * HALVES
        # Reflected at the ends of the room.
        return np.asarray(np.abs((place + room) % (2 * room) - room).astype(np.int64))

    def _reach(self, image: Image, angle: float) -> None:
        """Put the hand where it is at this angle of its path."""
        h, w = self.outline.shape
        top = int((self.height - h) * (0.5 + 0.5 * np.sin(angle)))
        left = int((self.width - w) * (0.5 + 0.5 * np.cos(0.7 * angle)))
        part = image[top : top + h, left : left + w]
        part[self.outline] = self.hand[self.outline]


_room = cache(Room)
"""Once a process: to paint it takes longer than to film a short clip."""


def painting(rng: np.random.Generator, height: int, width: int) -> Image:
    """(height, width, 3): two painted surfaces that meet at sharp outlines."""
    shape = (height, width)
    behind = cloud(rng, *shape, slope=2) > 0
    light = cloud(rng, *shape, slope=1.5)
    light = np.where(behind, 90 + 30 * light, 150 + 30 * light)
    hues = np.stack([cloud(rng, *shape, slope=2) for _ in range(3)], axis=-1)
    pixels = light[..., None] + 10 * hues
    return np.asarray(pixels.clip(LARGEST_NOISE, 255 - LARGEST_NOISE).astype(np.uint8))


def cloud(
    rng: np.random.Generator, height: int, width: int, *, slope: float
) -> NDArray[np.float64]:
    """(height, width) noise with standard deviation 1, whose amplitude is frequency ** -slope.

    Slope 1 is the mean over pictures of nature (Field 1987, 10.1364/JOSAA.4.002379), a room is
    smoother. Nothing is finer than what a view of every second pixel can show.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency = frequency.clip(1 / max(height, width))
    amplitude = np.where(frequency < 0.5 / HALVES, frequency**-slope, 0)
    noise = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(height, width))) * amplitude, (height, width)
    )
    return np.asarray(noise / noise.std())
