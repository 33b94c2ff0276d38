"""Image data sets: an image is a video of one frame.

Read are MNIST's IDX files, CIFAR-10 and CIFAR-100 for Python, folders `<split>/<class>/<image>`,
and lists of paths and labels as those of ImageNet-LT. Files that hold many images are videos with a
frame an image, shown one a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.datasets.folder import refuse_unprintable, sort_class_names
from cdb_video.datasets.image_files import (
    cifar_pixels,
    idx_shape,
    read_cifar,
    read_idx_labels,
)
from cdb_video.datasets.long_tail import LongTail, divide
from cdb_video.errors import DataError, UnknownSplitError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
EXPECTED_FILES = "the image data sets of docs/data_format.md#images"
TRAIN, VAL = "train", "val"
"""The split that a long tail is made of, and the one that `val_per_class` makes."""

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_CIFAR_10: dict[str, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_CIFAR_100: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}
# Where the files are in the folders that torchvision and the archives make.
_IDX_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
_CIFAR_FOLDERS = ("", "cifar-10-batches-py", "cifar-100-python")


def read_images(
    root: Path,
    splits: Sequence[str],
    *,
    annotations: Path | None = None,
    val_per_class: int = 0,
    long_tail: LongTail | None = None,
    seed: int | None = None,
) -> Split:
    """The union of the named splits; the one head is `label`.

    Args:
        root: of the images.
        splits: such as `train`, `val`, `test`.
        annotations: a folder of lists `*_<split>.txt`, relative to the root; None: by looking.
        val_per_class: images of each class of `train` that make the split `val`.
        long_tail: which of the rest of `train` are kept.
        seed: which images these are; None: by the order in the files.

    Raises:
        UnknownSplitError: the data have no such split.
        DataError: files that cannot be used, or too few images for a tail.
    """
    source = _find(root, annotations)
    if val_per_class and VAL in source.splits:
        raise DataError(
            f"data.val_per_class={val_per_class}: the data has a split 'val' already; it is for "
            "data without one"
        )
    there = [*source.splits, *([VAL] if val_per_class else [])]
    for name in splits:
        if name not in there:
            more = "" if VAL in there else "; data.val_per_class takes one out of train"
            raise UnknownSplitError(
                f"{root}: no split {name!r}; there are: {', '.join(sorted(there))}{more}"
            )
    names = _kept_classes(source.names, long_tail)
    cut = val_per_class > 0 or long_tail is not None
    parts = {}
    for name in {TRAIN if val_per_class and name == VAL else name for name in splits}:
        records = _of_classes(source.read(name), source.names, names)
        parts[name] = records
        if name == TRAIN and cut:
            made = _divide(records, names, long_tail, val_per_class=val_per_class, seed=seed)
            parts[TRAIN] = made[TRAIN]
            if val_per_class:
                parts[VAL] = made[VAL]
    chosen = [record for name in dict.fromkeys(splits) for record in parts[name]]
    _refuse_equal_ids(chosen)
    return Split("+".join(splits), chosen, {"label": Vocabulary(names)})


def _divide(
    records: Sequence[VideoRecord],
    names: Sequence[str],
    tail: LongTail | None,
    *,
    val_per_class: int,
    seed: int | None,
) -> dict[str, list[VideoRecord]]:
    by_class: dict[str, list[int]] = {name: [] for name in names}
    for i, record in enumerate(records):
        by_class[names[record.labels["label"]]].append(i)
    chosen = divide(by_class, tail=tail, val_per_class=val_per_class, seed=seed)
    return {name: [records[i] for i in images] for name, images in chosen.items()}


def _refuse_equal_ids(records: Sequence[VideoRecord]) -> None:
    seen: dict[str, VideoRecord] = {}
    for record in records:
        first = seen.setdefault(record.id, record)
        if first is not record:
            raise DataError(f"{record.path}: an image of this name is there already: {first.path}")


def _kept_classes(names: Sequence[str], tail: LongTail | None) -> Sequence[str]:
    if tail is None or tail.classes is None:
        return names
    for name in tail.classes:
        if name not in names:
            raise DataError(
                f"data.long_tail.classes: no class {name!r}; there are: {', '.join(names[:20])}"
            )
    return tail.classes


def _of_classes(
    records: Iterable[VideoRecord], names: Sequence[str], kept: Sequence[str]
) -> list[VideoRecord]:
    """Those of the kept classes, numbered in their order."""
    if kept is names:
        return list(records)
    index = {names.index(name): i for i, name in enumerate(kept)}
    return [
        dataclasses.replace(record, labels={"label": index[record.labels["label"]]})
        for record in records
        if record.labels["label"] in index
    ]


@dataclasses.dataclass(frozen=True)
class _Source:
    names: Sequence[str]
    splits: Sequence[str]
    read: Callable[[str], list[VideoRecord]]


def _find(root: Path, annotations: Path | None) -> _Source:
    if annotations is not None:
        return _lists(root, sorted((root / annotations).glob("*_*.txt")), root / annotations)
    found: dict[Path, Callable[[], _Source]] = {}
    lists = sorted(root.glob("ImageNet_LT_*.txt"))
    if any(path.name == "ImageNet_LT_train.txt" for path in lists):
        found[root / "ImageNet_LT_train.txt"] = partial(_lists, root, lists, root)
    for folder in _IDX_FOLDERS:
        path = _idx_file(root / folder, "train", "images-idx3")
        if path.exists():
            found[path] = partial(_idx, root / folder)
    for folder in _CIFAR_FOLDERS:
        for files in (_CIFAR_10, _CIFAR_100):
            path = root / folder / files["test"][0]
            if path.is_file():
                found[path] = partial(_cifar, root / folder, files)
    if len(found) > 1:
        raise DataError(
            f"data.root={root}: several data sets, by {', '.join(map(str, found))}; "
            "give the folder of one"
        )
    for source in found.values():
        return source()
    if images := _find_images(root):
        return _folders(root, images)
    raise DataError(
        f"{root}: no images found; looked for train-images-idx3-ubyte (MNIST), test_batch "
        "(CIFAR-10), test (CIFAR-100), ImageNet_LT_train.txt, <split>/<class>/<image>"
    )


def _idx_file(folder: Path, prefix: str, kind: str) -> Path:
    plain = folder / f"{prefix}-{kind}-ubyte"
    packed = folder / f"{plain.name}.gz"
    return packed if packed.exists() and not plain.exists() else plain


def _idx(folder: Path) -> _Source:
    labels = {
        split: read_idx_labels(_idx_file(folder, prefix, "labels-idx1"))
        for split, prefix in _IDX_PREFIX.items()
    }

    def read(split: str) -> list[VideoRecord]:
        path = _idx_file(folder, _IDX_PREFIX[split], "images-idx3")
        number = idx_shape(path)[0]
        if number != len(labels[split]):
            raise DataError(
                f"{path}: {number} images, and the file beside it has {len(labels[split])} labels"
            )
        return _frames(path, labels[split], split=split)

    classes = range(1 + max(max(found) for found in labels.values()))
    return _Source([str(i) for i in classes], list(labels), read)


def _cifar(folder: Path, files: dict[str, tuple[str, ...]]) -> _Source:
    meta = folder / ("batches.meta" if files is _CIFAR_10 else "meta")
    kind = "" if files is _CIFAR_10 else "fine_"
    known = read_cifar(meta)
    names = _texts(known, f"{kind}label_names", meta)
    groups = _texts(known, "coarse_label_names", meta) if kind else []

    def read(split: str) -> list[VideoRecord]:
        records: list[VideoRecord] = []
        for file in files[split]:
            path = folder / file
            content = read_cifar(path)
            number = len(cifar_pixels(content, path))
            labels = _numbers(content, f"{kind}labels", path, below=len(names), number=number)
            found = _frames(path, labels, split=split, first=len(records))
            if groups:
                coarse = _numbers(content, "coarse_labels", path, below=len(groups), number=number)
                found = [
                    dataclasses.replace(record, metadata={"superclass": groups[label]})
                    for record, label in zip(found, coarse, strict=True)
                ]
            records += found
        return records

    return _Source(names, list(files), read)


def _texts(content: object, key: str, path: Path) -> list[str]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: not a CIFAR file: no list {key!r} of names")
    return found


def _numbers(content: object, key: str, path: Path, *, below: int, number: int) -> list[int]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(
        isinstance(label, int) and 0 <= label < below for label in found
    ):
        raise DataError(f"{path}: not a CIFAR file: no list {key!r} of numbers below {below}")
    if len(found) != number:
        raise DataError(f"{path}: {number} images and {len(found)} numbers in {key!r}")
    return found


def _frames(path: Path, labels: Sequence[int], *, split: str, first: int = 0) -> list[VideoRecord]:
    """A record an image of a file that holds many: second i shows image i."""
    return [
        VideoRecord(
            id=f"{split}/{first + i:05d}",
            path=path,
            video_id=f"{split}/{first + i:05d}",
            recording=f"{split}/{first + i:05d}",
            labels={"label": label},
            start_s=float(i),
            stop_s=float(i + 1),
        )
        for i, label in enumerate(labels)
    ]


def _find_images(root: Path) -> list[Path]:
    """Images at `<split>/<class>/`, sorted; hidden ones left out."""
    found = sorted(
        path
        for path in root.glob("*/*/*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    for path in found:
        refuse_unprintable(path)
    return found


def _folders(root: Path, images: Sequence[Path]) -> _Source:
    names = sort_class_names(path.parent.name for path in images)
    index = {name: i for i, name in enumerate(names)}
    splits = sorted({path.parent.parent.name for path in images})

    def read(split: str) -> list[VideoRecord]:
        return [
            _file_record(path, root, index[path.parent.name])
            for path in images
            if path.parent.parent.name == split
        ]

    return _Source(names, splits, read)


def _lists(root: Path, lists: Sequence[Path], place: Path) -> _Source:
    """Lists `*_<split>.txt` of lines `path label`; a class is named by its training images' folder.

    ImageNet's validation images, of which ImageNet-LT's test is made, may lie in no such folder.
    Lists that nobody asks for, as of images of no class, are not read.
    """
    if not place.is_dir():
        raise DataError(f"data.annotations: no folder {place}")
    files = {path.stem.rpartition("_")[2]: path for path in lists}
    if TRAIN not in files:
        raise DataError(f"{place}: no list *_train.txt of lines 'path label'")
    names: dict[int, str] = {}
    for image, label in _read_list(files[TRAIN]):
        name = Path(image).parent.name
        if names.setdefault(label, name) != name:
            raise DataError(f"{files[TRAIN]}: label {label} is {names[label]} and {name}")
    order = sorted(names)
    index = {label: i for i, label in enumerate(order)}

    def read(split: str) -> list[VideoRecord]:
        records = []
        for image, label in _read_list(files[split]):
            if label not in index:
                raise DataError(f"{files[split]}: label {label} has no image in {files[TRAIN]}")
            records.append(_file_record(root / image, root, index[label]))
        return records

    return _Source([names[label] for label in order], list(files), read)


def _read_list(path: Path) -> list[tuple[str, int]]:
    found = []
    for number, written in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = written.strip()
        if not line:
            continue
        image, _, label = line.rpartition(" ")
        if not image or not label.isascii() or not label.isdigit():
            raise DataError(f"{path}:{number}: {line!r}; expected 'path label'")
        found.append((image, int(label)))
    return found


def _file_record(path: Path, root: Path, label: int) -> VideoRecord:
    # An absolute path in a list may lie anywhere.
    name = (
        (path.relative_to(root) if path.is_relative_to(root) else path).with_suffix("").as_posix()
    )
    return VideoRecord(id=name, path=path, video_id=name, recording=name, labels={"label": label})
