"""tools/evaluate.py as a user types it, in this process: scoring again, subsets, several runs."""

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.distributed import Ranks
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    load_predictions,
    save_predictions,
)
from cdb_video.experiments import open_run
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
Tool = Callable[..., str]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """`tool(status, *arguments) -> str`: what evaluate.py printed before it exited so."""

    def run(status: int | None, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *(str(word) for word in arguments)])
        # Else the tool would set this process's number of threads.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "tools/evaluate.py"), run_name="__main__")
        captured = capsys.readouterr()
        assert exit_info.value.code == status, captured.err
        return captured.err if status else captured.out

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A predictions file of six videos: verb and noun, of which three pairs are actions."""

    def head(guesses: list[int], labels: list[int]) -> HeadPredictions:
        scores = torch.full((6, 2), 0.2)
        scores[range(6), guesses] = 0.8
        return HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))

    heads = {
        "verb": head([0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]),
        "noun": head([0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 0, -1]),
    }
    metadata = {"participant": ("P01", "P01", "P02", "P02", "P02", "P03")}
    classes = {
        "verb": HeadClasses(("take", "put"), torch.tensor([200, 10])),
        "noun": HeadClasses(
            ("cup", "knife"), torch.tensor([5, 5]), pairs=torch.tensor([[0, 0], [1, 0], [1, 1]])
        ),
    }
    path = tmp_path / "run" / "predictions_val.npz"
    path.parent.mkdir()
    save_predictions(path, Predictions(tuple("abcdef"), heads, metadata=metadata), classes)
    return path


def test_a_predictions_file_is_scored_again_with_subsets_and_written(
    tool: Tool, scored: Path, tmp_path: Path
) -> None:
    (tmp_path / "dark.txt").write_text("a\nc\n")
    out = tmp_path / "again.json"

    printed = tool(
        None,
        *("--predictions", scored, "--json", out),
        *("--subset", "participant", "--subset", tmp_path / "dark.txt"),
    )

    report = read(out)
    assert (report["run"], report["split"], report["num_videos"]) == ("run", "val", 6)
    assert report["heads"]["verb"]["top1"] == pytest.approx(5 / 6)
    subsets = report["subsets"]
    assert list(subsets) == ["participant=P01", "participant=P02", "participant=P03", "dark"]
    assert subsets["participant=P02"]["verb"]["top1"] == pytest.approx(2 / 3)
    assert subsets["participant=P03"]["noun"]["top1"] is None  # its one video has no noun
    assert subsets["dark"]["noun"]["top1"] == 1
    # take + knife, b and f, is no action. Of the five with labels a, c and d are right, and b: a
    # tie of .16 with put knife, which comes later.
    assert report["consistency"]["invalid_pairs"] == pytest.approx(2 / 6)
    assert report["consistency"]["product"]["top1"] == pytest.approx(4 / 5)
    for row in ("participant=P02", "dark", "verb x noun", "no labels"):
        assert row in printed, row


def test_logit_adjustment_keeps_the_metadata(tool: Tool, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "adjusted.json"

    tool(
        None,
        *("--predictions", scored, "--logit-adjust", "1"),
        *("--subset", "participant=P02", "--json", out),
    )

    # .8 / 200 < .2 / 10: every video is put now, and P02 has two of those.
    assert read(out)["subsets"]["participant=P02"]["verb"]["top1"] == pytest.approx(2 / 3)
    assert read(out)["heads"]["verb"]["top1"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subset", "camera"], "--subset camera: neither a file nor a column; columns: parti"),
        (["--subset", "participant=P9"], "--subset participant=P9: no video has it; there are: 'P"),
        (["--json", "nowhere/out.json"], "--json nowhere/out.json: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tool: Tool, scored: Path, arguments: list[str], message: str
) -> None:
    error = tool(2, "--predictions", scored, *arguments)

    assert message in error.splitlines()[-1]


def test_an_unknown_id_is_named_with_its_line(tool: Tool, scored: Path, tmp_path: Path) -> None:
    (tmp_path / "dark.txt").write_text("a\nzebra\n")

    error = tool(2, "--predictions", scored, "--subset", tmp_path / "dark.txt")

    assert error.endswith("dark.txt:2: 'zebra' is no video of the split\n")


@pytest.fixture(scope="module")
def kitchen(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny videos with an action column, "verb noun", and a participant column."""
    folder = tmp_path_factory.mktemp("kitchen") / "data"
    shutil.copytree(tiny_data, folder)
    with (folder / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row |= {"action": f"{row['verb']} {row['noun']}", "participant": f"P0{1 + i % 2}"}
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def train(root: Path, output: Path, *, name: str, **sections: dict[str, Any]) -> Path:
    config = tiny_config(
        root,
        output,
        run={"name": name, "seed": len(name)},
        train={"epochs": 1},
        **sections,
    )
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run).fit()
    run.close()
    return run.path


@pytest.fixture(scope="module")
def runs(kitchen: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one data set, and one of its verbs alone."""
    output = tmp_path_factory.mktemp("runs")
    return [
        train(kitchen, output, name="a"),
        train(kitchen, output, name="bb"),
        train(kitchen, output, name="verbs", model={"heads": ["verb"]}),
    ]


@pytest.mark.slow
def test_several_runs_give_mean_and_deviation(tool: Tool, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.json"

    printed = tool(None, *runs[:2], "--json", out, "--subset", "participant")

    mean, reports = read(out), [read(run / "report_test.json") for run in runs[:2]]
    assert mean["runs"] == ["a", "bb"]
    for head, figures in mean["heads"].items():
        values = [report["heads"][head]["mean_class_accuracy"] for report in reports]
        assert figures["mean_class_accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert figures["mean_class_accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert "mean ± standard deviation over 2 runs, test split" in printed
    for report in reports:
        assert list(report["subsets"]) == ["participant=P01", "participant=P02"]
        assert report["consistency"]["num_actions"] == 6


@pytest.mark.slow
def test_runs_of_other_heads_are_refused_before_they_are_scored(
    tool: Tool, runs: list[Path]
) -> None:
    error = tool(2, runs[0], runs[2])

    assert error == f"error: {runs[2]}: its heads are verb; {runs[0]} has verb, noun, action\n"


@pytest.mark.slow
def test_an_unknown_subset_of_a_run_is_refused_before_it_is_scored(
    tool: Tool, runs: list[Path]
) -> None:
    error = tool(2, runs[0], "--subset", "camera")

    assert error.endswith("--subset camera: neither a file nor a column; columns: participant\n")


@pytest.mark.slow
def test_a_runs_predictions_carry_metadata_and_pairs_of_training(
    tool: Tool, runs: list[Path], tmp_path: Path
) -> None:
    tool(None, runs[0])

    predictions, classes = load_predictions(runs[0] / "predictions_test.npz")

    assert predictions.metadata == {"participant": ("P02", "P01", "P02", "P01", "P02")}
    assert set(predictions.metadata) == {"participant"}
    for name, (verb, noun) in zip(
        classes["action"].names, classes["action"].pairs.tolist(), strict=True
    ):
        assert name == f"{classes['verb'].names[verb]} {classes['noun'].names[noun]}"
    out = tmp_path / "again.json"
    tool(None, "--predictions", runs[0] / "predictions_test.npz", "--json", out)
    again, report = read(out), read(runs[0] / "report_test.json")
    assert (again["heads"], again["consistency"]) == (report["heads"], report["consistency"])


def test_a_file_says_itself_what_it_is(tool: Tool, scored: Path, tmp_path: Path) -> None:
    predictions, classes = load_predictions(scored)
    about = {
        "run": "mine",
        "split": "val",
        "annotation_split": "P04",
        "views": "2x3",
        "split_fed": ["selection"],
        "subsets": {"dark": [predictions.ids[0]]},
        "skipped": [["broken", "broken.mp4: no video"]],
    }
    copy, target, ids = (tmp_path / name for name in ("copy.npz", "again.json", "ids.txt"))
    ids.write_text(f"broken\n{predictions.ids[1]}\n")
    save_predictions(copy, replace(predictions, about=about), classes)
    adjust = ("--logit-adjust", 2, "--subset", ids, "--json", target)

    table = tool(None, "--predictions", copy, *adjust)

    report = read(target)
    assert {key: report[key] for key in ("run", "annotation_split", "views", "split_fed")} == {
        key: about[key] for key in ("run", "annotation_split", "views", "split_fed")
    }
    assert report["skipped"] == [{"id": "broken", "reason": "broken.mp4: no video"}]
    assert report["subsets"].keys() == {"dark", "ids"}
    assert report["logit_adjust"] == 2
    assert report["heads"]["verb"]["mean_class_accuracy_logit_adjusted"] is None
    assert "logit-adjusted with tau 2" in table
