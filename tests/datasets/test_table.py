import os
from pathlib import Path

import pytest

from cdb_video.datasets.annotations import UNLABELLED, Split
from cdb_video.datasets.table import read_table
from cdb_video.errors import DataError

DATA = Path(os.environ.get("CDB_VIDEO_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
needs_fir_action = pytest.mark.skipif(
    not (DATA / "fir-action").is_dir(), reason=f"no FIR-Action data at {DATA / 'fir-action'}"
)


def read(root: Path, text: str, split: str = "train", **options: object) -> Split:
    (root / "data.csv").write_text(text)
    return read_table(root, [split], **options)  # type: ignore[arg-type]


def error_of(root: Path, text: str, split: str = "train", **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(root, text, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_fir_action
def test_fir_action_has_its_segments_and_a_class_without_validation() -> None:
    train, val, test = (
        read_table(DATA / "fir-action", [name]) for name in ("train", "val", "test")
    )

    assert [len(split) for split in (train, val, test)] == [120, 103, 65]
    assert train.num_classes == {"action": 9}
    assert train.vocabularies == val.vocabularies == test.vocabularies
    active = train.vocabularies["action"].index("active")
    assert train.class_counts("action")[active] == 5
    assert val.class_counts("action")[active] == 0
    # The first line: 4.56,7.84,...,walk,train
    first = train.records[0]
    assert first.id == "20200626_154313_mlx90640_01_light_none@4.56-7.84"
    assert (first.start_s, first.stop_s) == (4.56, 7.84)
    assert first.path.is_file()
    assert not {r.recording for r in train.records} & {r.recording for r in val.records}


def test_every_kind_of_column_lands_in_its_place(tmp_path: Path) -> None:
    text = (
        "path,start_s,stop_s,video_id,recording,verb,label_tool,camera,split\n"
        "v/a b.mp4,1.50,00:01:02.5,a,kitchen 1,take,knife,left,train\n"
        '"v/c, d.mp4",,,,,put,,right,val\n'
    )

    (first,) = read(tmp_path, text).records
    val = read(tmp_path, text, "val")

    assert first.id == "a@1.50-00:01:02.5"
    assert (first.video_id, first.recording) == ("a", "kitchen 1")
    assert first.path == tmp_path / "v/a b.mp4"
    assert (first.start_s, first.stop_s, first.fps) == (1.5, 62.5, None)
    assert first.labels == {"verb": 1, "tool": 0}
    assert first.metadata == {"camera": "left"}
    (second,) = val.records
    assert second.id == second.video_id == second.recording == "v/c, d"
    assert second.path == tmp_path / "v/c, d.mp4"
    assert second.labels == {"verb": 0, "tool": UNLABELLED}
    assert val.vocabularies["verb"].names == ("put", "take")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_and_byte_order_mark_are_found_out(tmp_path: Path, delimiter: str) -> None:
    lines = ["path,label,split", "a.mp4,walk,train", "b.mp4,run,train"]
    text = "\r\n".join(line.replace(",", delimiter) for line in lines)
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())

    split = read_table(tmp_path, ["train"])

    assert [record.id for record in split.records] == ["a", "b"]
    assert split.labels("label").tolist() == [1, 0]


def test_frame_columns_become_seconds(tmp_path: Path) -> None:
    text = "path,start_frame,stop_frame,action,split\na.mp4,30,75,walk,train\n"

    (record,) = read(tmp_path, text, annotation_fps=30).records

    assert (record.id, record.start_s, record.stop_s) == ("a@30-75", 1.0, 2.5)
    assert record.fps is None


def test_one_end_of_a_segment_may_be_open(tmp_path: Path) -> None:
    text = "path,start_s,stop_s,label,split\na.mp4,2,,x,train\nb.mp4,,3,x,train\n"

    a, b = read(tmp_path, text).records

    assert (a.id, a.start_s, a.stop_s) == ("a@2-", 2.0, None)
    assert (b.id, b.start_s, b.stop_s) == ("b@-3", None, 3.0)


def test_folder_of_frames_runs_at_the_annotations_rate(tmp_path: Path) -> None:
    (tmp_path / "frames.v2/a").mkdir(parents=True)
    text = "path,label,split\nframes.v2/a,walk,train\n"

    (record,) = read(tmp_path, text, annotation_fps=25).records

    assert (record.id, record.fps) == ("frames.v2/a", 25)


def test_absolute_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "path,label,split\n/far/a.mp4,walk,train\n").records

    assert record.path == Path("/far/a.mp4")


def test_columns_map_other_names(tmp_path: Path) -> None:
    text = "file,path,verb_class,begin,end,split\na.mp4,ignored,take,1,2,train\n"
    columns = {"path": "file", "verb": "verb_class", "start_s": "begin", "stop_s": "end"}

    split = read(tmp_path, text, columns=columns)

    (record,) = split.records
    assert (record.path, record.start_s, record.stop_s) == (tmp_path / "a.mp4", 1.0, 2.0)
    assert split.heads == ("verb",)
    assert record.metadata == {}


def test_named_heads_take_any_column_and_leave_the_others_as_metadata(tmp_path: Path) -> None:
    text = "path,verb,label_tool,room,split\na.mp4,take,knife,kitchen,train\n"

    split = read(tmp_path, text, heads=["room", "tool"])

    assert split.heads == ("room", "tool")
    assert split.records[0].labels == {"room": 0, "tool": 0}
    assert split.records[0].metadata == {"verb": "take"}


def test_split_files_share_their_classes(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,verb\na.mp4,take\nb.mp4,put\n")
    (tmp_path / "val.csv").write_text("path,verb\nc.mp4,cut\n")
    (tmp_path / "test.csv").write_text("path\nd.mp4\n")  # no labels: no classes either
    (tmp_path / "prices.csv").write_text("shop,price\nx,1\n")  # not a table of videos

    train = read_table(tmp_path, ["train"])
    union = read_table(tmp_path, ["train", "val"])
    named = read_table(tmp_path, ["val"], annotations=Path("val.csv"))

    assert train.vocabularies["verb"].names == ("cut", "put", "take")
    assert train.vocabularies == named.vocabularies
    assert [record.id for record in union.records] == ["a", "b", "c"]
    assert union.name == "train+val"


def test_annotations_may_be_one_of_several_tables(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("path,verb,split\na.mp4,take,train\n")
    (tmp_path / "new.csv").write_text("path,verb,split\nb.mp4,take,train\n")

    split = read_table(tmp_path, ["train"], annotations=Path("new.csv"))

    assert [record.id for record in split.records] == ["b"]


def test_relative_root_finds_split_files_beside_the_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/lists").mkdir(parents=True)
    (tmp_path / "data/lists/train.csv").write_text("path,verb\na.mp4,take\n")
    (tmp_path / "data/lists/val.csv").write_text("path,verb\nb.mp4,put\n")
    monkeypatch.chdir(tmp_path)

    split = read_table(Path("data"), ["val"], annotations=Path("lists/train.csv"))

    assert [record.path for record in split.records] == [Path("data/b.mp4")]
    assert split.num_classes == {"verb": 2}


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_kinetics_lists_keep_paths_with_spaces_and_order_integers(
    tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"train{suffix}").write_text("my clips/a b.mp4 10\n/far/c.mp4,9\n\nd.MP4\t2\n")
    (tmp_path / f"val{suffix}").write_text("e.mp4 11\n")
    (tmp_path / "README.txt").write_text("Clips of 2020\n")

    split = read_table(tmp_path, ["train"])

    assert [record.path for record in split.records] == [
        tmp_path / "my clips/a b.mp4",
        Path("/far/c.mp4"),
        tmp_path / "d.MP4",
    ]
    assert split.vocabularies["label"].names == ("2", "9", "10", "11")
    assert split.labels("label").tolist() == [2, 1, 0]
    assert split.records[0].id == "my clips/a b"


def test_kinetics_list_of_frame_folders(tmp_path: Path) -> None:
    (tmp_path / "frames/a b").mkdir(parents=True)
    (tmp_path / "train.txt").write_text("frames/a b walk\n")

    (record,) = read_table(tmp_path, ["train"], annotation_fps=30).records

    assert (record.path, record.fps) == (tmp_path / "frames/a b", 30)


def test_label_with_spaces_follows_a_comma(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a b.mp4,riding a bike\n")

    assert read_table(tmp_path, ["train"]).vocabularies["label"].names == ("riding a bike",)


@pytest.mark.parametrize("line", ["b.mp4", "b.mp4 1 2", "b.mp4,0.5,2.5,walk"])
def test_bad_list_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.txt").write_text(f"a.mp4 1\n{line}\n")

    with pytest.raises(DataError) as caught:
        read_table(tmp_path, ["train"])

    expected = f"{tmp_path / 'train.txt'}:2: expected 'path label', found {line!r}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("b.mp4,1,2,x,walk", "5 cells under 6 columns"),
        ("b.mp4,1,2,x,walk,train,more", "7 cells under 6 columns"),
        (",1,2,x,walk,train", "the column 'path' is empty"),
        ("b.mp4,1,2,x,walk,", "the column 'split' is empty"),
        ("http://x.org/b.mp4,1,2,x,walk,train", "'http://x.org/b.mp4' is a URL or a playlist"),
        ("concat:b.mp4|c.mp4,1,2,x,walk,train", "is a URL or a playlist"),
        ("b.M3U8,1,2,x,walk,train", "'b.M3U8' is a URL or a playlist"),
        ("b.mp4,2,2,x,walk,train", "'2' to '2': expected 0 <= start < stop"),
        ("b.mp4,3,00:00:02.5,x,walk,train", "'3' to '00:00:02.5': expected 0 <= start"),
        ("b.mp4,-1,2,x,walk,train", "'-1' to '2': expected 0 <= start < stop"),
        ("b.mp4,,0,x,walk,train", "'' to '0': expected 0 <= start < stop"),
        ("b.mp4,one,2,x,walk,train", "'one' to '2' are not seconds or hh:mm:ss"),
        ("b.mp4,1,nan,x,walk,train", "'1' to 'nan' are not seconds or hh:mm:ss"),
        ("b.mp4,00:61:00,2,x,walk,train", "'00:61:00' to '2' are not seconds"),
        ("b.mp4,0,1,a,walk,train", "id 'a@0-1' is also at {file}:2; segments of one video need"),
        ('b.mp4,1,2,x,"walk,train', "not CSV (unexpected end of data)"),
    ],
)
def test_bad_row_is_refused_with_file_and_line(tmp_path: Path, row: str, expected: str) -> None:
    file = tmp_path / "data.csv"
    text = f"path,start_s,stop_s,video_id,label,split\na.mp4,0,1,a,walk,train\n{row}\n"

    message = error_of(tmp_path, text)

    assert message.startswith(f"{file}:3: ")
    assert expected.format(file=file) in message


@pytest.mark.parametrize(
    ("cells", "fps", "expected"),
    [
        ("0,10", None, "start_frame and stop_frame need data.annotation_fps"),
        ("0,2.5", 30, "'0' to '2.5' are not whole frame numbers"),
        ("10,10", 30, "'10' to '10': expected 0 <= start < stop"),
    ],
)
def test_bad_frames_are_refused(
    tmp_path: Path, cells: str, fps: float | None, expected: str
) -> None:
    text = f"path,start_frame,stop_frame,label,split\na.mp4,{cells},walk,train\n"

    message = error_of(tmp_path, text, annotation_fps=fps)

    assert message == f"{tmp_path / 'data.csv'}:2: {expected}"


def test_folder_of_frames_without_a_rate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()

    message = error_of(tmp_path, "path,label,split\nframes,walk,train\n")

    assert message.startswith(f"{tmp_path / 'data.csv'}:2: ")
    assert message.endswith("is a folder of frames; give data.annotation_fps")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (
            "paths,label,split\n",
            {},
            "no column 'path'; there are: paths, label, split; did you mea",
        ),
        ("path,labels,split\na.mp4,x,train\n", {}, "no label column (verb, noun, action, label"),
        ("path,verb,split\na.mp4,x,train\n", {"heads": ["verbs"]}, "did you mean 'verb'?"),
        ("path,verb,split\na.mp4,x,train\n", {"columns": {"start_s": "begn"}}, "no column 'begn'"),
        ("path,verb,split\na.mp4,x,train\n", {"columns": {"path": "file"}}, "no column 'file'"),
        ("path,verb,verb,split\n", {}, "column 'verb' is there twice"),
        ("path,verb,label_verb,split\na.mp4,x,y,train\n", {}, "'verb' and 'label_verb' are the sa"),
        ("path,verb,split\na.mp4,,train\n", {}, "column 'verb' has no label in any row"),
    ],
)
def test_bad_columns_are_refused_with_those_there_are(
    tmp_path: Path, text: str, options: dict[str, object], expected: str
) -> None:
    message = error_of(tmp_path, text, **options)

    assert message.startswith(f"{tmp_path / 'data.csv'}: ")
    assert expected in message


def test_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    by_column = "path,label,split\na.mp4,x,train\nb.mp4,x,val\n"
    assert error_of(tmp_path, by_column, "dev").endswith("dev.csv; there are: train, val")

    (tmp_path / "train.csv").write_text("path,label\na.mp4,x\n")
    assert error_of(tmp_path, by_column, "dev").endswith("dev.csv; there are: data, train")


def test_split_without_rows_is_empty(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.mp4,x\n")
    (tmp_path / "val.csv").write_text("path,label\n")

    with pytest.raises(DataError, match="split 'val' is empty"):
        read_table(tmp_path, ["val"])


def test_equal_ids_in_two_split_files_are_refused_in_their_union(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("path,label\na.mp4,x\n")

    with pytest.raises(DataError) as caught:
        read_table(tmp_path, ["train", "val"])

    assert f"{tmp_path / 'val.csv'}:2: id 'a' is also at {tmp_path / 'train.csv'}:2" in str(
        caught.value
    )


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"path,label,split\na.mp4,caf\xe9,train\n")

    with pytest.raises(DataError, match=r"data\.csv: not UTF-8 text \(byte 26\)"):
        read_table(tmp_path, ["train"])


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.annotations: no file or folder .*/labels\.csv"):
        read_table(tmp_path, ["train"], annotations=Path("labels.csv"))
