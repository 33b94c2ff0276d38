"""Files that hold a whole image data set: MNIST's IDX, and the batches of CIFAR."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cdb_video.datasets.cifar_pickle import read_pickle
from cdb_video.errors import DataError

Array = np.ndarray[Any, np.dtype[np.uint8]]

CIFAR_SIDE = 32
CIFAR_NAMES = frozenset({*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "train", "test"})
MOST_BYTES = 2**30
"""Of one file, unpacked: more is no data set of small images."""
MOST_PICKLED = 2**28
"""Bytes of a batch of CIFAR; the largest published one has 155 million."""
MOST_LABELS = 10**8
BYTES_AT_A_TIME = 2**24
NOT_SUCH_A_FILE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)


def is_packed(path: Path) -> bool:
    """Whether a file holds many images: `*-idx3-ubyte`, also gzipped, or a batch of CIFAR."""
    if path.name.removesuffix(".gz").endswith("-idx3-ubyte"):
        return True
    if path.name not in CIFAR_NAMES or not path.is_file():
        return False
    with path.open("rb") as file:  # `train` may be anything
        return file.read(1) == b"\x80"  # as a pickle of protocol 2 or above begins


def read_pixels(path: Path) -> Array:
    """The images of a packed file, (N, H, W, 3) uint8; a grey one three times the same.

    Raises:
        DataError: not such a file, or cut short.
    """
    if path.name in CIFAR_NAMES:
        return cifar_pixels(read_cifar(path), path)
    grey = read_idx(path)
    if grey.ndim != 3:
        raise DataError(f"{path}: {grey.ndim} dimensions; images have 3: number, height, width")
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def read_idx(path: Path) -> Array:
    """An array of bytes in the form of MNIST's files: labels (N,), or grey images (N, H, W).

    The form is of http://yann.lecun.com/exdb/mnist: two zeros, the type, the number of dimensions,
    each dimension as four bytes, and the numbers, last dimension fastest. A name
    that ends in .gz is of a compressed file.

    Raises:
        DataError: not such a file, or of another length than it says.
    """
    with _opened_idx(path) as file:
        return _idx(file)


def idx_shape(path: Path) -> tuple[int, ...]:
    """What an IDX file says that it holds.

    Raises:
        DataError: not such a file.
    """
    with _opened_idx(path) as file:
        return _header(file)


@contextmanager
def _opened_idx(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    if not path.exists():
        raise DataError(f"{path}: no such file, and none of this name with .gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not an IDX file of bytes: {error}") from None


def read_idx_labels(path: Path) -> list[int]:
    """The labels of an IDX file.

    Raises:
        DataError: not such a file, or none of labels.
    """
    labels = read_idx(path)
    if labels.ndim != 1 or not 0 < len(labels) <= MOST_LABELS:
        raise DataError(f"{path}: {labels.shape}; expected a label an image, one at least")
    found: list[int] = labels.tolist()
    return found


def _header(file: BinaryIO | gzip.GzipFile) -> tuple[int, ...]:
    zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
    if zeros or kind != 0x08 or not 1 <= dimensions <= 3:
        raise ValueError("it does not begin as one")
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    if math.prod(shape) > MOST_BYTES:
        raise ValueError(f"it claims {math.prod(shape)} bytes")
    return shape


def _idx(file: BinaryIO | gzip.GzipFile) -> Array:
    shape = _header(file)
    size = math.prod(shape)
    content = bytearray()  # in pieces: what is claimed may not be there
    while len(content) <= size and (piece := file.read(min(BYTES_AT_A_TIME, size + 1))):
        content += piece
    if len(content) != size:
        there = "more" if len(content) > size else str(len(content))
        raise ValueError(f"it says {shape}, which is {size} bytes, and has {there}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_cifar(path: Path) -> Mapping[str | bytes, Any]:
    """The dictionary of a file of CIFAR's version for Python, which is a pickle; see `read_pickle`.

    Raises:
        DataError: not such a file.
    """
    try:
        size = path.stat().st_size
        if size > MOST_PICKLED:
            raise ValueError(f"it has {size} bytes; at most {MOST_PICKLED} are read")
        found = read_pickle(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
    except (*NOT_SUCH_A_FILE, IndexError) as error:
        raise DataError(f"{path}: not a CIFAR file: {error}") from None
    return found


def cifar_pixels(content: Mapping[str | bytes, Any], path: Path) -> Array:
    """(N, 32, 32, 3) uint8: in the file a row an image, its red plane first.

    Raises:
        DataError: there are no such images in it.
    """
    raw = getattr(content.get("data"), "state", None)
    row = 3 * CIFAR_SIDE**2
    # NumPy's state: version, shape, type, whether the first dimension is the fastest, the bytes.
    if not isinstance(raw, tuple) or len(raw) != 5 or raw[3] is not False or not _is_pair(raw[1]):
        raise DataError(f"{path}: not a CIFAR file: no array `data` of rows of bytes")
    try:
        numbers = raw[4].encode("latin1") if isinstance(raw[4], str) else raw[4]
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: not a CIFAR file: `data`: {error}") from None
    if not isinstance(numbers, (bytes, bytearray)):
        raise DataError(f"{path}: not a CIFAR file: `data` has no bytes")
    if raw[1] != (len(numbers) // row, row) or len(numbers) % row:
        raise DataError(f"{path}: not a CIFAR file: `data` is {raw[1]} of {len(numbers)} bytes")
    planes = np.frombuffer(numbers, dtype=np.uint8).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1)


def _is_pair(shape: object) -> bool:
    """Of numbers: nothing else is compared or printed, as it may have no end."""
    if not isinstance(shape, tuple) or len(shape) != 2:
        return False
    return all(isinstance(number, int) for number in shape)
