"""Small image data sets in the forms that `datasets.images` reads."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image

Array = np.ndarray[Any, np.dtype[np.uint8]]


def write_idx(path: Path, numbers: Array) -> Path:
    """An array of bytes as MNIST's files have it; compressed where the name ends in .gz."""
    header = struct.pack(f">HBB{numbers.ndim}I", 0, 8, numbers.ndim, *numbers.shape)
    content = header + numbers.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def made_images(number: int, *, side: int, seed: int) -> Array:
    """(number, side, side) random grey levels."""
    return np.random.default_rng(seed).integers(256, size=(number, side, side), dtype=np.uint8)


def write_mnist(
    root: Path, *, per_class: int, num_classes: int = 4, side: int = 16, suffix: str = ""
) -> Path:
    """Train and test images of classes in turn: image i is of class i modulo `num_classes`.

    An image of class c is bright in its c-th stripe, so a network learns them at once.
    """
    for seed, (prefix, number) in enumerate((("train", per_class), ("t10k", 3))):
        labels = np.arange(number * num_classes, dtype=np.uint8) % num_classes
        images = made_images(len(labels), side=side, seed=seed) // 4
        stripe = side // num_classes
        for image, label in zip(images, labels, strict=True):
            image[label * stripe : (label + 1) * stripe] += 190
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return root


def write_cifar_10(root: Path, *, per_batch: int = 4) -> Array:
    """The files of CIFAR-10 for Python; the images (N, 32, 32, 3) of its batches and of test."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"class {i}" for i in range(10)]
    _dump(root / "batches.meta", {"label_names": names, "num_vis": 3072})
    made = []
    for n, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = made_images(per_batch * 3, side=32, seed=n).reshape(per_batch, 3072)
        labels = [(n * per_batch + i) % 10 for i in range(per_batch)]
        _dump(root / name, {"data": rows, "labels": labels, "filenames": ["x.png"] * per_batch})
        made.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.concatenate(made)


def write_cifar_100(root: Path, *, per_class: int = 1, num_classes: int = 100) -> Path:
    """The files of CIFAR-100 for Python, image i of class i modulo `num_classes`, black."""
    root.mkdir(parents=True, exist_ok=True)
    fine = [f"fine {i:02d}" for i in range(num_classes)]
    _dump(root / "meta", {"fine_label_names": fine, "coarse_label_names": ["even", "odd"]})
    for name, number in (("train", per_class), ("test", 1)):
        labels = [i % num_classes for i in range(number * num_classes)]
        rows = np.zeros((len(labels), 3072), dtype=np.uint8)
        coarse = [label % 2 for label in labels]
        _dump(root / name, {"data": rows, "fine_labels": labels, "coarse_labels": coarse})
    return root


class _Python2(pickle._Pickler):  # type: ignore[name-defined]  # the one that can be changed
    """Writes strings as Python 2 did, which wrote the published files."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def _dump(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        _Python2(file, protocol=2).dump(content)


def write_image(path: Path, pixels: Array) -> Path:
    """An image (H, W) or (H, W, 3), without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return path
