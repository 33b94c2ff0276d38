from pathlib import Path

import pytest

from cdb_video.datasets.folder import read_folder, sort_class_names
from cdb_video.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_split_folders_give_records_and_the_classes_of_every_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/put down/b.mp4", "train/cut/A.MKV", "train/cut/notes.txt")
    touch(tmp_path, "val/take/c.webm", "train/cut/._A.mp4", ".cache/cut/d.mp4")

    train = read_folder(tmp_path, ["train"])
    val = read_folder(tmp_path, ["val"])

    assert train.vocabularies["label"].names == ("cut", "put down", "take")
    assert val.vocabularies == train.vocabularies
    assert [r.id for r in train.records] == ["train/cut/A", "train/put down/b"]
    assert train.records[0].path == tmp_path / "train/cut/A.MKV"
    assert train.records[0].video_id == train.records[0].recording == "train/cut/A"
    assert train.labels("label").tolist() == [0, 1]
    assert val.labels("label").tolist() == [2]


def test_class_folders_are_drawn_70_15_15_in_every_class(tmp_path: Path) -> None:
    # 15 % rounded half up: 3 of 20, 1 of 4, 0 of 3 for val and for test.
    for name, num_clips in (("common", 20), ("rare", 4), ("rarer", 3), ("single", 1)):
        touch(tmp_path, *(f"{name}/{i:02d}.mp4" for i in range(num_clips)))

    splits = [read_folder(tmp_path, [name]) for name in ("train", "val", "test")]

    assert [split.class_counts("label").tolist() for split in splits] == [
        [14, 2, 3, 1],
        [3, 1, 0, 0],
        [3, 1, 0, 0],
    ]
    ids = [record.id for split in splits for record in split.records]
    assert len(ids) == len(set(ids)) == 28


def test_draw_is_the_same_again_and_a_new_clip_moves_only_its_class(tmp_path: Path) -> None:
    for name in ("cut", "put"):
        touch(tmp_path, *(f"{name}/{i}.mp4" for i in range(9)))
    before = [record.id for record in read_folder(tmp_path, ["train"]).records]

    assert [record.id for record in read_folder(tmp_path, ["train"]).records] == before

    touch(tmp_path, "cut/new.mp4")
    after = [record.id for record in read_folder(tmp_path, ["train"]).records]
    assert [i for i in after if i.startswith("put/")] == [i for i in before if i.startswith("put/")]
    # A draw, not the first files in order: its first two go to no split in particular.
    assert before[:7] != [f"cut/{i}" for i in range(7)]


def test_several_splits_are_read_as_their_union(tmp_path: Path) -> None:
    touch(tmp_path, "a/cut/1.mp4", "b/cut/1.mp4", "c/cut/1.mp4")

    split = read_folder(tmp_path, ["a", "c"])

    assert split.name == "a+c"
    assert [record.id for record in split.records] == ["a/cut/1", "c/cut/1"]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.mp4", "data/train/put/1.mp4")
    (tmp_path / "data/train/cut").symlink_to(tmp_path / "elsewhere")

    split = read_folder(tmp_path / "data", ["train"])

    assert [record.id for record in split.records] == ["train/cut/1", "train/put/1"]


def test_integer_class_names_are_ordered_by_value() -> None:
    assert sort_class_names(["10", "9", "2", "9"]) == ["2", "9", "10"]
    assert sort_class_names(["10", "9", "b"]) == ["10", "9", "b"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["walk/notes.txt"], "found no video"),
        (["walk/1.mp4", "train/walk/1.mp4"], "found {root}/walk/1.mp4 and {root}/train/walk/1.mp4"),
        (["train/walk/1.mp4", "0.mp4"], "found {root}/0.mp4 and"),
        (["train/walk/deep/1.mp4"], "found {root}/train/walk/deep/1.mp4"),
        (["walk/1.mp4", "run/1.wmv"], "{root}/run: class folder without a video in any split"),
        (["train/walk/1.mp4", "train/walk/1.avi"], "1.mp4: same name as {root}/train/walk/1.avi"),
        (["train/walk/1.mp4", "val/run/1.wmv"], "{root}/val/run: class folder without a video"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    touch(tmp_path, *files)

    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, ["train"])

    assert expected.format(root=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "there"), [("train/walk/1.mp4", "train"), ("walk/1.mp4", "train, val, test")]
)
def test_unknown_split_names_those_that_exist(tmp_path: Path, file: str, there: str) -> None:
    touch(tmp_path, file)

    with pytest.raises(DataError, match=f"no split 'dev'; there are: {there}$"):
        read_folder(tmp_path, ["dev"])


def test_a_name_that_is_not_utf8_is_refused_in_one_printable_line(tmp_path: Path) -> None:
    touch(tmp_path, "train/cut/b.mp4", "train/cut/a\udcff.mp4")

    with pytest.raises(DataError, match=r"a\\udcff\.mp4': the name is not UTF-8") as caught:
        read_folder(tmp_path, ["train"])

    assert str(caught.value).isprintable()
