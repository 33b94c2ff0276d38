"""What the doctor tells without a look at the files, and how its report reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord
from cdb_video.prepare.check import Diagnosis, Speed
from cdb_video.prepare.doctor_report import make_report, print_report, tail_figures
from cdb_video.prepare.findings import Finding
from cdb_video.prepare.splits import check_splits
from tests.prepare.made import make_record, make_split


def kinds_and_splits(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(f.kind, f.split, f.where) for f in findings]


def test_an_id_or_a_segment_that_comes_twice_is_told_once() -> None:
    train = make_split(
        make_record("a.mp4", id="a"),
        make_record("b.mp4", id="a"),
        make_record("c.mp4", id="c1", recording="c", start_s=1.0, stop_s=2.0),
        make_record("c.mp4", id="c2", recording="c", start_s=1.0, stop_s=2.0),
        make_record("c.mp4", id="c3", recording="c", start_s=2.0, stop_s=3.0),
    )
    test = make_split(make_record("d.mp4", id="d", recording="e"), make_record("d.mp4", id="d2"))
    splits = {"train": train, "test": make_split(make_record("b.mp4", id="other"), *test.records)}

    findings = [f for f in check_splits(splits) if "clips" not in f.kind]

    assert kinds_and_splits(findings) == [
        ("repeated id", "train", "a.mp4"),
        ("same content in two splits", "train, test", "b.mp4"),
        ("same content", "train", "c.mp4@1-2"),
        ("same content", "test", "d.mp4"),
        ("shared recording", "train, test", "b"),
    ]


def test_recordings_and_subjects_of_the_training_split_are_looked_for_in_the_others() -> None:
    def clip(name: str, recording: str, subject: str) -> VideoRecord:
        return make_record(
            f"{name}.mp4", recording=recording, metadata={"person": subject, "camera": "left"}
        )

    splits = {
        "train": make_split(*(clip(f"a{i}", "monday", "Ann") for i in range(5))),
        "val": make_split(clip("v", "tuesday", "Bob"), clip("w", "friday", "")),
        "test": make_split(clip("t", "monday", "Cy"), clip("u", "tuesday", "Ann")),
    }

    findings = list(check_splits(splits, subject_columns=["person"]))

    assert kinds_and_splits(findings) == [
        ("shared recording", "train, test", "monday"),
        ("shared subject", "train, test", "Ann"),
    ]
    assert findings[0].message == "5 and 1 clips"
    assert {finding.level for finding in findings} == {"note"}


def test_classes_without_clips_or_with_few_are_noted_and_a_head_without_any_is_wrong() -> None:
    def clips(role: str, labels: Sequence[int]) -> Split:
        records = [
            make_record(f"{role}{i}.mp4", labels={"verb": label}) for i, label in enumerate(labels)
        ]
        return make_split(*records, names=("cut", "put", "take"))

    splits = {
        "train": clips("train", [0] * 5 + [1] * 4),
        "val": clips("val", [UNLABELLED, UNLABELLED]),
        "test": clips("test", [0, 2]),
    }

    findings = list(check_splits(splits))

    assert kinds_and_splits(findings) == [
        ("few train clips", "train", "verb 'put'"),
        ("no train clips", "train", "verb 'take'"),
        ("no labels", "val", "verb"),
        ("no test clips", "test", "verb 'put'"),
    ]
    assert [finding.level for finding in findings] == ["note", "note", "error", "note"]
    # A challenge's test split, whose labels are kept back.
    unlabelled = {"train": splits["train"], "test": clips("test", [UNLABELLED])}
    assert "test" not in {finding.split for finding in check_splits(unlabelled)}


def test_an_epoch_opens_every_file_and_decodes_every_clip() -> None:
    speed = Speed(index_s=0.5, clip_s=0.1, num_timed=2, num_clips=40, num_files=4)

    # 4 x 0.5 s + 40 x 0.1 s
    assert speed.epoch_s == pytest.approx(6.0)
    assert speed.clips_per_s == pytest.approx(40 / 6)
    report = make_report(Diagnosis({}, [], speed), num_workers=3)
    assert report["speed"]["epoch_s"] == pytest.approx(2.0)


def test_the_tail_is_counted_in_training_clips() -> None:
    counts = {"a": 101, "b": 100, "c": 20, "d": 19, "e": 4, "f": 0}
    records = [
        make_record(f"{name}{i}.mp4", labels={"verb": label})
        for label, (name, count) in enumerate(counts.items())
        for i in range(count)
    ]

    figures = tail_figures(make_split(*records, names=tuple(counts)), "verb")

    assert (figures["num_classes"], figures["num_classes_present"]) == (6, 5)
    assert (figures["many"], figures["medium"], figures["few"]) == (1, 2, 3)
    assert (figures["largest"], figures["smallest"]) == (101, 0)
    assert figures["imbalance_factor"] == 101 / 4
    assert figures["top"][:2] == [("a", 101), ("b", 100)]
    assert figures["bottom"][-1] == ("f", 0)


def test_the_first_ten_of_a_kind_are_printed_and_the_rest_counted(tmp_path: Path) -> None:
    # A name that rich would take for its own markup.
    findings = [
        Finding("missing", "train", f"{tmp_path}/[bold]{i:02}.mp4", "no such file")
        for i in range(12)
    ]
    console = Console(file=io.StringIO(), width=120)

    report = make_report(Diagnosis({}, findings, None), num_workers=2)
    print_report(report, root=tmp_path, console=console)

    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "error: missing (12)" in text
    assert "[bold]09.mp4" in text
    assert "[bold]10.mp4" not in text
    assert "and 2 more" in text
    assert str(tmp_path) not in text
    assert text.rstrip().endswith("12 errors, 0 notes")
