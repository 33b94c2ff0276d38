"""What a video of a stranger may be (`data.untrusted`): looked at before anything is decoded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import av
from av.video.stream import VideoStream

from cdb_video.errors import ConfigError, DecodeError

CODECS = frozenset(
    {"h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9"}
    | {"mpeg4", "mpeg2video", "mpeg1video", "mjpeg"}
)
"""FFmpeg's decoders that cameras' and web sites' files need, of the hundreds that it has."""
MAX_PIXELS = 4096 * 2304
"""Of a frame: 4K."""
MAX_FRAMES = 1_000_000
"""Of a file: 4.6 hours at 60 frames a second."""
MAX_VIDEO_PIXELS = 2 * 10**12
"""Of all frames of a file: an hour of 4K at 60 frames a second."""
OPTIONS: Mapping[str, str] = MappingProxyType({"max_pixels": str(MAX_PIXELS)})
"""For FFmpeg's decoders: the limit of a frame also holds where the file's header lies."""

FFMPEG_FLOORS = ((8, 1, 2), (8, 0, 3), (7, 1, 5))
"""The first releases of each series in which CVE-2026-8461, a write outside of memory by a crafted
video, is mended; no older series was."""


def refuse_stream(path: Path, stream: VideoStream) -> None:
    """Look at what the header tells, and hold the decoder to it.

    Raises:
        DecodeError: a codec that is not on the list, or too many or too large frames.

    """
    codec = stream.codec_context
    if codec.name not in CODECS:
        raise DecodeError(
            f"{path}: data.untrusted: codec {codec.name}; allowed are {', '.join(sorted(CODECS))}"
        )
    if not (codec.height and codec.width):  # what FFmpeg says of frames above the limit
        raise DecodeError(
            f"{path}: data.untrusted: frames of unknown size, or of more than {MAX_PIXELS:,} pixels"
        )
    refuse_size(path, height=codec.height, width=codec.width, num_frames=stream.frames)
    codec.options = dict(OPTIONS)


def refuse_size(path: Path, *, height: int, width: int, num_frames: int = 1) -> None:
    """Refuse more than can be meant.

    Raises:
        DecodeError: with the size and the limit.

    """
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise DecodeError(
            f"{path}: data.untrusted: frames of {width}x{height} pixels; at most {MAX_PIXELS:,}"
        )
    if num_frames > MAX_FRAMES or num_frames * pixels > MAX_VIDEO_PIXELS:
        raise DecodeError(
            f"{path}: data.untrusted: {num_frames:,} frames of {width}x{height} pixels; at most "
            f"{MAX_FRAMES:,} frames and {MAX_VIDEO_PIXELS:,} pixels in all"
        )


def refuse_old_ffmpeg() -> None:
    """Refuse to decode by an FFmpeg with a known hole.

    Raises:
        ConfigError: with its version.

    """
    if not is_mended(av.ffmpeg_version_info):
        raise ConfigError(
            f"data.untrusted=true: PyAV {av.__version__} has FFmpeg {av.ffmpeg_version_info}, "
            f"which a crafted video can take over (CVE-2026-8461); needed is {floors()}: "
            "pip install -U av"
        )


def is_mended(version: str) -> bool:
    """Whether an FFmpeg, such as "8.1.2" or "n7.1.5-3", is at its series' floor; else, unknown."""
    match = re.match(r"n?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        return False
    found = (int(match[1]), int(match[2]), int(match[3] or 0))
    same = [floor for floor in FFMPEG_FLOORS if floor[:2] == found[:2]]
    return found >= same[0] if same else found > max(FFMPEG_FLOORS)


def floors() -> str:
    """The floors in words."""
    return " or ".join(".".join(map(str, floor)) for floor in FFMPEG_FLOORS)
