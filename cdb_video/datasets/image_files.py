"""Files that hold a whole image data set: MNIST's IDX, and the batches of CIFAR."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cdb_video.errors import DataError

Array = np.ndarray[Any, np.dtype[np.uint8]]

CIFAR_SIDE = 32
CIFAR_NAMES = frozenset({*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "train", "test"})
MOST_BYTES = 2**30
"""Of one file, unpacked: more is no data set of small images."""
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
        return file.read(1) == pickle.PROTO


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


def read_cifar(path: Path) -> Mapping[str, Any]:
    """The dictionary of a file of CIFAR's version for Python, which is a pickle.

    Nothing that the file names is run: where it asks for NumPy's array it gets `_Inert`, which does
    nothing, where it asks for bytes it gets `_LATIN1`, and everything else is refused.

    Raises:
        DataError: not such a file.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        with path.open("rb") as file:
            found = _CifarReader(file, encoding="latin1").load()
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
    except (*NOT_SUCH_A_FILE, pickle.UnpicklingError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not a CIFAR file: {error}") from None
    return found


def cifar_pixels(content: Mapping[str, Any], path: Path) -> Array:
    """(N, 32, 32, 3) uint8: in the file a row an image, its red plane first.

    Raises:
        DataError: there are no such images in it.
    """
    data = content.get("data")
    raw: tuple[Any, ...] = getattr(data, "state", ())
    row = 3 * CIFAR_SIDE**2
    # NumPy's state: version, shape, type, whether the first dimension is the fastest, the bytes.
    if not isinstance(raw, tuple) or len(raw) != 5 or raw[3] is not False:
        raise DataError(f"{path}: not a CIFAR file: no array `data` of bytes")
    try:
        numbers = raw[4].encode("latin1") if isinstance(raw[4], str) else bytes(raw[4])
    except NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not a CIFAR file: `data`: {error}") from None
    if raw[1] != (len(numbers) // row, row) or len(numbers) % row:
        raise DataError(f"{path}: not a CIFAR file: `data` is {raw[1]} of {len(numbers)} bytes")
    planes = np.frombuffer(numbers, dtype=np.uint8).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1)


class _Inert:
    """In place of NumPy's array and type: keeps what it is given, and does nothing with it."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Latin1:
    """In place of `codecs.encode`; without a dictionary that a file could write to."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes a function")


_LATIN1 = _Latin1()


class _CifarReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype"}:
            return _Inert
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _LATIN1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
