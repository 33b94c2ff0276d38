"""Packets that no frame is decoded from: exactly those, and leaving them out changes no bit."""

from __future__ import annotations

from types import SimpleNamespace

import av
import pytest
import torch
from av.video.frame import PictureType

from cdb_video.clips.decoders import open_video
from cdb_video.clips.droppable import droppable_test
from cdb_video.clips.index import open_container, packet_index
from tests.clips.files import decode_all

NUM_FRAMES = 40


def x264(**params) -> dict:
    """Options of `coded_video`: x264 with these parameters, and nothing left to its choice."""
    params = {"keyint": 12, "min-keyint": 12, "scenecut": 0, "b-adapt": 0, "threads": 1} | params
    text = ":".join(f"{name}={value}" for name, value in params.items())
    return {"num_frames": NUM_FRAMES, "options": {"crf": "12", "x264-params": text}}


def index_of(path):
    container, stream = open_container(path)
    with container:
        return packet_index(container, stream)


def picture_types(path) -> list[str]:
    """I, P or B of each frame, in order of presentation."""
    with av.open(str(path)) as container:
        return [PictureType(frame.pict_type).name for frame in container.decode(video=0)]


# mp4 and mkv write lengths before NAL units, ts start codes.
@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.ts"])
@pytest.mark.parametrize("slices", [1, 4])
def test_every_b_frame_of_x264_without_a_pyramid_is_droppable(name, slices, coded_video):
    path = coded_video(name, **x264(bframes=2, **{"b-pyramid": "none"}, slices=slices))

    types = picture_types(path)

    assert types[:7] == ["I", "B", "B", "P", "B", "B", "P"]
    assert index_of(path).droppable.tolist() == [kind == "B" for kind in types]


@pytest.mark.parametrize("name", ["video.mp4", "video.ts"])
def test_middle_b_frame_of_a_pyramid_is_not_droppable(name, coded_video):
    path = coded_video(name, **x264(keyint=250, bframes=3, **{"b-pyramid": "normal"}))

    droppable = index_of(path).droppable

    # x264 refers to the middle one of three B-frames: I b B b P b B b P ...
    assert picture_types(path)[:9] == ["I", "B", "B", "B", "P", "B", "B", "B", "P"]
    assert droppable[:9].tolist() == [False, True] * 4 + [False]


@pytest.mark.parametrize("name", ["video.mp4", "video.ts"])
def test_without_b_frames_none_is_droppable(name, coded_video):
    index = index_of(coded_video(name, **x264(bframes=0)))

    assert len(index.droppable) == NUM_FRAMES
    assert not index.droppable.any()


def test_of_other_codecs_none_is_droppable(coded_video):
    path = coded_video("video.avi", codec="mpeg4", options={"qscale": "2", "bf": "0"})

    assert index_of(path).droppable.tolist() == [False] * 10


@pytest.mark.parametrize("name", ["video.mp4", "video.ts"])
@pytest.mark.parametrize(
    "params",
    [
        {"bframes": 2, "b-pyramid": "none"},
        {"bframes": 5, "b-pyramid": "normal"},
        {"bframes": 3, "b-pyramid": "strict", "open-gop": 1},
        {"bframes": 2, "ref": 4, "slices": 3, "keyint": 250},
        {"bframes": 2, "interlaced": 1},
    ],
)
@pytest.mark.slow
def test_frames_without_the_dropped_ones_are_those_of_a_full_decode(name, params, coded_video):
    path = coded_video(name, **x264(**params))
    everything = decode_all(path)
    assert index_of(path).droppable.sum() >= NUM_FRAMES // 4

    for first in (0, 1, 5):
        for step in (2, 5, 11):
            indices = torch.arange(first, NUM_FRAMES, step)
            with open_video(path) as video:
                assert torch.equal(video.frames(indices), everything[indices]), (first, step)


# The first byte of a NAL unit (H.264, 7.3.1): nal_ref_idc in bits 5 and 6, nal_unit_type below.
SLICE, SLICE_REF, IDR = b"\x01\x9a\x80", b"\x61\x9a\x80", b"\x65\x88\x80"
PARTITION = b"\x02\x9a\x80"  # data partitioning: slice header in type 2, the rest in 3 and 4
SEI, DELIMITER, SPS = b"\x06\x05\x80", b"\x09\xf0", b"\x67\x64\x00"

PACKETS = [
    ([SLICE], True),
    ([SLICE_REF], False),
    ([IDR], False),
    ([DELIMITER, SEI, SLICE], True),
    ([SPS, SEI, IDR], False),
    ([SEI, SLICE, SLICE, SLICE], True),
    ([SLICE, SLICE_REF], False),  # two fields, of which the second is a reference
    ([SLICE_REF, SLICE], False),
    ([PARTITION, b"\x03\x80", b"\x04\x80"], True),
    ([SPS, SEI], False),  # no picture at all: whatever it is, it is decoded
    ([], False),
]


def tell(extradata: bytes | None, packet: bytes, codec: str = "h264") -> bool:
    stream = SimpleNamespace(codec_context=SimpleNamespace(name=codec, extradata=extradata))
    return droppable_test(stream)(packet)


def avcc(length_size: int) -> bytes:
    # ISO/IEC 14496-15, 5.3.3.1: version, profile, compatibility, level, 6 ones and the length - 1.
    return bytes([1, 0x64, 0, 0x0A, 0xFC | (length_size - 1), 0xE1])


@pytest.mark.parametrize(("units", "expected"), PACKETS)
@pytest.mark.parametrize("length_size", [1, 2, 4])
def test_units_after_lengths_are_told(units, expected, length_size):
    packet = b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units)

    assert tell(avcc(length_size), packet) is expected


@pytest.mark.parametrize(("units", "expected"), PACKETS)
@pytest.mark.parametrize("start_code", [b"\0\0\1", b"\0\0\0\1"])
@pytest.mark.parametrize("extradata", [None, b"", b"\0\0\0\1" + SPS])
def test_units_after_start_codes_are_told(units, expected, start_code, extradata):
    packet = b"".join(start_code + unit for unit in units)

    assert tell(extradata, packet) is expected


@pytest.mark.parametrize(
    "packet",
    [
        b"\0\0",  # too short for a length
        b"\0\0\0\x03",  # a length and nothing behind it
        b"\xff\xff\xff\xff" + SLICE_REF,  # longer than the packet
        b"\0\0\0\x03" + SLICE_REF + b"\0\0\0",  # cut off in the next length
    ],
)
def test_damaged_packet_is_not_droppable(packet):
    assert tell(avcc(4), packet) is False


def test_start_code_that_ends_the_packet_has_no_unit():
    assert tell(None, b"\0\0\1" + SLICE + b"\0\0\1") is True
    assert tell(None, b"\0\0\1") is False


def test_same_bytes_of_another_codec_are_not_droppable():
    assert tell(None, b"\0\0\1" + SLICE, codec="h264") is True
    assert tell(None, b"\0\0\1" + SLICE, codec="hevc") is False
