"""What ours is compared with: other libraries as their users load with them, and the bare decode.

Libraries are imported where a worker first needs them; none but PyAV has to be installed.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clip_jobs import Job
from benchmarks.made_clips import FPS
from cdb_video.clips.base import Window
from cdb_video.clips.index import open_container, packet_index
from cdb_video.clips.transforms import crop

SHORT_SIDE = 8 / 7
"""Over the crop: 256 for 224."""
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
"""PyTorchVideo's."""


def decord_full(job: Job) -> tuple[Tensor]:
    """(T, H, W, C)."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(job.path), ctx=decord.cpu(0), num_threads=1)
    return (torch.from_numpy(reader.get_batch(job.indices.tolist()).asnumpy()),)


def decord_crop(job: Job) -> tuple[Tensor]:
    """(T, crop, crop, C), cut out of whole frames: decord converts no less."""
    return (cut_out(decord_full(job)[0], job.cut),)


def decord_scaled(job: Job, *, crop_size: int) -> tuple[Tensor]:
    """(1, C, T, crop, crop), scaled as ours."""
    frames = decord_full(job)[0].permute(0, 3, 1, 2)
    return (crop(frames, job.window, crop_size=crop_size).transpose(0, 1)[None],)


def torchcodec_crop(job: Job) -> tuple[Tensor]:
    """(T, crop, crop, C), cut out of whole frames."""
    # Not by `from`: its types do not export the class.
    decoder = import_module("torchcodec.decoders").VideoDecoder(
        str(job.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate"
    )
    return (cut_out(decoder.get_frames_at(job.indices.tolist()).data, job.cut),)


def cut_out(frames: Tensor, window: Window) -> Tensor:
    """The window of frames (T, H, W, C)."""
    top, left, height, width = window
    return frames[:, top : top + height, left : left + width]


def pytorchvideo_clip(job: Job, *, crop_size: int) -> tuple[Tensor]:
    """(C, T, crop, crop) fp32: what PyTorchVideo's LabeledVideoDataset does with a clip.

    Decoded by its EncodedVideo, as shipped; the transforms are those of its tutorial, written
    again, as `pytorchvideo.transforms` does not import beside today's torchvision. It takes as
    many seconds as the job spans, and T frames of them at even distances.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(str(job.path), decode_audio=False, decoder="pyav")
    first, last = int(job.indices.min()), int(job.indices.max())
    frames = video.get_clip(Fraction(first, FPS), Fraction(last + 1, FPS))["video"]
    video.close()
    return (tutorial_transform(frames, job, crop_size=crop_size),)


def tutorial_transform(frames: Tensor, job: Job, *, crop_size: int) -> Tensor:
    """Subsample, divide by 255, normalise, scale the short side, crop: of (C, T, H, W) fp32."""
    rows = torch.linspace(0, frames.shape[1] - 1, len(job.indices)).long()
    frames = frames[:, rows] / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1, 1) for x in (MEAN, STD))
    frames = (frames - mean) / std
    short = round(crop_size * SHORT_SIDE)
    size = [side * short // min(job.size) for side in job.size]
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    top, left = ((side - crop_size) // 2 for side in size)
    return frames[..., top : top + crop_size, left : left + crop_size]


class Plan(NamedTuple):
    """What has to be decoded, as presentation times."""

    key: int
    last: int
    unwanted: frozenset[int]
    """Of packets that no other frame is decoded from."""


def decode_floor(job: Job) -> tuple[()]:
    """Decode what must be decoded to see a job's frames; nothing is converted, nothing copied."""
    plan = plan_of(job.path, tuple(job.indices.tolist()))
    container, stream = open_container(job.path)
    with container:
        container.seek(plan.key, stream=stream)
        for packet in container.demux(stream):
            if packet.pts in plan.unwanted:
                continue
            if any(frame.pts == plan.last for frame in packet.decode()):
                return ()
    raise RuntimeError(f"{job.path}: its last frame does not decode")


@cache
def plan_of(path: Path, indices: tuple[int, ...]) -> Plan:
    """Made in the round that warms up, and kept: finding out is not what is timed."""
    container, stream = open_container(path)
    with container:
        index = packet_index(container, stream)
    if index is None:
        raise RuntimeError(f"{path}: no packet index")
    wanted = torch.tensor(sorted(set(indices)))
    unwanted = index.droppable.clone()
    unwanted[wanted] = False
    return Plan(
        key=int(index.key_pts[index.key[wanted[0]]]),
        last=int(index.pts[wanted[-1]]),
        unwanted=frozenset(index.pts[unwanted].tolist()),
    )
