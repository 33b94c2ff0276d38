"""The content of `report_<split>.json`, as users' programs read it."""

import json
import locale

import pytest
import torch

from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.evaluation.report import make_report, save_report

REPORT_KEYS = {
    "run",
    "split",
    "annotation_split",  # the name that the annotations give the split
    "num_videos",
    "views",
    "split_fed",
    "skipped",
    "heads",
    "subsets",
}
HEAD_KEYS = {
    "num_classes",
    "num_classes_present",
    "num_videos",  # labelled ones of this head
    "top1",
    "top5",
    "mean_class_accuracy",
    "mean_class_accuracy_interval",
    "mean_class_top5",
    "mean_class_accuracy_logit_adjusted",
    "mean_class_precision",
    "macro_f1",
    "harmonic_mean",
    "worst_fifth",
    "ece",
    "many",
    "medium",
    "few",
    "class_accuracy",
    "train_count",
    "count",
}


def make_head(labels, num_classes):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(labels), num_classes, generator=generator).softmax(1)
    return HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))


@pytest.fixture
def report():
    """Ten videos; class 3 of the verbs is absent, and no video has an adverb."""
    ids = tuple(f"clip {i}" for i in range(10))
    heads = {
        "verb": make_head([0, 0, 0, 0, 1, 1, 2, 2, -1, -1], 4),
        "noun": make_head([*range(8), 0, 1], 8),
        "adverb": make_head([-1] * 10, 2),
    }
    classes = {
        "verb": HeadClasses(("open", "close", "切る", "never"), torch.tensor([101, 100, 20, 19])),
        "noun": HeadClasses(tuple(f"noun {i}" for i in range(8)), torch.arange(8)),
        "adverb": HeadClasses(("fast", "slow"), torch.tensor([0, 0])),
    }
    return make_report(
        Predictions(ids, heads),
        classes,
        run="demo-1",
        split="val",
        annotation_split="train_split1, held out",
        views="10x3",
        split_fed=["selection", "difficulty"],
    )


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def numbers(content):
    """Every float of nested content."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [number for value in content for number in numbers(value)]
    return [content] if isinstance(content, float) else []


def test_report_has_exactly_its_keys(report):
    assert report.keys() == REPORT_KEYS
    assert list(report["heads"]) == ["verb", "noun", "adverb"]
    for head in report["heads"].values():
        assert head.keys() == HEAD_KEYS
        for group in ("many", "medium", "few"):
            assert head[group].keys() == {"accuracy", "num_classes"}


def test_report_says_what_was_evaluated(report):
    assert report["run"] == "demo-1"
    assert (report["split"], report["annotation_split"]) == ("val", "train_split1, held out")
    assert (report["num_videos"], report["views"]) == (10, "10x3")
    assert report["split_fed"] == ["selection", "difficulty"]
    assert (report["skipped"], report["subsets"]) == ([], {})
    verb = report["heads"]["verb"]
    assert (verb["num_classes"], verb["num_classes_present"], verb["num_videos"]) == (4, 3, 8)
    assert verb["count"] == {"open": 4, "close": 2, "切る": 2, "never": 0}
    assert verb["train_count"] == {"open": 101, "close": 100, "切る": 20, "never": 19}


def test_what_does_not_exist_is_null_and_never_zero(report):
    verb, noun, adverb = report["heads"].values()

    assert verb["class_accuracy"]["never"] is None
    assert verb["top5"] is None
    assert noun["top5"] is not None
    assert verb["few"] == {"accuracy": None, "num_classes": 0}  # its one class is absent
    assert adverb["num_classes_present"] == 0
    assert adverb["mean_class_accuracy"] is None
    assert adverb["mean_class_accuracy_interval"] is None


def test_every_figure_is_a_fraction(report):
    figures = numbers(report["heads"])

    assert len(figures) > 30
    assert all(0 <= figure <= 1 for figure in figures)


def test_file_is_json_without_nan_and_the_same_content(report, tmp_path):
    path = tmp_path / "report_val.json"
    path.write_text("old")

    save_report(path, report)

    loaded = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert loaded == report
    assert "切る" in path.read_text(encoding="utf-8")  # readable, not \\u5207
    assert [file.name for file in tmp_path.iterdir()] == ["report_val.json"]


def test_a_figure_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_report(tmp_path / "report_val.json", {"top1": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_a_report_is_utf8_under_any_locale(tmp_path):
    path = tmp_path / "report_val.json"
    before = locale.setlocale(locale.LC_CTYPE)

    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        save_report(path, {"class": "切る"})
    finally:
        locale.setlocale(locale.LC_CTYPE, before)

    assert json.loads(path.read_bytes()) == {"class": "切る"}
