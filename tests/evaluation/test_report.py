"""The content of `report_<split>.json`, as users' programs read it."""

import io
import json
import locale

import pytest
import torch

from cdb_video.errors import RunError
from cdb_video.evaluation.metrics import INTERVALS
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.evaluation.report import make_report, print_report, save_report
from cdb_video.evaluation.report_mean import mean_report, print_mean, refuse_other_classes
from cdb_video.evaluation.report_page import write_report_page
from cdb_video.progress import plain_console

REPORT_KEYS = {
    "run",
    "split",
    "annotation_split",  # the name that the annotations give the split
    "num_videos",
    "views",
    "logit_adjust",
    "split_fed",
    "skipped",
    "heads",
    "subsets",
    "consistency",
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
    "majority",
    "minority",
    "intervals",
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
        for group in ("majority", "minority"):
            assert head[group].keys() == {"accuracy", "precision", "num_classes"}
        assert head["intervals"] is None or head["intervals"].keys() == set(INTERVALS)
    assert [report["heads"][head]["intervals"] is None for head in report["heads"]] == [
        False,
        False,
        True,  # without labels
    ]


def test_report_says_what_was_evaluated(report):
    assert report["run"] == "demo-1"
    assert (report["split"], report["annotation_split"]) == ("val", "train_split1, held out")
    assert (report["num_videos"], report["views"]) == (10, "10x3")
    assert report["split_fed"] == ["selection", "difficulty"]
    assert (report["skipped"], report["subsets"]) == ([], {})
    assert report["consistency"] is None  # no training clip told which pairs there are
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


def printed(show, content):
    text = io.StringIO()
    show(content, console=plain_console(width=200, file=text))
    return text.getvalue()


def test_names_that_look_like_markup_are_printed_as_they_are(report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    named = report | {
        "run": "tap [on/off]",
        "heads": {"[/verb] :cat:": report["heads"]["verb"]},
        "skipped": [{"id": "[bold]a.mp4", "reason": "none"}],
    }

    print_report(named)
    print_mean(mean_report([named, named | {"run": "[/x]"}]))

    out = capsys.readouterr().out
    for name in ("tap [on/off], val", "[/verb] :cat:", "([bold]a.mp4)", "tap [on/off], [/x]"):
        assert name in out


def make_actions(*, labelled=True, seed=0):
    """Twenty videos of three known actions, with two participants, one of whom is unseen."""
    pairs = torch.tensor([[0, 0], [1, 0], [1, 1]])
    actions = torch.arange(20) % 3 if labelled else torch.full((20,), -1)
    rows = {"verb": pairs[actions, 0], "noun": pairs[actions, 1], "action": actions}
    generator = torch.Generator().manual_seed(seed)
    heads = {}
    for head, size in (("verb", 2), ("noun", 2), ("action", 3)):
        scores = torch.randn(20, size, generator=generator).softmax(1)
        labels = rows[head] if labelled else actions
        heads[head] = HeadPredictions(scores, scores[:, None].half(), labels)
    metadata = {
        "participant": ("P01", "P02") * 10,
        "unseen": ("no", "yes") * 10,
    }
    classes = {
        "verb": HeadClasses(("take", "put"), torch.tensor([900, 30])),
        "noun": HeadClasses(("cup", "knife"), torch.tensor([5, 30])),
        "action": HeadClasses(("a", "b", "c"), torch.tensor([5, 30, 4]), pairs=pairs),
    }
    return Predictions(tuple(map(str, range(20))), heads, metadata=metadata), classes


def make_actions_report(**options):
    predictions, classes = make_actions(**options)
    ids = frozenset(predictions.ids[:8])
    return make_report(
        predictions,
        classes,
        run=f"run-{options.get('seed', 0)}",
        split="test",
        annotation_split="test",
        views="1x1",
        subsets={"dark": ids},
    )


def test_subsets_have_the_figures_of_a_head_without_its_tables_by_class(tmp_path):
    report = make_actions_report()
    save_report(tmp_path / "report_test.json", report)  # which refuses what is no JSON

    assert list(report["subsets"]) == ["unseen", "dark"]
    for heads in report["subsets"].values():
        assert list(heads) == ["verb", "noun", "action"]
        for figures in heads.values():
            assert figures.keys() == HEAD_KEYS - {"class_accuracy", "train_count", "count"}
    assert report["subsets"]["unseen"]["verb"]["num_videos"] == 10


def test_consistency_is_of_the_heads_verb_noun_and_action():
    report = make_actions_report()

    found = report["consistency"]
    assert found.keys() == {
        "num_actions",
        "num_actions_without_pair",
        "own_head",
        "product",
        "both",
        "invalid_pairs",
        "agreement",
    }
    assert found["own_head"]["top1"] == report["heads"]["action"]["top1"]


def test_tables_show_subsets_consistency_and_the_papers_groups():
    text = printed(print_report, make_actions_report())

    assert "mean class accuracy" in text
    for row in ("unseen", "dark", "verb x noun", "all three", "majority (CDB paper)"):
        assert row in text, row


def test_the_papers_groups_are_not_shown_where_all_classes_are_in_one(report):
    assert "CDB paper" not in printed(print_report, report)


def test_a_split_without_labels_has_null_figures_a_table_and_a_page(tmp_path):
    predictions, classes = make_actions(labelled=False)
    report = make_actions_report(labelled=False)

    save_report(tmp_path / "report_test.json", report)
    text = printed(print_report, report)
    page = write_report_page(tmp_path, report, predictions, classes)

    for figures in report["heads"].values():
        assert figures["top1"] is figures["mean_class_accuracy"] is figures["intervals"] is None
        assert figures["num_videos"] == 0
    assert text.count("no labels") == 3 + 2 * 3  # each head, and each of two subsets
    assert report["consistency"]["invalid_pairs"] is not None
    assert page.is_file()


def test_a_mean_over_runs_has_mean_and_sample_deviation(tmp_path):
    reports = [make_actions_report(seed=seed) for seed in range(3)]
    values = [report["heads"]["verb"]["top1"] for report in reports]

    mean = mean_report(reports)

    assert (mean["runs"], mean["split"]) == (["run-0", "run-1", "run-2"], "test")
    top1 = mean["heads"]["verb"]["top1"]
    assert top1["values"] == values
    assert top1["mean"] == pytest.approx(sum(values) / 3)
    deviation = sum((value - sum(values) / 3) ** 2 for value in values) / 2
    assert top1["std"] == pytest.approx(deviation**0.5)
    assert top1["std"] > 0
    few = [report["heads"]["action"]["few"]["accuracy"] for report in reports]
    assert mean["heads"]["action"]["few"]["values"] == few
    assert mean["heads"]["verb"]["top5"] is None
    save_report(tmp_path / "mean.json", mean)
    text = printed(print_mean, mean)
    assert f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f}" in text
    assert "top5" not in text


def test_a_figure_that_one_run_does_not_have_has_no_mean():
    reports = [make_actions_report(), make_actions_report(labelled=False)]

    assert mean_report(reports)["heads"]["verb"]["top1"] is None


def known(*names, **more):
    return {
        head: HeadClasses(tuple(part), torch.ones(len(part)).long())
        for head, part in ({"verb": names} | more).items()
    }


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            known("open", "shut"),
            "runs/b: class 1 of head 'verb' is 'shut'; of runs/a it",
        ),
        (known("close", "open"), "runs/b: class 0 of head 'verb' is 'close'; of runs/a"),
        (known("open"), "runs/b: head 'verb' has 1 classes; runs/a has 2"),
        (
            known("open", "close", noun=("cup",)),
            "runs/b: its heads are verb, noun; runs/a",
        ),
    ],
)
def test_runs_of_other_classes_have_no_mean(other, message):
    same = known("open", "close")
    refuse_other_classes({"runs/a": same, "runs/c": known("open", "close")})

    with pytest.raises(RunError, match=message):
        refuse_other_classes({"runs/a": same, "runs/b": other})
