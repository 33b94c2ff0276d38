import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from cdb_video.build_data import read_data
from cdb_video.clips.dataset import ClipSampler, open_record
from cdb_video.datasets.annotations import UNLABELLED, Split
from cdb_video.datasets.readers import read_split
from cdb_video.errors import ConfigError, DataError, UnknownSplitError
from tests.tiny import tiny_config

DATA = Path(os.environ.get("CDB_VIDEO_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
OFFICIAL = DATA / "epic100"

# The columns as shipped; train and validation have the labels after the first eight.
TIMES = (
    "narration_id,participant_id,video_id,narration_timestamp,"
    "start_timestamp,stop_timestamp,start_frame,stop_frame"
)
LABELS = ",narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
CUT = "cut onion,dice,1,onion,1,\"['onion', 'pan']\",\"[1, 0]\""
TAKE = "take pan,get,0,pan,0,['pan'],[0]"
TRAIN = (
    f"P01_01_0,P01,P01_01,00:00:01.089,00:00:00.20,00:00:00.60,12,36,{CUT}",
    # EPIC-KITCHENS-55 often has no time of narration; this video is a later one.
    f"P01_101_0,P01,P01_101,,00:01:02.50,00:01:10.25,3125,3512,{TAKE}",
    f"P02_03_0,P02,P02_03,00:00:01.500,01:00:01.00,01:00:02.00,216060,216120,{TAKE}",
)
VALIDATION = (
    # The official files write frame 1 for this zero.
    f"P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,{TAKE}",
    "P18_02_0,P18,P18_02,,00:00:01.00,00:00:02.00,60,120,wash pan,wash,2,pan,0,['pan'],[0]",
)
TEST = ("P01_102_0,P01,P01_102,00:00:02.851,00:00:02.86,00:00:03.87,143,193",)
VERBS = ("0,take,\"['take', 'get']\",retrieve", "1,cut,\"['cut', 'dice']\",split", "2,wash,x,clean")
NOUNS = ("0,pan,['pan'],cookware", "1,onion,['onion'],vegetables")


def write_csv(file: Path, header: str, rows: tuple[str, ...]) -> None:
    file.write_text("\n".join([header, *rows]) + "\n")


def write_classes(folder: Path) -> None:
    write_csv(folder / "EPIC_100_verb_classes.csv", "id,key,instances,category", VERBS)
    write_csv(folder / "EPIC_100_noun_classes.csv", '"id","key","instances","category"', NOUNS)


@pytest.fixture
def epic(tmp_path: Path) -> Path:
    """The three splits and the classes, without a video."""
    write_csv(tmp_path / "EPIC_100_train.csv", TIMES + LABELS, TRAIN)
    write_csv(tmp_path / "EPIC_100_validation.csv", TIMES + LABELS, VALIDATION)
    write_csv(tmp_path / "EPIC_100_test_timestamps.csv", TIMES, TEST)
    write_classes(tmp_path)
    return tmp_path


def read(root: Path, split: str = "train", **arguments: object) -> Split:
    options = {"format": "epic100", "check_files": False, **arguments}
    return read_split(root, split=split, **options)  # type: ignore[arg-type]


def error_of(root: Path, split: str = "train", **arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        read(root, split, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no EPIC-KITCHENS-100 CSVs at {OFFICIAL}")
def test_official_splits_have_their_published_sizes() -> None:
    splits = {name: read(OFFICIAL, name) for name in ("train", "validation", "test")}

    # Damen et al., IJCV 2022, and the lines of the released files.
    assert [len(split) for split in splits.values()] == [67_217, 9_668, 13_092]
    assert splits["train"].num_classes["verb"] == 97
    assert splits["train"].num_classes["noun"] == 300
    unseen = {r.metadata["participant"] for r in splits["validation"].records if is_unseen(r)}
    assert unseen == {"P18", "P32"}


def is_unseen(record: object) -> bool:
    return record.metadata["unseen"] == "yes"  # type: ignore[attr-defined, no-any-return]


def test_records_carry_official_ids_classes_and_times(epic: Path) -> None:
    split = read(epic)

    cut, take, late = split.records
    assert (cut.id, cut.video_id, cut.recording) == ("P01_01_0", "P01_01", "P01_01")
    assert cut.metadata == {"participant": "P01", "unseen": "no"}
    assert split.vocabularies["verb"].names == ("take", "cut", "wash")
    assert split.vocabularies["noun"].names == ("pan", "onion")
    assert cut.labels == {"verb": 1, "noun": 1, "action": 1}
    assert (take.start_s, take.stop_s, take.fps) == (62.5, 70.25, None)
    assert (late.start_s, late.stop_s) == (3601.0, 3602.0)


def test_actions_are_the_pairs_of_both_splits_in_the_order_of_their_classes(epic: Path) -> None:
    train, validation = read(epic), read(epic, "validation")

    assert train.vocabularies["action"].names == ("take pan", "cut onion", "wash pan")
    assert validation.vocabularies == train.vocabularies
    # "wash pan" is no pair of train: its clips count as mistakes, and are not left out.
    assert train.class_counts("action").tolist()[2] == 0
    assert validation.labels("action").tolist() == [0, 2]
    assert validation.labels("verb").tolist() == [0, 2]


def test_a_list_of_actions_sets_their_order_and_may_have_more(epic: Path) -> None:
    rows = ("0,2,0,wash pan", "2,0,0,take pan", "1,1,1,cut onion")
    write_csv(epic / "actions.csv", "id,verb,noun,action", rows)

    split = read(epic, "validation")

    assert split.vocabularies["action"].names == ("wash pan", "cut onion", "take pan")
    assert split.labels("action").tolist() == [2, 0]


def test_without_class_files_classes_are_the_numbers_that_are_used(epic: Path) -> None:
    for head in ("verb", "noun"):
        (epic / f"EPIC_100_{head}_classes.csv").unlink()

    train = read(epic)

    # Verb 2 is in validation alone; all splits must agree.
    assert train.vocabularies["verb"].names == ("0", "1", "2")
    assert train.vocabularies["noun"].names == ("0", "1")
    assert train.vocabularies["action"].names == ("0 0", "1 1", "2 0")


def test_the_second_version_of_a_class_file_is_read_where_it_is_the_only_one(epic: Path) -> None:
    (epic / "EPIC_100_noun_classes.csv").rename(epic / "EPIC_100_noun_classes_v2.csv")

    assert read(epic).vocabularies["noun"].names == ("pan", "onion")


def test_the_test_split_has_the_classes_of_train_and_no_label(epic: Path) -> None:
    test = read(epic, "test")

    [record] = test.records
    assert record.labels == {"verb": UNLABELLED, "noun": UNLABELLED, "action": UNLABELLED}
    assert test.vocabularies == read(epic).vocabularies
    assert test.class_counts("verb").tolist() == [0, 0, 0]
    assert (record.start_s, record.stop_s) == (2.86, 3.87)


def test_a_run_does_not_train_on_the_test_split(epic: Path, tmp_path: Path) -> None:
    splits = {"train_split": "test", "val_split": "validation", "test_split": None}
    config = tiny_config(epic, tmp_path, data=splits)

    with pytest.raises(ConfigError, match="train_split=test: no clip is labelled for head 'verb'"):
        read_data(config, check_files=False)


def test_participants_are_held_out_by_default(epic: Path) -> None:
    held_out = read(epic, hold_out_subjects=["P02"], part="held_out")
    rest = read(epic, hold_out_subjects=["P02"], part="rest")

    assert [record.id for record in held_out.records] == ["P02_03_0"]
    assert [record.id for record in rest.records] == ["P01_01_0", "P01_101_0"]
    assert held_out.vocabularies == rest.vocabularies


def test_unseen_participants_are_those_that_train_lacks(epic: Path) -> None:
    validation = read(epic, "validation")

    assert [r.metadata["unseen"] for r in validation.records] == ["no", "yes"]  # P01, P18


def test_the_official_list_of_unseen_participants_comes_first(epic: Path) -> None:
    file = epic / "EPIC_100_unseen_participant_ids_validation.csv"
    write_csv(file, "participant_id", ("P01",))

    union = read_split(epic, split=["train", "validation"], check_files=False)

    assert [r.metadata["unseen"] for r in union.records] == ["no", "no", "no", "yes", "no"]


def test_tail_classes_are_told_apart_by_head_and_joined(epic: Path) -> None:
    write_csv(epic / "EPIC_100_tail_verbs.csv", "verb", ("1", "2"))
    verbs_alone = read(epic, "validation").records[1].metadata
    write_csv(epic / "EPIC_100_tail_nouns.csv", "noun", ("1",))

    take, wash = (r.metadata for r in read(epic, "validation").records)
    [hidden] = read(epic, "test").records

    assert verbs_alone == {"participant": "P18", "unseen": "yes", "tail_verb": "yes"}
    # The official scorer: an action is of the tail when its verb or its noun is.
    assert [take[n] for n in ("tail_verb", "tail_noun", "tail")] == ["no", "no", "no"]
    assert [wash[n] for n in ("tail_verb", "tail_noun", "tail")] == ["yes", "no", "yes"]
    assert hidden.metadata == {"participant": "P01", "unseen": "no"}


@pytest.mark.parametrize(
    "pattern", ["{0}/videos/{1}.MP4", "{0}/videos/{1}.mp4", "videos/{1}.MP4", "{1}.mp4"]
)
def test_videos_are_found_in_the_official_folders_or_flat(epic: Path, pattern: str) -> None:
    paths = [
        epic / pattern.format(*names)
        for names in (("P01", "P01_01"), ("P01", "P01_101"), ("P02", "P02_03"))
    ]
    for path in paths:
        touch(path)

    assert [record.path for record in read(epic, check_files=True).records] == paths


def test_segments_of_a_video_show_the_frames_of_their_timestamps(
    epic: Path, coded_video: Callable[..., Path], read_code: Callable[[Tensor], list[int]]
) -> None:
    coded_video("P01_01.MP4", num_frames=40, fps=50)

    record = read(epic).records[0]

    # 0.2 s to 0.6 s at 50 frames a second; the frame numbers 12 to 36 are of another rate.
    with open_record(record) as video:
        indices = ClipSampler(num_frames=4, stride=1).segment(video, record)
        assert indices.tolist() == list(range(10, 30))
        assert read_code(video.frames(indices)) == list(range(10, 30))


def test_segments_of_a_folder_show_the_frames_of_their_numbers(epic: Path) -> None:
    folder = epic / "P01/rgb_frames/P01_01"
    folder.mkdir(parents=True)
    for number in range(40):  # frame 0 is in the first file, as ffmpeg names them
        image = Image.fromarray(np.full((8, 8, 3), 6 * number, dtype=np.uint8))
        image.save(folder / f"frame_{number + 1:010d}.jpg", quality=95)

    record = read(epic).records[0]

    assert (record.path, record.fps) == (folder, 60)
    with open_record(record) as video:
        indices = ClipSampler(num_frames=4, stride=1).segment(video, record)
        greys = video.frames(indices).double().mean(dim=(1, 2, 3))
    assert indices.tolist() == list(range(12, 36))
    assert (greys / 6).round().int().tolist() == list(range(12, 36))


def test_folders_of_later_videos_have_50_frames_a_second(epic: Path) -> None:
    (epic / "P01/rgb_frames/P01_101").mkdir(parents=True)

    _, later, early = read(epic).records

    assert (later.fps, later.start_s, later.stop_s) == (50, 62.5, 70.24)  # 3125 to 3512
    assert (early.fps, early.start_s) == (60, 3601.0)


def test_an_official_frame_1_for_second_0_is_taken_as_it_is(epic: Path) -> None:
    (epic / "P01/rgb_frames/P01_11").mkdir(parents=True)

    assert read(epic, "validation").records[0].start_s == 1 / 60


def test_frame_numbers_at_another_rate_than_the_official_folders_are_refused(epic: Path) -> None:
    (epic / "P02/rgb_frames/P02_03").mkdir(parents=True)
    # 3601 s at the video's own 59.94 frames a second.
    text = (epic / "EPIC_100_train.csv").read_text().replace("216060,216120", "215844,215904")
    (epic / "EPIC_100_train.csv").write_text(text)

    message = error_of(epic)

    assert message.startswith(f"{epic / 'EPIC_100_train.csv'}:4: frame 215844 is not second 3601")


def test_missing_videos_are_counted_and_the_layouts_named(epic: Path) -> None:
    touch(epic / "P01/videos/P01_01.MP4")
    touch(epic / "P02_03.MP4")  # another layout does not stand in

    message = error_of(epic, check_files=True)

    assert message.startswith(f"{epic}/P01/videos/P01_101.MP4: no such video; 2 of 3 records")
    assert message.endswith("or <participant>/rgb_frames/<video_id>/ of extracted frames")


@pytest.mark.parametrize("folder", ["epic-kitchens-100-annotations", "annotations", "elsewhere"])
def test_annotations_may_lie_in_a_folder(epic: Path, tmp_path: Path, folder: str) -> None:
    (epic / folder).mkdir()
    for file in tmp_path.glob("*.csv"):
        file.rename(epic / folder / file.name)

    split = read_split(
        epic,
        split="train",
        annotations=folder if folder == "elsewhere" else None,
        check_files=False,
    )

    assert len(split) == 3


def test_auto_takes_the_official_files_for_epic100(epic: Path) -> None:
    assert read_split(epic, split="train", check_files=False).heads == ("verb", "noun", "action")


def test_heads_are_chosen(epic: Path) -> None:
    assert read(epic, heads=["action", "verb"]).records[0].labels == {"action": 1, "verb": 1}


@pytest.mark.parametrize("split", ["val", "test"])
def test_unknown_or_absent_split_names_those_that_are_there(epic: Path, split: str) -> None:
    (epic / "EPIC_100_test_timestamps.csv").unlink()

    with pytest.raises(UnknownSplitError) as caught:
        read(epic, split)

    assert str(caught.value) == f"{epic}: no split {split!r}; there are: train, validation"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("01:00:01.00", "3601", "start_timestamp '3601' is not hh:mm:ss.ss"),
        ("01:00:02.00", "01:00:01.00", "stops at second 3601, not after second 3601"),
        ("216120", "216000", "stops at frame 216000, not after frame 216060"),
        ("216060", "-3", "start_frame '-3' is not a whole number"),
        ("P02_03_0,", ",", "the column 'narration_id' is empty"),
        ("P02_03_0,", "P01_01_0,", "narration_id 'P01_01_0' is also at"),
        ("pan,0,", "pan,two,", "noun_class 'two' is not a whole number"),
        ("get,0,", "get,3,", "verb_class 3 is not an id of EPIC_100_verb_classes.csv"),
        (",[0]", "", "14 cells under 15 columns"),
        (",[0]", ',"[0]x"y', "not CSV"),
    ],
)
def test_bad_line_is_refused_with_its_file_and_number(
    epic: Path, old: str, new: str, expected: str
) -> None:
    bad = TRAIN[2].replace(old, new, 1)
    write_csv(epic / "EPIC_100_train.csv", TIMES + LABELS, (*TRAIN[:2], bad))

    message = error_of(epic)

    assert message.startswith(f"{epic / 'EPIC_100_train.csv'}:4: ")
    assert expected in message


def test_missing_column_is_named_with_those_there_are(epic: Path) -> None:
    write_csv(epic / "EPIC_100_train.csv", TIMES, TEST)

    message = error_of(epic)

    assert message.startswith(f"{epic / 'EPIC_100_train.csv'}: no column 'verb_class'; there are: ")


@pytest.mark.parametrize(
    ("file", "header", "rows", "expected"),
    [
        ("verb_classes", "id,key", ("0,take", "1,take"), ":3: 'take' is also at"),
        ("verb_classes", "id,key", ("0,take", "0,cut"), ":3: 0 is also at"),
        ("verb_classes", "id,key", ("0,take", "2,cut"), ": ids must be 0, 1, 2 and so on; 1 is"),
        ("noun_classes", "id,key", (), ": ids must be 0, 1, 2 and so on; 0 is missing"),
        ("tail_verbs", "verb", ("take",), ":2: verb 'take' is not a whole number"),
        ("actions", "id,verb,noun", ("0,3,0",), ":2: verb 3 is not an id from 0 to 2"),
        ("actions", "id,verb,noun", ("0,0,0", "1,0,0"), ":3: (0, 0) is also at"),
    ],
)
def test_bad_list_is_refused(
    epic: Path, file: str, header: str, rows: tuple[str, ...], expected: str
) -> None:
    name = "actions.csv" if file == "actions" else f"EPIC_100_{file}.csv"
    write_csv(epic / name, header, rows)

    message = error_of(epic)

    assert message.startswith(f"{epic / name}{expected}")
