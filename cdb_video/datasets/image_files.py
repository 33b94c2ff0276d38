"""Files that hold a whole image data set: MNIST's IDX, and the batches of CIFAR."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cdb_video.errors import DataError

Array = np.ndarray[Any, np.dtype[np.uint8]]

CIFAR_SIDE = 32
CIFAR_NAMES = frozenset({*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "train", "test"})
MOST_BYTES = 2**33
"""Of one file, unpacked: what a header claims beyond it is no data set of small images."""
NOT_SUCH_A_FILE = (OSError, EOFError, ValueError, KeyError, TypeError, struct.error, zlib.error)


def is_packed(path: Path) -> bool:
    """Whether a file, by its name, holds many images: `*-idx3-ubyte`, also gzipped, or a batch."""
    return path.name in CIFAR_NAMES or path.name.removesuffix(".gz").endswith("-idx3-ubyte")


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
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx(file)
    except NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not an IDX file of bytes: {error}") from None


def _idx(file: BinaryIO | gzip.GzipFile) -> Array:
    zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
    if zeros or kind != 0x08 or not 1 <= dimensions <= 3:
        raise ValueError("it does not begin as one")
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    size = math.prod(shape)
    if size > MOST_BYTES:
        raise ValueError(f"it claims {size} bytes")
    content = file.read(size + 1)
    if len(content) != size:
        there = "more" if len(content) > size else str(len(content))
        raise ValueError(f"it says {shape}, which is {size} bytes, and has {there}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_cifar(path: Path) -> Mapping[str, Any]:
    """The dictionary of a file of CIFAR's version for Python, which is a pickle.

    Nothing that the file names is run: where it asks for NumPy's array it gets `_Inert`, which does
    nothing, where it asks for bytes it gets `_latin1`, and everything else is refused.

    Raises:
        DataError: not such a file.
    """
    try:
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
    if len(raw) != 5 or raw[3] or not isinstance(raw[4], str | bytes):
        raise DataError(f"{path}: not a CIFAR file: no array `data` of bytes")
    numbers = raw[4].encode("latin1") if isinstance(raw[4], str) else raw[4]
    if tuple(raw[1]) != (len(numbers) // row, row) or len(numbers) % row:
        raise DataError(f"{path}: not a CIFAR file: `data` is {raw[1]} of {len(numbers)} bytes")
    planes = np.frombuffer(numbers, dtype=np.uint8).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1)


class _Inert:
    """In place of NumPy's array and type: keeps what it is given, and does nothing with it."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


class _CifarReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype"}:
            return _Inert
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
