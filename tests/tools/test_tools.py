"""The command lines, as a user types them. What only fails runs in this process, to be quick."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdb_video.config_file import load_config
from tests.tiny import tiny_values

ROOT = Path(__file__).parent.parent.parent


def run_tool(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def write_config(root: Path, output: Path, **sections: dict[str, object]) -> Path:
    path = output / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(root, output / "runs", **sections)))
    return path


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that `python tools/train.py` made, with its output in `console.txt`."""
    output = tmp_path_factory.mktemp("trained")
    done = run_tool("tools/train.py", write_config(tiny_data, output))
    assert done.returncode == 0, done.stderr
    folder = output / "runs" / "tiny"
    (folder / "console.txt").write_text(done.stdout)
    return folder


def test_training_ends_with_the_table_and_the_run_folder(trained: Path) -> None:
    console = (trained / "console.txt").read_text()

    assert "mean class accuracy" in console
    assert "top-1" in console
    assert console.rstrip().endswith(f"run folder: {trained}")


def test_a_run_holds_what_the_contract_says(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {"console.txt", ".lock"}

    assert names == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "difficulty.csv",
        "checkpoints",
        "report_val.json",
        "report_val.html",
        "report_test.json",
        "report_test.html",
        "predictions_val.npz",
        "predictions_test.npz",
    }
    report = json.loads((trained / "report_test.json").read_text())
    assert report["num_videos"] == 5
    assert report["split_fed"] == []
    validation = json.loads((trained / "report_val.json").read_text())
    assert validation["split_fed"] == ["selection", "difficulty"]
    assert load_config(trained / "config.yaml").run.name == "tiny"


def test_evaluation_of_the_run_gives_the_report_of_training_again(trained: Path) -> None:
    before = json.loads((trained / "report_test.json").read_text())

    done = run_tool("tools/evaluate.py", trained)

    assert done.returncode == 0, done.stderr
    assert json.loads((trained / "report_test.json").read_text()) == before


def test_predict_gives_evaluations_scores_with_the_checkpoints_class_names(
    trained: Path, tiny_data: Path, tmp_path: Path
) -> None:
    import numpy as np

    out, table = tmp_path / "out.json", tmp_path / "out.csv"
    # The checkpoint alone, away from its run: it carries all that is needed.
    [checkpoint] = {json.loads((trained / "checkpoints/best.json").read_text())["checkpoint"]}
    copy = tmp_path / "checkpoint"
    shutil.copytree(trained / "checkpoints" / checkpoint, copy)

    video = tiny_data / "test_3.mp4"
    done = run_tool("tools/predict.py", copy, video, "--top", 9, "--json", out, "--csv", table)

    assert done.returncode == 0, done.stderr
    [predicted] = json.loads(out.read_text())
    with np.load(trained / "predictions_test.npz") as file:
        row = file["ids"].tolist().index("test_3")
        for head, size in (("verb", 2), ("noun", 3)):
            names = file[f"class_names_{head}"].tolist()
            expected = dict(zip(names, file[f"scores_{head}"][row].tolist(), strict=True))
            ranking = {entry["class"]: entry["score"] for entry in predicted[head]}
            assert len(ranking) == size  # never more than there are classes
            assert ranking == pytest.approx(expected, abs=1e-6)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["head"], row["rank"]) for row in rows[:2]] == [("verb", "1"), ("verb", "2")]


def test_predictions_are_scored_again_without_a_model(trained: Path) -> None:
    done = run_tool(
        "tools/evaluate.py", "--predictions", trained / "predictions_test.npz", "--logit-adjust", 1
    )

    assert done.returncode == 0, done.stderr
    assert "mean class accuracy" in done.stdout


def test_printed_configuration_loads_again_to_the_same_object(tmp_path: Path) -> None:
    done = run_tool("tools/train.py", "optim.lr=1e-4", "--print-config")

    assert done.returncode == 0, done.stderr
    printed = tmp_path / "printed.yaml"
    printed.write_text(done.stdout)
    assert load_config(printed) == load_config(ROOT / "configs/demo.yaml", ["optim.lr=1e-4"])


def fails(
    tool: str,
    *arguments: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The one line that a tool prints before it exits with status 2."""
    monkeypatch.setattr(sys, "argv", [tool, *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr: no such key; did you mean 'lr'?"),
        ("train.precision=fp8", "train.precision: must be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("model.backbone=slowfast_r5", "did you mean 'slowfast_r50'?"),
        ("model.heads=[verbs]", "verbs"),
        ("data.root=nowhere", "nowhere"),
        ("data.train_split=training", "training"),
        ("data.val_split=test", "data.val_split=test is also data.test_split"),
        ("train.sync_batch_norm=true", "train.sync_batch_norm=true works on GPUs only"),
        ("augment.no_flip_classes={verb: [opne]}", "did you mean 'open'?"),
        ("loss.head_weights={verbs: 2}", "loss.head_weights: 'verbs' is no head"),
        ("train.select_by=action", "train.select_by: 'action' is no head"),
        ("model.weights=missing.pth", "missing.pth"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_leaves_no_run(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    config = write_config(tiny_data, tmp_path, data={"test_split": "test"})

    error = fails("train.py", config, override, monkeypatch=monkeypatch, capsys=capsys)

    assert message in error
    assert not (tmp_path / "runs").exists()


def test_a_corrupt_clip_stops_training_with_its_name(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "train_5.mp4").write_bytes(b"not a video")
    config = write_config(data, tmp_path, data={"num_workers": 2})

    error = fails("train.py", config, monkeypatch=monkeypatch, capsys=capsys)

    assert str(data / "train_5.mp4") in error


def test_an_existing_run_is_not_overwritten(
    trained: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = trained.parent.parent / "tiny.yaml"

    error = fails("train.py", config, monkeypatch=monkeypatch, capsys=capsys)

    assert "run.name=tiny" in error
    assert "--resume" in error


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("evaluate.py", ["nowhere"], "nowhere: neither a run's folder nor a checkpoint"),
        ("predict.py", ["nowhere", "video.mp4"], "nowhere: neither a run's folder"),
    ],
)
def test_a_run_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    arguments: list[str],
    message: str,
) -> None:
    assert message in fails(tool, *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_views_are_checked(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails("evaluate.py", trained, "--views", "ten", monkeypatch=monkeypatch, capsys=capsys)

    assert "--views ten: must be CLIPSxCROPS" in error


def test_a_damaged_checkpoint_is_not_loaded(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for file in copy.glob("checkpoints/step-*/model.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    error = fails("evaluate.py", copy, monkeypatch=monkeypatch, capsys=capsys)

    assert "model.safetensors: damaged" in error
