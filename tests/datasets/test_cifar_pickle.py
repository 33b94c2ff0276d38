"""Pickles as data: what Python would read is read alike, and what it should not have is refused."""

import pickle
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from cdb_video.datasets import cifar_pickle
from cdb_video.datasets.cifar_pickle import Inert, read_pickle

LONG_MEMO = b"\x80\x02}r" + (60_000_000).to_bytes(4, "little") + b"."
REFUSED = (ValueError, IndexError, KeyError, OverflowError)
PLAIN = {
    "labels": [0, 255, 256, -1, 2**31, True, False, None, 0.5],
    "filenames": ["a.png", "\u20ac", "x" * 300],
    "nested": {"a": [[1, 2], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]},
    "again": ["a.png"] * 3,
    "bytes": bytes(range(256)) * 2,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_python_reads_them(protocol: int) -> None:
    content = pickle.dumps(PLAIN, protocol=protocol)

    assert read_pickle(content) == PLAIN


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_an_array_has_its_state_and_is_none(protocol: int) -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)

    found: Any = read_pickle(pickle.dumps({"data": rows}, protocol=protocol))

    version, shape, dtype, is_fortran, numbers = found["data"].state
    assert (version, shape, is_fortran, numbers) == (1, (2, 3), False, bytes(range(6)))
    assert isinstance(dtype, Inert)


def test_a_place_in_the_memo_takes_no_memory_up_to_it() -> None:
    tracemalloc.start()
    found = read_pickle(LONG_MEMO)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == {}
    assert peak < 2**20  # Python's own unpickler: 0.9 GB


def repeated_text(times: int) -> bytes:
    """One text of 1,000 letters, encoded so many times: `codecs.encode(text, "latin1")`."""
    text = b"X" + (1000).to_bytes(4, "little") + b"a" * 1000 + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01"
    calls = b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * times
    return b"\x80\x02" + text + encode + b"](" + calls + b"e."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (repeated_text(3), "it would swell"),
        # A key of tuples within tuples, whose hash would end the process.
        (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "a key that is no text"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "changes what is no array"),
        (b"\x80\x02K\x01)R.", "calls what is no function"),
        (b"\x80\x02c_codecs\nencode\nK\x01K\x02\x86R.", "encodes what is no text"),
        (b"\x80\x02c_codecs\nencode\nK\x01R.", "calls what is no function"),
        (b"\x80\x02}K\x01a.", "adds to what is no list"),
        (b"\x80\x02]K\x01K\x02s.", "or one of no dictionary"),
        (b"\x80\x02](X\x01\x00\x00\x00au.", "or one of no dictionary"),
        (b"\x80\x04K\x01K\x02\x93.", "asks for what has no name"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "no such file has: BINPERSID"),
        (b"\x80\x02c__main__\nX\n)\x81.", "it asks for __main__.X"),
        (b"\x80\x02\x85.", "takes what it has not given"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "expected 4294967295 bytes"),
        (b"\x80\x02}", "exhausted before seeing STOP"),
    ],
)
def test_what_no_such_file_has_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(REFUSED, match=reason):
        read_pickle(content)


def test_a_file_of_countless_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_pickle, "MOST_OPCODES", 100)

    with pytest.raises(ValueError, match="more than 100 parts"):
        read_pickle(b"\x80\x02" + b"]" * 200 + b".")


def test_damaged_files_give_no_other_error() -> None:
    content = pickle.dumps({**PLAIN, "data": np.zeros((2, 3), np.uint8)}, protocol=2)
    draw = random.Random(0)

    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read_pickle(bytes(damaged[: draw.randrange(1, len(damaged) + 1)]))
        except REFUSED:
            continue
