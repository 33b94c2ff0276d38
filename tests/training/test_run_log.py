import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cdb_video.errors import RunError
from cdb_video.evaluation.difficulty_file import DIFFICULTY_COLUMNS
from cdb_video.training.run_log import Done, FileLog


def read_lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_difficulty(log: FileLog, epoch: int) -> None:
    log.write_difficulty(
        epoch,
        "verb",
        names=["open", "close, slowly"],
        train_counts=torch.tensor([3, 1]),
        accuracy=torch.tensor([0.5, math.nan]),
        difficulty=torch.tensor([0.5, math.nan]),
        weights=torch.tensor([1.25, 1.0]),
    )


def test_every_line_is_one_json_object_and_missing_figures_are_null(tmp_path: Path) -> None:
    log = FileLog(tmp_path)

    log.write("train", epoch=0.5, step=1, loss=0.25)
    log.write("eval", epoch=1, step=2, mean_class_accuracy={"verb": math.nan})
    log.close()

    train, evaluation = read_lines(tmp_path)
    assert (train["event"], train["epoch"], train["step"], train["loss"]) == ("train", 0.5, 1, 0.25)
    assert evaluation["mean_class_accuracy"] == {"verb": None}


def test_difficulty_rows_are_readable_csv_with_empty_cells_for_unmeasured_classes(
    tmp_path: Path,
) -> None:
    log = FileLog(tmp_path)

    write_difficulty(log, 0)
    write_difficulty(log, 1)

    with (tmp_path / "difficulty.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert tuple(header) == DIFFICULTY_COLUMNS
    assert rows[0] == ["0", "verb", "open", "3", "0.5", "0.5", "1.25"]
    assert rows[1] == ["0", "verb", "close, slowly", "1", "", "", "1.0"]
    assert len(rows) == 4
    log.close()


def test_a_resumed_log_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    for epoch in (1, 2, 3):
        log.write("train", epoch=epoch, step=10 * epoch)
        log.write("eval", epoch=epoch, step=10 * epoch)
        write_difficulty(log, epoch)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "ep')  # cut off when the run died

    FileLog(tmp_path, done=Done(2, 20)).close()

    assert [(line["event"], line["epoch"]) for line in read_lines(tmp_path)] == [
        ("train", 1),
        ("eval", 1),
        ("train", 2),
        ("eval", 2),
    ]
    with (tmp_path / "difficulty.csv").open(newline="") as file:
        epochs = {row["epoch"] for row in csv.DictReader(file)}
    assert epochs == {"1", "2"}


def test_of_an_epoch_that_was_not_evaluated_the_steps_up_to_the_checkpoint_stay(
    tmp_path: Path,
) -> None:
    log = FileLog(tmp_path)
    for step in (10, 20, 30):
        log.write("train", epoch=step / 20, step=step)
    log.write("eval", epoch=1, step=20)
    log.write("skip", epoch=1, step=20, split="val", id="a")
    log.close()

    # A checkpoint of the end of an epoch whose evaluation did not come to its end.
    FileLog(tmp_path, done=Done(0, 20)).close()

    assert [(line["event"], line["step"]) for line in read_lines(tmp_path)] == [
        ("train", 10),
        ("train", 20),
    ]


def test_a_run_that_died_before_its_first_checkpoint_starts_with_empty_files(
    tmp_path: Path,
) -> None:
    log = FileLog(tmp_path)
    write_difficulty(log, 0)
    log.write("train", epoch=0.5, step=1)
    log.close()

    again = FileLog(tmp_path)
    write_difficulty(again, 0)
    again.close()

    assert read_lines(tmp_path) == []
    with (tmp_path / "difficulty.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def torn(folder: Path) -> tuple[Path, Path]:
    """metrics.jsonl and difficulty.csv of two epochs that are done."""
    log = FileLog(folder)
    for epoch in (1, 2):
        log.write("train", epoch=epoch, step=10 * epoch)
        write_difficulty(log, epoch)
    log.close()
    return folder / "metrics.jsonl", folder / "difficulty.csv"


@pytest.mark.parametrize(
    "end",
    [
        b"\xff\xfe",
        bytes(40),
        b"\r\n",
        b"1",
        b"2,verb,open,3,0.5,0.5,1.",  # of 1.25
        b"2,verb,open,3,0.5,0.5,\xff\r\n",
        b'2,verb,"open',
        b"2,ve\rb,open,3,0.5,0.5,1.25\r\n",
    ],
)
def test_what_a_power_cut_left_at_the_end_is_taken_back(tmp_path: Path, end: bytes) -> None:
    metrics, difficulty = torn(tmp_path)
    whole = difficulty.read_bytes()
    for path in (metrics, difficulty):
        with path.open("ab") as file:
            file.write(end)

    log = FileLog(tmp_path, done=Done(2, 20))
    log.write("train", epoch=3, step=30)
    log.close()

    assert [line["step"] for line in read_lines(tmp_path)] == [10, 20, 30]
    assert difficulty.read_bytes() == whole


def test_a_last_line_without_its_end_does_not_run_into_the_next(tmp_path: Path) -> None:
    metrics, _ = torn(tmp_path)
    metrics.write_bytes(metrics.read_bytes().removesuffix(b"\n"))

    log = FileLog(tmp_path, done=Done(2, 20))
    log.write("train", epoch=3, step=30)
    log.close()

    assert [line["step"] for line in read_lines(tmp_path)] == [10, 20, 30]


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.images: dict[str, tuple[np.ndarray, int]] = {}
        self.closed = False

    def add_scalars(self, scalars: Mapping[str, float], *, step: int) -> None:
        self.scalars |= {name: (value, step) for name, value in scalars.items()}

    def add_images(self, images: Mapping[str, np.ndarray], *, step: int) -> None:
        self.images |= {name: (image, step) for name, image in images.items()}

    def close(self) -> None:
        self.closed = True


def test_trackers_get_the_numbers_of_an_event_and_not_its_words(tmp_path: Path) -> None:
    tracker = Kept()
    log = FileLog(tmp_path, trackers=[tracker])

    log.write("eval", epoch=1, step=7, loss=0.5, top1={"verb": 0.25}, said="text")
    log.close()

    assert tracker.scalars == {"eval/loss": (0.5, 7), "eval/top1/verb": (0.25, 7)}
    assert tracker.closed


def test_trackers_get_a_report_and_its_pictures_at_the_latest_step(
    tmp_path: Path,
) -> None:
    tracker = Kept()
    log = FileLog(tmp_path, trackers=[tracker], done=Done(1, 5))
    verb = {
        "num_classes": 3,
        "top1": 0.5,
        "top5": None,
        "few": {"accuracy": 0.25, "num_classes": 2},
        "class_accuracy": {"open": 1.0},
        "count": {"open": 4},
    }

    log.write("train", epoch=1, step=9)
    log.write("save", epoch=1, step=7)  # begun two steps before, and on the disk now
    log.show_report({"split": "val", "heads": {"verb": verb}})
    log.show_figures("val", {"verb/confusion": Figure(figsize=(0.4, 0.2))})

    assert tracker.scalars == {"val/verb/top1": (0.5, 9), "val/verb/few/accuracy": (0.25, 9)}
    image, step = tracker.images["val/verb/confusion"]
    assert (image.shape, image.dtype, int(image.min()), step) == ((20, 40, 3), np.uint8, 255, 9)
    log.close()


def test_a_log_that_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = FileLog(tmp_path)
    with Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), log._metrics.fileno())

    with pytest.raises(RunError, match=r"metrics\.jsonl: could not be written \(.*No space left"):
        log.write("train", epoch=0.5, step=1)
    log.close()
