"""Clips made from EGTEA's lists are what the lists say; slow: the paper's recipe trains on them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Literal

import pytest

from cdb_video.clips.decoders import open_video
from cdb_video.datasets.annotations import Split
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError
from tools.benchmarks.made_egtea import HELD_OUT, make_egtea

ROOT = Path(__file__).parent.parent.parent
VERBS = {"Inspect/Read": 1, "Turn on": 2}
SUBJECTS = {"train_split1": ("OP01", "P05", *HELD_OUT), "test_split1": ("P04",)}
NUM_FRAMES = 15
"""Of every clip: as short as EGTEA's shortest."""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Official lists of two verbs: two clips of each for every subject, both verbs by turns."""
    folder = tmp_path / "action_annotation"
    folder.mkdir()
    (folder / "verb_idx.txt").write_text("".join(f"{n} {i}\n" for n, i in VERBS.items()))
    (folder / "noun_idx.txt").write_text("recipe 1\nfaucet 2\n")
    (folder / "action_idx.txt").write_text("Inspect/Read recipe 1\nTurn on faucet 2\n")
    for split, subjects in SUBJECTS.items():
        lines = []
        for subject, (i, verb) in product(subjects, enumerate((1, 2, 1, 2))):
            start = 1000 + 100 * i
            times = f"{start}-{start + 625}-F{start:06d}-F{start + NUM_FRAMES:06d}"
            # An official line ends with a space; more nouns than one may stand in it.
            lines.append(f"{subject}-R01-PastaSalad-{times} {verb} {verb} {verb} 1 \n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def shape_of(path: Path) -> tuple[int, tuple[int, ...], float]:
    with open_video(path) as video:
        return video.num_frames, tuple(video.frames(video.times[:1].long()).shape[2:]), video.fps


def test_clips_have_the_official_layout_length_size_and_rate(tmp_path: Path, lists: Path) -> None:
    paths = make_egtea(lists, tmp_path / "EGTEA", clips_per_verb=1)

    # A verb has one clip in training, one in validation and one in test.
    assert [str(path.relative_to(tmp_path / "EGTEA")) for path in paths[:3]] == [
        "cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-1000-1625-F001000-F001015.mp4",
        "cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-1100-1725-F001100-F001115.mp4",
        "cropped_clips/P20-R01-PastaSalad/P20-R01-PastaSalad-1000-1625-F001000-F001015.mp4",
    ]
    # And the other six subjects that are held out have one each.
    assert len(paths) == 6 + 6
    assert {shape_of(path) for path in paths} == {(NUM_FRAMES, (480, 640), 24.0)}


def test_the_lists_beside_them_keep_their_lines_alone(tmp_path: Path, lists: Path) -> None:
    root = tmp_path / "EGTEA"
    # Other splits have other lines of the same clips; `all_split1` is none of the official files.
    (lists / "test_split2.txt").write_text((lists / "train_split1.txt").read_text())
    (lists / "all_split1.txt").touch()

    make_egtea(lists, root, clips_per_verb=1)

    annotations = root / "action_annotation"
    assert {p.stem: len(p.read_text().splitlines()) for p in annotations.glob("*split*")} == {
        "train_split1": 10,
        "test_split1": 2,
        "test_split2": 10,
    }
    official = (lists / "train_split1.txt").read_text().splitlines()
    assert set((annotations / "train_split1.txt").read_text().splitlines()) < set(official)
    assert [len(read_part(root, part)) for part in ("rest", "held_out")] == [2, 8]


def read_part(root: Path, part: Literal["rest", "held_out"]) -> Split:
    """Of split 1, its files being there."""
    return read_split(
        root, format="egtea", split="train_split1", hold_out_subjects=HELD_OUT, part=part
    )


def test_a_folder_that_is_there_is_not_written_into(tmp_path: Path, lists: Path) -> None:
    with pytest.raises(DataError, match="action_annotation: is there already"):
        make_egtea(lists, lists, clips_per_verb=1)


def test_official_names_give_files_of_their_length(tmp_path: Path, shared_data: Path) -> None:
    lists = shortest_of(shared_data / "egtea", tmp_path / "lists")

    paths = make_egtea(lists, tmp_path / "EGTEA", clips_per_verb=3)

    for path in paths:
        start, stop = (int(field[1:]) for field in path.stem.split("-")[-2:])
        assert shape_of(path) == (stop - start, (480, 640), 24.0)
    train, val = (read_part(tmp_path / "EGTEA", part) for part in ("rest", "held_out"))
    test = read_split(tmp_path / "EGTEA", format="egtea", split="test_split1")
    assert [len(split) for split in (train, val, test)] == [3, 7, 3]
    assert sorted(
        record.path for split in (train, val, test) for record in split.records
    ) == sorted(paths)
    assert train.num_classes == {"verb": 19, "noun": 53, "action": 106}


def shortest_of(official: Path, folder: Path) -> Path:
    """Official lists of 13 short clips: one of each held-out subject, three others, three tests."""
    folder.mkdir()
    for head in ("action", "verb", "noun"):
        shutil.copy(official / f"{head}_idx.txt", folder)
    lines = (official / "train_split1.txt").read_text().splitlines(keepends=True)
    lines.sort(key=length_of)
    held_out = [next(line for line in lines if line.startswith(f"{s}-")) for s in HELD_OUT]
    others = [line for line in lines if not line.startswith(tuple(f"{s}-" for s in HELD_OUT))]
    (folder / "train_split1.txt").write_text("".join([*held_out, *others[:3]]))
    lines = (official / "test_split1.txt").read_text().splitlines(keepends=True)
    (folder / "test_split1.txt").write_text("".join(sorted(lines, key=length_of)[:3]))
    return folder


def length_of(line: str) -> int:
    start, stop = (int(field[1:]) for field in line.split()[0].split("-")[-2:])
    return stop - start


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_papers_recipe_trains_on_made_clips(tmp_path: Path, lists: Path) -> None:
    make_egtea(lists, tmp_path / "EGTEA", clips_per_verb=2)

    # The folder, one epoch, no loader processes, and where the run goes: nothing else is changed.
    done = subprocess.run(
        [
            *(sys.executable, "tools/train.py", "configs/egtea/paper_verbs_resnext101_cdb.yaml"),
            *(f"data.root={tmp_path / 'EGTEA'}", "train.epochs=1", "data.num_workers=0"),
            *(f"run.output_dir={tmp_path}", "run.name=paper"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    expected = {"val": ("train_split1", [8, 2]), "test": ("test_split1", [2, 2])}
    for role, (split, counts) in expected.items():
        report = json.loads((tmp_path / f"paper/report_{role}.json").read_text())
        verb = report["heads"]["verb"]
        assert split in report["annotation_split"]
        assert report["heads"].keys() == {"verb"}
        assert report["num_videos"] == verb["num_videos"] == sum(counts)
        assert verb["count"] == dict(zip(VERBS, counts, strict=True))
        assert verb["train_count"] == {"Inspect/Read": 2, "Turn on": 2}
