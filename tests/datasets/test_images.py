"""Image data sets: MNIST's files, CIFAR, folders, lists; what damaged and hostile ones give."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdb_video.clips.decoders import open_video
from cdb_video.datasets.image_files import read_cifar, read_idx, read_pixels
from cdb_video.datasets.long_tail import LongTail
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError, UnknownSplitError
from tests.image_files import (
    made_images,
    write_cifar_10,
    write_cifar_100,
    write_idx,
    write_image,
    write_mnist,
)


def read(root: Path, split: str | list[str], **options: Any) -> Any:
    return read_split(root, format="images", split=split, **options)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
def test_mnist_files_are_videos_with_an_image_a_second(
    tmp_path: Path, suffix: str, folder: str
) -> None:
    write_mnist(tmp_path / folder, per_class=2, suffix=suffix)

    train, test = read(tmp_path, "train"), read(tmp_path, "test")

    assert train.vocabularies["label"].names == ("0", "1", "2", "3")
    assert (len(train), len(test)) == (8, 12)
    assert train.labels("label").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    sixth = train.records[5]
    assert (sixth.id, sixth.start_s, sixth.stop_s) == ("train/00005", 5.0, 6.0)
    assert sixth.path.name == f"train-images-idx3-ubyte{suffix}"
    expected = made_images(8, side=16, seed=0)[5] // 4
    expected[4:8] += 190  # the stripe of class 1
    assert np.array_equal(read_pixels(sixth.path)[5], np.stack([expected] * 3, axis=-1))


def test_cifar_10_is_five_batches_in_order(tmp_path: Path) -> None:
    pixels = write_cifar_10(tmp_path / "cifar-10-batches-py")

    train, test = read(tmp_path, "train"), read(tmp_path, "test")

    assert (len(train), len(test)) == (20, 4)
    assert train.vocabularies["label"].names[3] == "class 3"
    assert train.labels("label").tolist() == [i % 10 for i in range(20)]
    last = train.records[19]
    assert (last.id, last.path.name, last.start_s) == ("train/00019", "data_batch_5", 3.0)
    assert np.array_equal(read_pixels(last.path), pixels[16:20])
    assert np.array_equal(read_pixels(test.records[0].path), pixels[20:])


def test_cifar_100_has_fine_labels_and_superclasses_beside_them(tmp_path: Path) -> None:
    write_cifar_100(tmp_path)

    test = read(tmp_path, "test")

    assert test.vocabularies["label"].names[:2] == ("fine 00", "fine 01")
    assert test.records[7].metadata == {"superclass": "odd"}


# Shares of the released CDB code: 25 a class held out, then the first int(475 / 100^(c / 99)).
def test_cifar_100_lt_of_the_cdb_code(tmp_path: Path) -> None:
    write_cifar_100(tmp_path, per_class=500)
    options = {"val_per_class": 25, "long_tail": LongTail(imbalance=100)}

    train, val = read(tmp_path, "train", **options), read(tmp_path, "val", **options)

    counts = train.class_counts("label").tolist()
    assert (counts[0], counts[99], sum(counts)) == (475, 4, 10_302)
    assert set(val.class_counts("label").tolist()) == {25}
    # In the file, class 0 has the images 0, 100, 200, ...: the last 25 from image 47,500 on.
    assert [r.id for r in val.records if r.labels["label"] == 0][:2] == [
        "train/47500",
        "train/47600",
    ]
    assert [r.id for r in train.records if r.labels["label"] == 99] == [
        "train/00099",
        "train/00199",
        "train/00299",
        "train/00399",
    ]
    both = read(tmp_path, ["train", "val"], **options)
    assert len(both) == 10_302 + 2_500
    assert len({record.id for record in both.records}) == len(both)


def test_two_of_the_classes_in_an_order_of_ones_own(tmp_path: Path) -> None:
    write_mnist(tmp_path, per_class=12)
    tail = LongTail(majority_share=0.75, num_images=8, classes=("3", "1"))

    train = read(tmp_path, "train", long_tail=tail)
    test = read(tmp_path, "test", long_tail=tail)

    assert train.vocabularies["label"].names == ("3", "1")
    assert train.class_counts("label").tolist() == [6, 2]
    assert test.class_counts("label").tolist() == [3, 3]
    # Image 1 of the test file is of class 1, the second here.
    assert {r.id: r.labels["label"] for r in test.records}["test/00001"] == 1


def test_folders_of_images(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/cat/2.jpg", "train/ant/1.png", "test/cat/1.png"):
        write_image(tmp_path / name, np.zeros((4, 6, 3), np.uint8))
    write_image(tmp_path / "train/cat/.3.png", np.zeros((4, 6), np.uint8))

    train = read(tmp_path, "train")

    assert train.vocabularies["label"].names == ("ant", "cat")
    assert [record.id for record in train.records] == ["train/ant/1", "train/cat/1", "train/cat/2"]
    assert train.records[0].start_s is None


def test_imagenet_lt_lists(tmp_path: Path) -> None:
    # Validation images of ImageNet, which are ImageNet-LT's test, lie in no folder of their class.
    lists = {
        "train": ["train/n02/n02_1.JPEG 1", "train/n01/n01_5.JPEG 0", "train/n02/n02_2.JPEG 1"],
        "val": ["train/n01/n01_7.JPEG 0"],
        "test": ["val/ILSVRC2012_val_1.JPEG 1"],
    }
    for split, lines in lists.items():
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write_image((tmp_path / line.split()[0]), np.zeros((4, 4), np.uint8))

    train, test = read(tmp_path, "train"), read(tmp_path, "test")

    assert train.vocabularies["label"].names == ("n01", "n02")
    assert train.labels("label").tolist() == [1, 0, 1]
    assert test.records[0].path == tmp_path / "val/ILSVRC2012_val_1.JPEG"
    (tmp_path / "ImageNet_LT_test.txt").write_text("val/x.JPEG one\n")
    with pytest.raises(DataError, match=r"_test.txt:1: 'val/x.JPEG one'; expected 'path label'"):
        read(tmp_path, "test")
    (tmp_path / "ImageNet_LT_test.txt").write_text("val/ILSVRC2012_val_1.JPEG 2\n")
    with pytest.raises(DataError, match=r"label 2 has no image in .*_train.txt"):
        read(tmp_path, "test")


def test_a_missing_split_or_class_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, per_class=2)

    with pytest.raises(
        UnknownSplitError, match=r"there are: test, train; data.val_per_class takes"
    ):
        read(tmp_path, "val")
    with pytest.raises(DataError, match=r"long_tail.classes: no class 'x'; there are: 0, 1, 2, 3"):
        read(tmp_path, "train", long_tail=LongTail(imbalance=2, classes=("0", "x")))
    with pytest.raises(DataError, match="val_per_class: not for format 'folder'"):
        read_split(tmp_path, format="folder", split="train", val_per_class=1)


def test_no_images_are_said_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found; looked for train-images-idx3-ubyte"):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"abcd", "does not begin as one"),
        (b"\0\0\x08\x01" + struct.pack(">I", 5) + b"abcd", r"it says \(5,\), which is 5 bytes"),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abcd", "and has more"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**20, 3), "it claims"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"{path}: not an IDX file of bytes: .*") as caught:
        read_idx(path)

    assert caught.match(reason)


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_idx(tmp_path / "a-idx3-ubyte.gz", made_images(9, side=9, seed=0))
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"a-idx3-ubyte.gz: not an IDX file"):
        read_idx(path)


class Runs:
    """Runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 2, 4])  # 0 has opcodes of its own
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "test_batch", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"data": Runs(mark)}, protocol=protocol))

    reason = "has a part that no such file has" if protocol == 0 else "asks for posix.mkdir"
    with pytest.raises(DataError, match=f"test_batch: not a CIFAR file: it {reason}"):
        read_cifar(path)

    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the file does what it is said to
    assert mark.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "open", "__import__"])
def test_builtins_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(b"\x80\x02cbuiltins\n" + name.encode() + b"\nX\x01\x00\x00\x001\x85R.")
    assert list(pickletools.genops(path.read_bytes()))  # it is a pickle

    with pytest.raises(DataError, match=f"it asks for builtins.{name}"):
        read_cifar(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "not a CIFAR file"),
        (b"", "not a CIFAR file"),
        (pickle.dumps([1]), "it holds no dictionary"),
        (pickle.dumps({"labels": [1]}), "no array `data` of rows of bytes"),
        (
            pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, protocol=2),
            r"`data` is \(2, 3\) of 6",
        ),
    ],
)
def test_a_damaged_cifar_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(content)

    with pytest.raises(DataError, match=reason):
        read_pixels(path)


def test_labels_out_of_the_list_of_names_are_refused(tmp_path: Path) -> None:
    write_cifar_10(tmp_path)
    rows = np.zeros((1, 3072), np.uint8)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": [10]}, protocol=2))

    with pytest.raises(DataError, match=r"test_batch: .* no list 'labels' of numbers below 10"):
        read(tmp_path, "test")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_fashion_mnist_as_debian_packs_it() -> None:
    root = Path("/usr/share/datasets/fashion-mnist")

    train = read(root, "train", val_per_class=25, long_tail=LongTail(imbalance=100))

    # int(5975 / 100^(c / 9)).
    assert train.class_counts("label").tolist() == [
        *(5975, 3581, 2147, 1287, 771, 462, 277, 166, 99, 59),
    ]
    assert read(root, "test").class_counts("label").tolist() == [1000] * 10


def test_a_long_tail_leaves_a_validation_split_of_the_datas_own_whole(tmp_path: Path) -> None:
    for split, number in {"train": 8, "val": 3, "test": 2}.items():
        for name in "ab":
            for i in range(number):
                write_image(tmp_path / split / name / f"{i}.png", np.zeros((4, 4), np.uint8))
    tail = LongTail(imbalance=4)

    assert read(tmp_path, "train", long_tail=tail).class_counts("label").tolist() == [8, 2]
    assert read(tmp_path, "val", long_tail=tail).class_counts("label").tolist() == [3, 3]
    assert len(read(tmp_path, ["train", "val"], long_tail=tail)) == 10 + 6
    with pytest.raises(DataError, match="val_per_class=1: the data has a split 'val' already"):
        read(tmp_path, "train", val_per_class=1)


def test_other_numbers_of_labels_than_of_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", per_class=2)
    write_idx(tmp_path / "mnist/train-labels-idx1-ubyte", np.zeros(9, np.uint8))
    with pytest.raises(DataError, match="8 images, and the file beside it has 9 labels"):
        read(tmp_path / "mnist", "train")
    write_idx(tmp_path / "mnist/train-labels-idx1-ubyte", np.zeros((8, 1), np.uint8))
    with pytest.raises(DataError, match=r"\(8, 1\); expected a label an image"):
        read(tmp_path / "mnist", "train")

    write_cifar_10(tmp_path / "cifar")
    rows = np.zeros((2, 3072), np.uint8)
    content = pickle.dumps({"data": rows, "labels": [1, 2, 3]}, protocol=2)
    (tmp_path / "cifar/test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch: 2 images and 3 numbers in 'labels'"):
        read(tmp_path / "cifar", "test")


def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/a/0.jpg", "train/b/0.png"):
        write_image(tmp_path / name, np.zeros((4, 4), np.uint8))

    with pytest.raises(DataError, match=r"0\.png: an image of this name is there already: "):
        read(tmp_path, "train")


def test_lists_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    write_image(tmp_path / "train/n01/a.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "ImageNet_LT_train.txt").write_text("train/n01/a.png 0\n")
    # The official download has images of no class too; and notes may lie beside them.
    (tmp_path / "ImageNet_LT_open.txt").write_text("test/b.JPEG -1\n")
    (tmp_path / "class_names.txt").write_text("n01 tench\n")

    assert len(read(tmp_path, "train")) == 1
    with pytest.raises(DataError, match=r"_open.txt:1: 'test/b.JPEG -1'; expected 'path label'"):
        read(tmp_path, "open")
    with pytest.raises(UnknownSplitError, match="there are: open, train"):
        read(tmp_path, "names")


def test_images_of_validation_may_lie_in_folders_of_their_class(tmp_path: Path) -> None:
    lines = {"train": "train/n01440764/n01440764_1.JPEG 0", "test": "val/n01440764/ILSVRC_1.JPEG 0"}
    for split, line in lines.items():
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text(line + "\n")
        write_image(tmp_path / line.split()[0], np.zeros((4, 4), np.uint8))

    assert [record.id for record in read(tmp_path, "test").records] == ["val/n01440764/ILSVRC_1"]


def test_several_data_sets_in_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    write_cifar_10(tmp_path / "cifar-10-batches-py")
    write_cifar_100(tmp_path / "cifar-100-python")
    expected = r"several data sets, by .*cifar-10-batches-py/test_batch, .*cifar-100-python/test;"

    with pytest.raises(DataError, match=expected):
        read(tmp_path, "train")
    assert len(read(tmp_path / "cifar-100-python", "test")) == 100


def test_a_list_may_have_absolute_paths_and_blank_lines(tmp_path: Path) -> None:
    elsewhere = write_image(tmp_path / "elsewhere/n1/a.png", np.zeros((4, 4), np.uint8))
    inside = write_image(tmp_path / "root/train/n0/b.png", np.zeros((4, 4), np.uint8))
    text = f"train/n0/b.png 0 \n{elsewhere} 1\n\n"
    (tmp_path / "root/ImageNet_LT_train.txt").write_text(text)

    split = read(tmp_path / "root", "train")

    assert [record.path for record in split.records] == [inside, elsewhere]
    with pytest.raises(DataError, match=r"data\.untrusted: leads out of"):
        read(tmp_path / "root", "train", untrusted=True)


class State:
    """Pickled as an array of NumPy's whose state is another thing."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, (0,), self.state


@pytest.mark.parametrize(
    "state",
    [
        *(7, "text", {"a": 1}, (), (1, 2, 3, False, 5)),
        (1, (1, 3072), "u1", False, "\u20ac" * 3072),
        (1, (1, 3072), "u1", False, 3072),  # of which `bytes` would make as many
        (1, ([], 3072), "u1", False, bytes(3072)),
    ],
)
def test_a_state_that_is_none_of_an_array_is_refused(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": State(state)}, protocol=2))

    with pytest.raises(DataError, match="test_batch: not a CIFAR file: "):
        read_pixels(path)


def test_a_file_cannot_change_what_reads_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    # The function of bytes with a state: {"__call__": None}.
    path.write_bytes(b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__call__Nsb.")

    with pytest.raises(DataError, match="not a CIFAR file: it changes what is no array"):
        read_cifar(path)


def test_a_file_that_claims_much_and_has_little_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 1000, 1000, 1000) + b"x")
    tracemalloc.start()
    with pytest.raises(DataError, match="and has 1"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**26  # of 10^9 that it claims


def test_a_video_without_a_suffix_may_be_named_test(tmp_path: Path, coded_video: Any) -> None:
    path = coded_video("test.mp4")
    path.rename(tmp_path / "test")

    with open_video(tmp_path / "test") as video:
        assert video.num_frames > 1
