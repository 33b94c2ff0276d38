import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError

DATA = Path(os.environ.get("CDB_VIDEO_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
OFFICIAL = DATA / "egtea"
needs_official_files = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason=f"no EGTEA annotations at {OFFICIAL}"
)
PAPER_VAL_SUBJECTS = [f"P{number}" for number in range(20, 27)]

TAKE = "OP01-R01-PastaSalad-1000-2000-F000024-F000048"
READ = "P20-R03-BaconAndEggs-500-2500-F000012-F000061"
PUT = "P21-R03-BaconAndEggs-4000-6000-F000096-F000144"


def write_annotations(
    folder: Path, *, train: Sequence[str] = (f"{TAKE} 2 2 2 1 ", f"{READ} 1 1 1", f"{PUT} 3 3 3")
) -> None:
    """Three verbs, three nouns, three actions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verb_idx.txt").write_text("Inspect/Read 1\nTake 2\nTurn on 3\n")
    (folder / "noun_idx.txt").write_text("recipe 1\ncup 2\nfaucet 3\n")
    (folder / "action_idx.txt").write_text("Inspect/Read recipe 1\nTake cup 2\nTurn on faucet 3\n")
    (folder / "train_split1.txt").write_text("".join(line + "\n" for line in train))
    (folder / "test_split1.txt").write_text("")


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def error_of(root: Path, **arguments: object) -> str:
    options = {"split": "train_split1", "check_files": False, **arguments}
    with pytest.raises(DataError) as caught:
        read_split(root, format="egtea", **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@needs_official_files
@pytest.mark.parametrize(
    ("number", "num_train", "num_test"), [(1, 8299, 2022), (2, 8299, 2022), (3, 8300, 2021)]
)
def test_official_splits_have_their_published_sizes_and_class_counts(
    number: int, num_train: int, num_test: int
) -> None:
    expected = {}  # level, id, then train and test counts of splits 1, 2, 3
    for line in (OFFICIAL / "class_counts.tsv").read_text().splitlines():
        level, class_id, *counts = line.split("\t")
        expected[level, int(class_id)] = [int(n) for n in counts[2 * number - 2 : 2 * number]]

    train = read_split(OFFICIAL, split=f"train_split{number}", check_files=False)
    test = read_split(OFFICIAL, split=f"test_split{number}", check_files=False)

    assert (len(train), len(test)) == (num_train, num_test)
    assert train.num_classes == {"verb": 19, "noun": 53, "action": 106}
    assert (train.class_counts("noun") > 0).sum() == 51
    for head in ("verb", "action"):
        counts = zip(
            train.class_counts(head).tolist(), test.class_counts(head).tolist(), strict=True
        )
        for class_id, pair in enumerate(counts, start=1):
            assert list(pair) == expected[head, class_id]
            assert min(pair) > 0


@needs_official_files
@pytest.mark.parametrize(
    ("part", "file", "size"), [("rest", "train", 6372), ("held_out", "val", 1927)]
)
def test_holding_out_p20_to_p26_gives_the_split_of_the_paper(
    part: str, file: str, size: int
) -> None:
    paper = {}  # clip -> (action, verb, first noun), ids from 1
    for line in (OFFICIAL / f"paper_{file}_split.txt").read_text().splitlines():
        clip, action, verb, noun = line.split()[:4]
        paper[clip] = {"verb": int(verb), "noun": int(noun), "action": int(action)}

    split = read_split(
        OFFICIAL,
        split="train_split1",
        hold_out_subjects=PAPER_VAL_SUBJECTS,
        part=part,  # type: ignore[arg-type]
        check_files=False,
    )

    assert len(split) == size
    assert {
        record.id: {head: index + 1 for head, index in record.labels.items()}
        for record in split.records
    } == paper


@needs_official_files
def test_missing_official_videos_are_counted_and_the_layouts_named() -> None:
    message = error_of(OFFICIAL, check_files=True)

    assert "8299 of 8299" in message
    assert "cropped_clips/P21-R04-ContinentalBreakfast/P21-R04-Cont" in message
    assert "cropped_clips/<session>/<clip>.mp4" in message
    assert "frames/<session>/" in message


def test_records_carry_names_session_subject_and_first_noun(tmp_path: Path) -> None:
    write_annotations(tmp_path)

    split = read_split(tmp_path, split="train_split1", check_files=False)

    take, read, _ = split.records
    assert (take.id, take.video_id, take.recording) == (TAKE, TAKE, "OP01-R01-PastaSalad")
    assert take.metadata == {"subject": "OP01", "recipe": "PastaSalad"}
    assert take.labels == {"verb": 1, "noun": 1, "action": 1}
    assert split.vocabularies["verb"].names[read.labels["verb"]] == "Inspect/Read"
    assert split.vocabularies["action"].names[read.labels["action"]] == "Inspect/Read recipe"
    assert split.name == "train_split1"


def test_trimmed_clips_need_no_times(tmp_path: Path) -> None:
    write_annotations(tmp_path / "action_annotation")
    paths = [
        tmp_path / "cropped_clips" / clip.rsplit("-", 4)[0] / f"{clip}.mp4"
        for clip in (TAKE, READ, PUT)
    ]
    for path in paths:
        touch(path)

    split = read_split(tmp_path, split="train_split1")

    assert [record.path for record in split.records] == paths
    assert {(r.start_s, r.stop_s, r.fps) for r in split.records} == {(None, None, None)}


@pytest.mark.parametrize("pattern", ["{}.mp4", "videos/{}.mp4", "videos/{}.avi"])
def test_sessions_are_cut_by_the_frames_of_the_name_at_24_fps(tmp_path: Path, pattern: str) -> None:
    write_annotations(tmp_path)
    for session in ("OP01-R01-PastaSalad", "P20-R03-BaconAndEggs", "P21-R03-BaconAndEggs"):
        touch(tmp_path / pattern.format(session))

    take, read, _ = read_split(tmp_path, split="train_split1").records

    assert take.path == tmp_path / pattern.format("OP01-R01-PastaSalad")
    assert (take.start_s, take.stop_s, take.fps) == (1.0, 2.0, None)  # F24 to F48
    assert (read.start_s, read.stop_s) == (0.5, 61 / 24)


@pytest.mark.parametrize("pattern", ["frames/{}", "{}"])
def test_frames_of_clips_have_24_fps_and_no_times(tmp_path: Path, pattern: str) -> None:
    write_annotations(tmp_path)
    for clip in (TAKE, READ, PUT):
        (tmp_path / pattern.format(clip)).mkdir(parents=True)

    take = read_split(tmp_path, split="train_split1").records[0]

    assert take.path == tmp_path / pattern.format(TAKE)
    assert (take.start_s, take.stop_s, take.fps) == (None, None, 24)


@pytest.mark.parametrize("pattern", ["frames/{}", "{}"])
def test_frames_of_sessions_have_24_fps_and_times(tmp_path: Path, pattern: str) -> None:
    write_annotations(tmp_path)
    for session in ("OP01-R01-PastaSalad", "P20-R03-BaconAndEggs", "P21-R03-BaconAndEggs"):
        (tmp_path / pattern.format(session)).mkdir(parents=True)

    take = read_split(tmp_path, split="train_split1").records[0]

    assert take.path == tmp_path / pattern.format("OP01-R01-PastaSalad")
    assert (take.start_s, take.stop_s, take.fps) == (1.0, 2.0, 24)


def test_one_layout_holds_for_all_and_missing_clips_are_counted(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    touch(tmp_path / f"cropped_clips/P20-R03-BaconAndEggs/{READ}.mp4")
    touch(tmp_path / "OP01-R01-PastaSalad.mp4")  # another layout does not stand in

    message = error_of(tmp_path, check_files=True)

    assert message.startswith(f"{tmp_path}/cropped_clips/OP01-R01-PastaSalad/{TAKE}.mp4: ")
    assert "2 of 3" in message


def test_annotations_may_lie_elsewhere(tmp_path: Path) -> None:
    write_annotations(tmp_path / "labels/official")
    (tmp_path / "videos").mkdir()

    split = read_split(
        tmp_path, split="train_split1", annotations="labels/official", check_files=False
    )

    assert len(split) == 3


def test_heads_are_chosen_and_keep_their_order(tmp_path: Path) -> None:
    write_annotations(tmp_path)

    split = read_split(tmp_path, split="train_split1", heads=("noun", "verb"), check_files=False)

    assert split.heads == ("noun", "verb")
    assert split.records[0].labels == {"noun": 1, "verb": 1}


def test_byte_order_mark_is_no_part_of_the_first_clip(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    (tmp_path / "train_split1.txt").write_text(f"{TAKE} 2 2 2\r\n", encoding="utf-8-sig")

    split = read_split(tmp_path, split="train_split1", check_files=False)

    assert [record.id for record in split.records] == [TAKE]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{PUT} 3 3", "3 fields; expected: clip action verb noun [noun [noun]]"),
        (f"{PUT} 3 3 3 1 2 1", "7 fields"),
        (f"{PUT} three 3 3", "action 'three' is not an id from 1 to 3"),
        (f"{PUT} 0 3 3", "action '0' is not an id from 1 to 3"),
        (f"{PUT} 3 4 3", "verb '4' is not an id from 1 to 3"),
        (f"{PUT} 3 3 -1", "noun '-1' is not an id from 1 to 3"),
        (f"{PUT} 3 3 3 9", "noun '9' is not an id from 1 to 3"),
        ("P21-R03-BaconAndEggs-4000 3 3 3", "clip name 'P21-R03-BaconAndEggs-4000' is not SUBJECT"),
        (f"{PUT[:-4]}0096 3 3 3", "stops at frame 000096, not after frame 000096"),
        (f"{TAKE} 2 2 2", "train_split1.txt:1"),
        (f"{PUT} 2 3 3", "action 2 has verb 3, but verb 2 at"),
    ],
)
def test_bad_line_is_refused_with_its_file_and_number(
    tmp_path: Path, line: str, expected: str
) -> None:
    write_annotations(tmp_path, train=[f"{TAKE} 2 2 2", "", line])

    message = error_of(tmp_path)

    assert message.startswith(f"{tmp_path / 'train_split1.txt'}:3: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("Take 1\nPut\n", ":2", "'Put' is not 'NAME ID'"),
        ("Take 1\nTurn on\n", ":2", "'Turn on' is not 'NAME ID'"),
        ("Take 1\nPut 1\n", ":2", "1 is also at"),
        ("Take 1\nTake 2\n", ":2", "'Take' is also at"),
        ("Take 0\nPut 1\nCut 2\n", "", "ids must be 1 to 3; 3 is missing"),
        ("Take 1\nPut 3\n", "", "ids must be 1 to 2; 2 is missing"),
    ],
)
def test_bad_class_list_is_refused(tmp_path: Path, text: str, where: str, expected: str) -> None:
    write_annotations(tmp_path)
    (tmp_path / "verb_idx.txt").write_text(text)

    message = error_of(tmp_path)

    assert message.startswith(f"{tmp_path / 'verb_idx.txt'}{where}: ")
    assert expected in message


def test_missing_class_list_is_named(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    (tmp_path / "noun_idx.txt").unlink()

    assert error_of(tmp_path).startswith(f"{tmp_path / 'noun_idx.txt'}: cannot be read")


def test_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    write_annotations(tmp_path)

    message = error_of(tmp_path, split="train_split4")

    assert message.startswith(f"{tmp_path / 'train_split4.txt'}: no such split")
    assert message.endswith("there are: test_split1, train_split1")


def test_empty_split_file_is_refused(tmp_path: Path) -> None:
    write_annotations(tmp_path)

    assert error_of(tmp_path, split="test_split1") == "split 'test_split1' is empty"


def test_unknown_head_names_those_there_are(tmp_path: Path) -> None:
    write_annotations(tmp_path)

    assert "'adverb'; there are: verb, noun, action" in error_of(tmp_path, heads=["adverb"])
