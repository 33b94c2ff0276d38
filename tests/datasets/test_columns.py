from pathlib import Path

import pytest

from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.datasets.readers import read_split
from cdb_video.datasets.table import read_table
from cdb_video.errors import DataError


def write(root: Path, text: str, name: str = "data.csv") -> Path:
    (root / name).write_text(text)
    return root


def error_of(root: Path, columns: dict[str, str], **arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        read_split(
            root,
            split="train",
            columns=columns,
            check_files=False,
            **arguments,  # type: ignore[arg-type]
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cell_is_composed_of_several(tmp_path: Path) -> None:
    text = "uid,person,verb,noun,split\n7,Ann,take,cup,train\n8,Bob,put,,train\n"
    columns = {
        "path": "{person}/clip {uid}.mp4",
        "action": "{verb} {noun}",
        "video_id": "{uid}",
        "recording": "person",
    }

    split = read_split(
        write(tmp_path, text), split="train", columns=columns, check_files=False, heads=["action"]
    )

    first, second = split.records
    assert first.path == tmp_path / "Ann/clip 7.mp4"
    assert (first.id, first.recording) == ("7", "Ann")
    assert split.vocabularies["action"].names == ("take cup",)
    # A part of it is empty, so it is.
    assert second.labels == {"action": UNLABELLED}
    # What a template is composed of stays, what is renamed does not.
    assert first.metadata == {"uid": "7", "verb": "take", "noun": "cup"}


def test_one_column_may_stand_for_two_of_ours(tmp_path: Path) -> None:
    text = "video,label,split\na.mp4,x,train\n"

    [record] = read_table(
        write(tmp_path, text), ["train"], columns={"path": "video", "recording": "video"}
    ).records

    assert (record.path, record.recording) == (tmp_path / "a.mp4", "a.mp4")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"pth": "file"}, "data.columns: 'pth' is no column of ours; did you mean 'path'? (our n"),
        ({"strat_s": "begin"}, "did you mean 'start_s'?"),
        ({"camera": "cam"}, "allowed: path, video_id, recording, split, start_s, stop_s, start_f"),
        ({"path": "{vido}.mp4"}, "no column 'vido' (data.columns.path: '{vido}.mp4'); there are:"),
        ({"verb": "verb_clas"}, "data.csv: no column 'verb_clas'; there are: file, verb_class, sp"),
        (
            {"path": "fil"},
            "no column 'fil'; there are: file, verb_class, split; did you mean 'file",
        ),
    ],
)
def test_bad_maps_are_refused(tmp_path: Path, columns: dict[str, str], expected: str) -> None:
    write(tmp_path, "file,verb_class,split\na.mp4,take,train\n")

    assert expected in error_of(tmp_path, {"path": "file"} | columns, format="table")


def test_heads_and_the_hold_out_column_may_be_mapped(tmp_path: Path) -> None:
    write(tmp_path, "path,t,s,split\na.mp4,knife,Ann,train\n")
    columns = {"tool": "t", "person": "s"}

    split = read_split(
        tmp_path,
        split="train",
        columns=columns,
        heads=["tool"],
        hold_out_column="person",
        hold_out_subjects=["Ann"],
        part="held_out",
        check_files=False,
    )

    assert split.records[0].metadata == {"person": "Ann"}
    assert "'person' is no column of ours" in error_of(tmp_path, columns, heads=["tool"])


def test_blank_rows_of_a_spreadsheet_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(
        b"\xef\xbb\xbf  \r\npath,label,split\r\na.mp4,x,train\r\n"
        b",,\r\n\r\n   \r\nb.mp4,y,train\r\n,,"
    )

    assert [r.id for r in read_table(tmp_path, ["train"]).records] == ["a", "b"]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    text = '\npath,label,split\n\n"a, 1.mp4",x,train\nb.mp4,,\n'

    with pytest.raises(DataError, match=r"data\.csv:5: the column 'split' is empty"):
        read_table(write(tmp_path, text), ["train"])
