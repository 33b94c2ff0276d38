from pathlib import Path

import pytest

from cdb_video.datasets.annotations import UNLABELLED, Vocabulary
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError

TABLE = (
    "path,verb,participant,split\n"
    "a.mp4,take,Ann,train\n"
    "b.mp4,put,Bob,train\n"
    "c.mp4,,Ann,val\n"
    "d.mp4,cut,Eve,val\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text(TABLE)
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    return tmp_path


def error_of(root: Path, **arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        read_split(root, **{"split": "train", **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_auto_takes_a_csv_for_a_table(table: Path) -> None:
    assert len(read_split(table, split="train")) == 2


def test_auto_takes_a_kinetics_list_for_a_table(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("clips/a.mp4 3\n")

    split = read_split(tmp_path, split="train", check_files=False)

    assert split.vocabularies["label"].names == ("3",)


def test_auto_takes_folders_of_videos_for_classes(tmp_path: Path) -> None:
    (tmp_path / "train/walk").mkdir(parents=True)
    (tmp_path / "train/walk/a.mp4").touch()
    (tmp_path / "README.txt").write_bytes(b"Videos of walks to the caf\xe9.\n")

    assert [r.id for r in read_split(tmp_path, split="train").records] == ["train/walk/a"]


def test_auto_does_not_pass_over_a_table_for_the_folders_beside_it(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    (tmp_path / "video/a.mp4").touch()
    (tmp_path / "data.csv").write_text("pth,label,split\nvideo/a.mp4,walk,train\n")

    message = error_of(tmp_path)

    assert "no column 'path'; there are: pth, label, split; did you mean 'pth'?" in message


def test_auto_says_what_it_looked_for(tmp_path: Path) -> None:
    message = error_of(tmp_path)

    for name in (str(tmp_path), "action_idx.txt", ".csv", "path label", "<class>/<video>"):
        assert name in message


def test_several_splits_are_read_as_their_union(table: Path) -> None:
    split = read_split(table, split=["val", "train"])

    assert split.name == "val+train"
    assert [record.id for record in split.records] == ["c", "d", "a", "b"]


@pytest.mark.parametrize(
    ("part", "expected"), [("all", ["a", "b"]), ("rest", ["b"]), ("held_out", ["a"])]
)
def test_held_out_subjects_are_taken_out_or_kept(
    table: Path, part: str, expected: list[str]
) -> None:
    split = read_split(
        table,
        split="train",
        hold_out_subjects=["Ann"],
        part=part,  # type: ignore[arg-type]
    )

    assert [record.id for record in split.records] == expected
    assert split.vocabularies["verb"].names == ("cut", "put", "take")


def test_hold_out_column_may_be_any_metadata(table: Path) -> None:
    (table / "data.csv").write_text(TABLE.replace("participant", "camera"))

    split = read_split(
        table,
        split="val",
        hold_out_subjects=["Eve"],
        hold_out_column="camera",
        part="held_out",
    )

    assert [record.id for record in split.records] == ["d"]
    assert split.name == "val (held_out)"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"hold_out_subjects": ["Eve"]},
            "no participant 'Eve' in split 'train'; there are: Ann, Bo",
        ),
        ({"hold_out_subjects": []}, "data.hold_out_subjects: empty"),
        (
            {"hold_out_subjects": ["Ann"], "hold_out_column": "person"},
            "data.hold_out_column: no column 'person'; there are: participant",
        ),
        ({"hold_out_subjects": ["Ann", "Bob"]}, "split 'train (rest)' is empty"),
    ],
)
def test_impossible_hold_outs_are_refused(
    table: Path, arguments: dict[str, object], expected: str
) -> None:
    assert expected in error_of(table, part="rest", **arguments)


def test_given_vocabularies_set_heads_and_indices(table: Path) -> None:
    verbs = Vocabulary(["put", "stir", "cut"])

    split = read_split(table, split="val", vocabularies={"verb": verbs})

    assert split.vocabularies == {"verb": verbs}
    assert split.labels("verb").tolist() == [UNLABELLED, 2]


def test_class_outside_the_given_vocabularies_is_refused(table: Path) -> None:
    message = error_of(table, vocabularies={"verb": Vocabulary(["put", "cut"])})

    assert message == "split 'train': a: verb 'take' is none of the 2 classes given"


def test_head_outside_the_given_vocabularies_is_refused(table: Path) -> None:
    vocabularies = {"noun": Vocabulary(["cup"])}

    message = error_of(table, heads=["verb"], vocabularies=vocabularies)

    assert message == "model.heads: no class list for 'verb'; there are: noun"


def test_missing_videos_are_counted_and_the_first_named(table: Path) -> None:
    (table / "a.mp4").unlink()

    message = error_of(table, split=["train", "val"])

    assert message.startswith(f"{table / 'a.mp4'}: no such video; 1 of 4 records")
    assert message.endswith(f"expected paths relative to {table}")
    assert len(read_split(table, split="train", check_files=False)) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"format": "ucf"}, "data.format: 'ucf'; allowed: auto, egtea, epic100, table, folder"),
        ({"part": "heldout"}, "part: 'heldout'; allowed: all, rest, held_out"),
        ({"split": []}, "no split is named"),
        ({"format": "folder", "columns": {"path": "x"}}, "not for format 'folder'"),
        ({"format": "folder", "annotations": "a.csv"}, "data.annotations: a.csv given"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    table: Path, arguments: dict[str, object], expected: str
) -> None:
    assert expected in error_of(table, **arguments)


def test_missing_root_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nowhere") == f"data.root: no folder {tmp_path / 'nowhere'}"
