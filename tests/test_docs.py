"""docs/data_format.md holds: its example files are read, and its errors are real."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cdb_video.config import DataConfig
from cdb_video.datasets.annotations import UNLABELLED, Split
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError

ROOT = Path(__file__).parent.parent
FORMATS = (ROOT / "docs/data_format.md").read_text(encoding="utf-8")

EXAMPLE = re.compile(r"<!-- (file|videos|config|script): (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The example files of data_format.md, and empty files in place of its videos."""
    found = EXAMPLE.findall(FORMATS)
    assert len(found) == FORMATS.count("<!-- ")
    for kind, name, text in found:
        if kind in ("config", "script"):
            continue
        paths = [tmp_path / name / line for line in text.splitlines()]
        for path in paths if kind == "videos" else [tmp_path / name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if kind == "file" else "")
    return tmp_path


def text_of(kind: str, name: str) -> str:
    [text] = [found[2] for found in EXAMPLE.findall(FORMATS) if found[:2] == (kind, name)]
    return str(text)


def read_by_documented_map(root: Path, split: str, **arguments: object) -> Split:
    """A split by the configuration on the page, its videos being elsewhere."""
    data = DataConfig(**yaml.safe_load(text_of("config", root.name))["data"])
    return read_split(
        root,
        split=split,
        **{
            "format": data.format,
            "annotations": data.annotations,
            "columns": data.columns,
            "annotation_fps": data.annotation_fps,
            "annotation_first_frame": data.annotation_first_frame,
            "check_files": False,
            **arguments,
        },  # type: ignore[arg-type]
    )


def test_split_folders(examples: Path) -> None:
    train = read_split(examples / "split_folders", split="train")
    val = read_split(examples / "split_folders", split="val")

    assert [record.id for record in train.records] == ["train/cut/a", "train/cut/b", "train/pour/c"]
    assert train.vocabularies["label"].names == val.vocabularies["label"].names == ("cut", "pour")
    assert train.class_counts("label").tolist() == [2, 1]


def test_class_folders(examples: Path) -> None:
    splits = [read_split(examples / "class_folders", split=s) for s in ("train", "val", "test")]

    assert [split.class_counts("label").tolist() for split in splits] == [[2, 1], [1, 0], [1, 0]]


def test_groups(examples: Path) -> None:
    splits = [
        read_split(examples / "groups", split=s, group_pattern=r"^(P\d+)")
        for s in ("train", "val", "test")
    ]

    recordings = [{record.recording for record in split.records} for split in splits]
    assert sorted(recordings, key=min) == [{"P01"}, {"P02"}, {"P03"}]
    assert all((split.class_counts("label") > 0).all() for split in splits)


def test_unlabelled(examples: Path) -> None:
    test = read_split(examples / "unlabelled", split="test", check_files=False)

    assert test.vocabularies["verb"].names == ("put", "take")
    assert test.labels("verb").tolist() == [UNLABELLED]


def test_assembly101(examples: Path) -> None:
    root = examples / "assembly101"
    train, test = (read_by_documented_map(root, split) for split in ("train", "test"))
    subprocess.run(["bash", "-ec", text_of("script", "assembly101")], cwd=root, check=True)
    one_view = read_by_documented_map(root, "train", annotations="one_view")

    clap, pick_up, _ = train.records
    # Frames 84 to 111, the last included, at 30 a second; then one frame.
    assert (clap.start_s, clap.stop_s) == (84 / 30, 112 / 30)
    assert (pick_up.start_s, pick_up.stop_s) == (111 / 30, 112 / 30)
    assert clap.path == root / "videos/nusar-2021_x/C10404_rgb.mp4"
    assert clap.recording == "nusar-2021_x/C10404_rgb.mp4"
    assert train.heads == ("action", "verb", "noun")
    assert train.vocabularies["action"].names == ("clap hand", "pick up finished toy")
    assert clap.metadata["toy_name"] == "suv"
    assert test.vocabularies == train.vocabularies
    assert test.records[0].labels == dict.fromkeys(train.heads, UNLABELLED)
    assert [record.id for record in one_view.records] == [clap.id, pick_up.id]


def test_meccano(examples: Path) -> None:
    split = read_by_documented_map(examples / "meccano", "MECCANO_train_actions", check_files=True)

    take, check = split.records
    # Images 13 to 24 of those from 1 are the frames 12 to 23: the second second at 12 a second.
    assert (take.start_s, take.stop_s, take.fps) == (1.0, 2.0, 12)
    assert (check.start_s, check.stop_s) == (2.0, 25 / 12)
    assert take.path == examples / "meccano/frames/0001"
    assert split.vocabularies["action"].names == ("check_booklet", "take_bolt")


def test_ego4d_lta(tmp_path: Path) -> None:
    root = tmp_path / "ego4d_lta"
    (root / "annotations").mkdir(parents=True)
    clip = {"clip_uid": "c0", "video_uid": "v0", "action_idx": 4, "clip_id": 7}
    clip |= {"action_clip_start_sec": 1.5, "action_clip_end_sec": 3.0}
    labels = {"verb": "take_(pick,_grab,_get)", "noun": "bag", "verb_label": 1, "noun_label": 2}
    for name in ("train", "val", "test_unannotated"):
        clips = [clip if name.startswith("test") else clip | labels]
        file = root / f"annotations/fho_lta_{name}.json"
        file.write_text(json.dumps({"version": "1", "split": name, "clips": clips}))

    script = text_of("script", "ego4d_lta")
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
    train, test = (read_by_documented_map(root, split) for split in ("train", "test"))

    [record] = train.records
    assert (record.id, record.recording) == ("c0_4@1.5-3.0", "v0")
    assert (record.path, record.start_s, record.stop_s) == (root / "clips/c0.mp4", 1.5, 3.0)
    assert train.vocabularies["verb"].names == ("take_(pick,_grab,_get)",)
    assert test.records[0].labels == {"verb": UNLABELLED, "noun": UNLABELLED}


def test_hd_epic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hd_epic"
    folder = root / "hd-epic-annotations/narrations-and-action-segments"
    folder.mkdir(parents=True)
    for head, names in (("verb", ("take", "open")), ("noun", ("tap", "cupboard"))):
        lines = [f"{i},{name},\"['{name}', 'x']\",y" for i, name in enumerate(names)]
        text = "\n".join(["id,key,instances,category", *lines])
        (folder / f"HD_EPIC_{head}_classes.csv").write_text(text)
    narration = {
        "unique_narration_id": "P01-20240202-110250-1",
        "participant_id": "P01",
        "video_id": "P01-20240202-110250",
        "narration": "Open the upper cupboard, slowly.",
        "start_timestamp": 7.44,
        "end_timestamp": 8.75,
        "main_action_classes": [(1, 1), (0, 0)],
    }
    table = SimpleNamespace(
        to_dict=lambda kind: [narration, narration | {"main_action_classes": []}]
    )
    # pandas is no dependency of ours.
    pandas = SimpleNamespace(read_pickle=lambda path: table)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    monkeypatch.chdir(root)

    exec(text_of("script", "hd_epic"), {})
    split = read_by_documented_map(root, "hd_epic")

    [record] = split.records
    assert record.id == "P01-20240202-110250-1@7.44-8.75"
    assert record.path == root / "Videos/P01/P01-20240202-110250.mp4"
    assert (record.start_s, record.stop_s) == (7.44, 8.75)
    assert record.recording == "P01-20240202-110250"
    assert record.metadata == {"participant": "P01"}
    assert split.vocabularies["verb"].names == ("open",)
    assert split.vocabularies["noun"].names == ("cupboard",)


def test_one_table(examples: Path) -> None:
    root = examples / "one_table"
    for video in ("kitchen 1.mp4", "kitchen 2.mp4", "kitchen 3.mp4"):
        (root / video).touch()

    train = read_split(root, split="train")
    rest = read_split(root, split="train", hold_out_subjects=["Bob"], part="rest")

    assert train.vocabularies["verb"].names == ("cut", "put", "take")
    assert train.vocabularies["noun"].names == ("knife", "tomato")
    assert [(r.start_s, r.stop_s) for r in train.records] == [
        (0.5, 2.25),
        (2.25, 6),
        (70, 72.5),
        (3, 5),
    ]
    assert train.records[0].id == "kitchen 1@0.5-2.25"
    assert train.records[0].recording == "monday"
    assert train.labels("noun").tolist() == [0, 1, UNLABELLED, 1]
    assert len(rest) == 3


def test_table_per_split(examples: Path) -> None:
    train = read_split(examples / "table_per_split", split="train", check_files=False)
    val = read_split(examples / "table_per_split", split="val", check_files=False)

    assert train.vocabularies["action"].names == val.vocabularies["action"].names == ("run", "walk")
    assert (train.labels("action").tolist(), val.labels("action").tolist()) == ([1, 0], [0])


def test_lists(examples: Path) -> None:
    split = read_split(examples / "lists", split=["train", "val"], check_files=False)

    assert split.vocabularies["label"].names == ("2", "10")
    assert split.labels("label").tolist() == [0, 1, 0, 1]
    assert split.records[2].path == examples / "lists/clips/morning walk.mp4"


def test_egtea(examples: Path) -> None:
    cropped = read_split(examples / "egtea", split="train_split1")
    for clip in (examples / "egtea/cropped_clips").rglob("*.mp4"):
        clip.unlink()
    for session in ("P01-R01-TomatoSalad", "P02-R01-TomatoSalad"):
        (examples / f"egtea/{session}.mp4").touch()
    untrimmed = read_split(examples / "egtea", split="train_split1")

    assert cropped.vocabularies["action"].names == ("Take knife", "Cut tomato")
    assert cropped.labels("noun").tolist() == [0, 1, 1]
    assert cropped.records[0].start_s is None
    assert cropped.records[0].recording == "P01-R01-TomatoSalad"
    assert cropped.records[0].metadata == {"subject": "P01", "recipe": "TomatoSalad"}
    assert (untrimmed.records[0].start_s, untrimmed.records[0].stop_s) == (1.0, 2.5)


def test_epic100(examples: Path) -> None:
    split = read_split(examples / "epic100", split="train")

    take, cut = split.records
    assert split.vocabularies["action"].names == ("take 0", "cut 1")
    assert (take.start_s, take.stop_s, cut.start_s, cut.stop_s) == (0.2, 3.5, 62.5, 70.25)
    assert cut.path == examples / "epic100/P02/videos/P02_101.MP4"
    assert cut.metadata == {"participant": "P02", "unseen": "no"}


def test_frames(examples: Path) -> None:
    [record] = read_split(examples / "frames", split="val", annotation_fps=25).records

    assert (record.start_s, record.stop_s, record.fps) == (2.0, 4.0, 25)


def test_what_is_quoted_of_the_held_out_subjects_is_the_recipes() -> None:
    recipe = (ROOT / "configs/egtea/paper_verbs_resnext101_cdb.yaml").read_text()

    [quoted] = re.findall(r"```yaml\n([^`]*format: egtea.*?)```", FORMATS, re.DOTALL)

    assert quoted in recipe.replace("  num_workers: 8\n", "")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("clips.csv", "pth,label,split\na.mp4,walk,train\n"),
        ("clips.csv", "path,label,split\na.mp4,walk,train\nb.mp4,train\n"),
        ("clips.csv", "path,start_s,stop_s,label,split\na.mp4,5,3,walk,train\n"),
        ("clips.csv", "path,start_frame,stop_frame,label,split\na.mp4,3,5,walk,train\n"),
        ("clips.csv", "path,label,split\na.mp4,walk,train\na.mp4,run,train\n"),
        ("clips.csv", "path,label,split\nhttps://host/a.mp4,walk,train\n"),
        ("clips.csv", "path,label,split\na.mp4,walk,train\n"),
        ("clips.csv", "path,label,split\na.mp4,walk,training\n"),
        ("clips.csv", "path,label\na.mp4,walk\n"),
        ("train/cut/a.mp4", ""),
        ("notes.md", ""),
    ],
)
def test_an_error_is_the_documented_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("my_videos", file)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if file.startswith("train/"):
        Path("my_videos/train/pour").mkdir()

    with pytest.raises(DataError) as caught:
        read_split("my_videos", split="train")

    assert str(caught.value) in FORMATS.splitlines()


def test_the_first_snippet_on_formats_runs(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = (examples / "one_table").rename(examples / "my_videos")
    for video in ("kitchen 1.mp4", "kitchen 2.mp4", "kitchen 3.mp4"):
        (root / video).touch()
    monkeypatch.chdir(examples)
    [code] = re.findall(r"(?<!-->\n)```python\n(.*?)```", FORMATS, re.DOTALL)

    names: dict[str, Any] = {}
    exec(code, names)

    assert names["split"].vocabularies["verb"].names == ("cut", "put", "take")
