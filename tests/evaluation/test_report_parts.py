"""What a report page is made of: histories, confusions, figures, when it is written; its size."""

import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation.canvas import short
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    save_predictions,
)
from cdb_video.evaluation.report import make_report, save_report
from cdb_video.evaluation.report_curves import draw_curves, draw_history
from cdb_video.evaluation.report_data import (
    ClassHistory,
    confusion_matrix,
    hardest_clips,
    most_confused,
    progress,
    read_class_histories,
    read_events,
    reliability,
)
from cdb_video.evaluation.report_page import finish_report_page, is_due, write_report_page
from cdb_video.evaluation.report_tables import shown
from cdb_video.training.run_log import FileLog
from tests.conftest import MakeVideo
from tests.evaluation.report_pages import (
    HOSTILE,
    TRAIN_COUNTS,
    VERBS,
    Page,
    make_head,
    write_page,
    write_run,
)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Ten videos: class "never" of the verbs is absent, and no video has an adverb."""
    heads = {
        "verb": make_head([0, 0, 0, 0, 1, 1, 2, 2, -1, -1], 4),
        "adverb": make_head([-1] * 10, 2),
    }
    return Predictions(tuple(f"clip <{i}>" for i in range(10)), heads)


@pytest.fixture(scope="module")
def classes() -> dict[str, HeadClasses]:
    return {
        "verb": HeadClasses(VERBS, TRAIN_COUNTS),
        "adverb": HeadClasses(("fast", "slow"), torch.tensor([0, 0])),
    }


def test_a_constant_weight_and_an_unknown_difficulty_are_not_drawn() -> None:
    unknown, ones = np.full((2, 3), np.nan), np.ones((2, 3))
    epochs = np.arange(2)

    assert draw_history("abc", ClassHistory(epochs, unknown, ones)) == {}
    assert draw_history("abc", ClassHistory(epochs, ones / 2, ones)).keys() == {"difficulty"}


def test_the_reliability_bins_give_the_ece_of_the_report(
    predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    part = make_head([i % 7 for i in range(500)], 7)
    report = make_report(
        Predictions(tuple(map(str, range(500))), {"verb": part}),
        {"verb": HeadClasses(tuple("abcdefg"), torch.ones(7).long())},
        run="", split="val", annotation_split="", views="",
    )  # fmt: skip

    bins = reliability(part)

    gap = np.nansum(np.abs(bins.confidence - bins.accuracy) * bins.count) / 500
    assert bins.count.sum() == 500
    assert gap == pytest.approx(report["heads"]["verb"]["ece"], abs=1e-6)  # fp32 there


def test_confusion_counts_and_names_the_pairs() -> None:
    # Class 0: right once, taken for 1 twice. Class 1: taken for 0 twice, of two clips.
    guesses, labels = [0, 1, 1, 0, 0, 2, 2], [0, 0, 0, 1, 1, 2, -1]
    scores = torch.eye(3)[guesses]
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))

    confusion = confusion_matrix(part)
    pairs = most_confused(confusion, "abc")

    assert confusion.tolist() == [[1, 2, 0], [2, 0, 0], [0, 0, 1]]
    told = [(pair.truth, pair.predicted, pair.count, pair.total) for pair in pairs]
    assert told == [("b", "a", 2, 2), ("a", "b", 2, 3)]


def test_the_hardest_clips_are_those_with_the_lowest_own_score() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [1.0, 0.0, 0.0]])
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor([0, 0, 1, -1]))

    clips = hardest_clips(Predictions(tuple("wxyz"), {"verb": part}), "verb", "abc", number=2)

    assert [(clip.id, clip.truth) for clip in clips] == [("x", "a"), ("y", "b")]
    assert clips[0].score == pytest.approx(0.2)
    assert [name for name, _ in clips[0].guesses] == ["b", "c", "a"]


def test_a_history_has_a_column_a_class_and_unknown_rows_are_left_out(
    tmp_path: Path, classes: dict[str, HeadClasses]
) -> None:
    write_run(tmp_path)
    with (tmp_path / "difficulty.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([1, "verb", "a class of another run", 1, 0.5, 0.5, 1.0])

    histories = read_class_histories(tmp_path / "difficulty.csv", classes)

    assert list(histories) == ["verb"]
    verb = histories["verb"]
    assert verb.epochs.tolist() == [0, 1]
    np.testing.assert_allclose(verb.difficulty[1], [0.25, 0.75, 1.0, np.nan])
    np.testing.assert_allclose(verb.weight, [[1, 1, 1, 1], [0.2, 0.9, 1.5, 1.0]], rtol=1e-6)
    assert verb.hardest(5).tolist() == [2, 1, 0]


def test_a_line_that_was_cut_short_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "epoch": 1}\n7\n{"epoch": 1}\n{"event": "tra')

    assert read_events(path) == [{"event": "train", "epoch": 1}]
    assert read_events(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (None, "-"),
        (0.1234, "12.3"),
        ([0.1, 0.25], "10.0 to 25.0"),
        ({"accuracy": None, "num_classes": 0}, "- (0)"),
        ({"accuracy": 0.5, "num_classes": 3}, "50.0 (3)"),
    ],
)
def test_a_figure_is_shown_in_percent(figure: object, expected: str) -> None:
    assert shown(figure) == expected


def test_a_page_is_due_once_a_minute(tmp_path: Path) -> None:
    page = tmp_path / "report_val.html"
    assert is_due(page)

    page.write_text("")
    assert not is_due(page)

    a_minute_ago = page.stat().st_mtime - 60
    os.utime(page, (a_minute_ago, a_minute_ago))
    assert is_due(page)


def test_a_page_is_written_again_when_training_went_on(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    finish_report_page(tmp_path, "val")
    assert list(tmp_path.iterdir()) == []  # no run, no page

    report = make_report(
        predictions, classes, run=HOSTILE, split="val", annotation_split=HOSTILE, views="1x1",
        split_fed=["selection", "difficulty"],
    )  # fmt: skip
    save_report(tmp_path / "report_val.json", report)
    save_predictions(tmp_path / "predictions_val.npz", predictions, classes)
    write_run(tmp_path)
    text = write_page(tmp_path, predictions, classes)
    page = tmp_path / "report_val.html"
    page.write_text("older than the run")
    os.utime(page, (0, 0))
    finish_report_page(tmp_path, "val")
    assert page.read_text(encoding="utf-8") == text  # the same run is the same page

    report_data = json.loads((tmp_path / "report_val.json").read_text(encoding="utf-8"))
    write_report_page(tmp_path, report_data, predictions, classes, live=True)
    assert "training goes on" in page.read_text(encoding="utf-8")
    finish_report_page(tmp_path, "val")
    assert page.read_text(encoding="utf-8") == text

    later = (tmp_path / "metrics.jsonl").stat().st_mtime + 1
    page.write_text("newer than the run")
    os.utime(page, (later, later))
    finish_report_page(tmp_path, "val")
    assert page.read_text() == "newer than the run"


def test_progress_is_in_whole_epochs_and_shares_of_one() -> None:
    def told(epoch: float) -> str:
        return progress([{"event": "train", "epoch": epoch, "step": 7}])

    assert told(1000.0) == "trained for 1000 epochs, 7 steps"
    assert told(0.254) == "trained for 0.25 epochs, 7 steps"


def test_a_control_character_in_a_name_becomes_a_space() -> None:
    assert short("cut\x0bone\ud800\ufffe\n") == "cut one   "
    assert short("切る 👩‍🍳") == "切る 👩‍🍳"


def test_events_of_other_kinds_do_not_disturb_the_curves() -> None:
    train = {"event": "train", "epoch": 1.0, "loss": 2.0, "lr": 0.1, "clips_per_s": 9.0}
    skip = {"event": "skip", "epoch": 0.5, "id": "clip", "message": "does not decode"}

    drawn = draw_curves([skip, train], ["verb"])

    assert list(drawn) == ["loss", "mean class accuracy", "learning rate", "clips a second"]
    assert draw_curves([skip], ["verb"]) == {}


@pytest.mark.slow
def test_a_report_of_egtea_s_size_is_under_five_megabytes_and_ten_seconds(
    tmp_path: Path, coded_video: MakeVideo
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"verb": 19, "noun": 53, "action": 106}
    predictions = Predictions(
        tuple(f"clip {i}" for i in range(2022)),
        {head: make_head((torch.arange(2022) % k).tolist(), k) for head, k in sizes.items()},
    )
    classes = {
        head: HeadClasses(tuple(f"Divide/Pull Apart something {i}" for i in range(k)),
                          torch.arange(k))
        for head, k in sizes.items()
    }  # fmt: skip
    log = FileLog(tmp_path)
    for epoch in range(40):
        for head, part in classes.items():
            accuracy, weights = torch.rand(2, len(part.names), generator=generator)
            log.write_difficulty(
                epoch, head, names=part.names, train_counts=part.train_counts, accuracy=accuracy,
                difficulty=1 - accuracy, weights=weights,
            )  # fmt: skip
        log.write("train", epoch=epoch + 1.0, step=epoch, lr=0.1, clips_per_s=10.0, loss=2.0)
    log.close()

    video = coded_video("video.mp4")
    records = [VideoRecord(name, video, name, name, labels={}) for name in predictions.ids]

    began = time.process_time()
    text = write_page(tmp_path, predictions, classes, records=records)
    seconds = time.process_time() - began

    print(f"{seconds:.1f} s of one core, {len(text.encode()) / 1e6:.2f} MB")
    assert len(text.encode()) < 5_000_000
    assert seconds < 10  # three times what it takes: a slow machine passes, a slow page does not
    assert sum(source.startswith("data:image/jpeg") for source in Page(text).images) == 3 * 12
    page = Page(text)
    assert (len(page.table("class")), page.clips) == (1 + 19, 3 * 12)
