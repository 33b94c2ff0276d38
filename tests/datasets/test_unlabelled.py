from pathlib import Path

import pytest

from cdb_video.datasets.annotations import UNLABELLED, Vocabulary
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError


def write(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        suffix = "txt" if not text.startswith("path") else "csv"
        (root / f"{name}.{suffix}").write_text(text)
    return root


def test_a_split_column_may_have_a_split_of_empty_labels(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path,verb,split\na.mp4,take,train\nb.mp4,,test\n")

    test = read_split(tmp_path, split="test", check_files=False)

    assert test.labels("verb").tolist() == [UNLABELLED]
    assert test.vocabularies["verb"].names == ("take",)
    assert test.class_counts("verb").tolist() == [0]


def test_a_list_of_paths_is_an_unlabelled_split(tmp_path: Path) -> None:
    write(tmp_path, train="a.mp4 3\nb.mp4 12\n", test="c d.mp4\n\n/far/e.mp4\n")

    test = read_split(tmp_path, split="test", check_files=False)

    assert [record.path for record in test.records] == [tmp_path / "c d.mp4", Path("/far/e.mp4")]
    assert test.vocabularies["label"].names == ("3", "12")
    assert test.labels("label").tolist() == [UNLABELLED, UNLABELLED]


def test_a_list_of_files_beside_a_table_with_splits_is_no_split(tmp_path: Path) -> None:
    write(tmp_path, clips="path,label,split\na.mp4,x,train\n", files="a.mp4\nb.mp4\n")

    assert len(read_split(tmp_path, split="train", check_files=False)) == 1


def test_a_list_of_files_beside_class_folders_makes_no_table(tmp_path: Path) -> None:
    (tmp_path / "train/cut").mkdir(parents=True)
    (tmp_path / "train/cut/a.mp4").touch()
    write(tmp_path, files="train/cut/a.mp4\n")

    assert read_split(tmp_path, split="train").heads == ("label",)


def test_a_checkpoints_classes_are_enough(tmp_path: Path) -> None:
    write(tmp_path, test="path,room\na.mp4,kitchen\n")
    classes = {"verb": Vocabulary(["take", "put"])}

    split = read_split(tmp_path, split="test", check_files=False, vocabularies=classes)

    assert split.vocabularies == classes
    assert split.records[0].labels == {"verb": UNLABELLED}
    assert split.records[0].metadata == {"room": "kitchen"}
    with pytest.raises(DataError, match="no label column"):
        read_split(tmp_path, split="test", check_files=False)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("path,verb\na.mp4,take\n", "test.csv: no column 'noun'; there are: path, verb"),
        ("path,Verbs\na.mp4,take\n", "test.csv: no column 'verb'; there are: path, Verbs"),
    ],
)
def test_what_looks_like_a_slip_is_refused(tmp_path: Path, test: str, expected: str) -> None:
    write(tmp_path, train="path,verb,noun\nb.mp4,take,cup\n", test=test)

    with pytest.raises(DataError) as caught:
        read_split(tmp_path, split="test", check_files=False)

    assert expected in str(caught.value)


def test_some_lines_without_a_label_are_refused(tmp_path: Path) -> None:
    write(tmp_path, train="a.mp4\nb.mp4 2\n")

    with pytest.raises(DataError, match=r"train\.txt:1: expected 'path label', found 'a\.mp4'"):
        read_split(tmp_path, format="table", split="train", check_files=False)
