"""tools/posthoc.py and `tools/evaluate.py --features`, as a user types them, in this process."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_model, build_trainer
from cdb_video.build_data import read_role
from cdb_video.config_file import dump_config, load_config
from cdb_video.distributed import Ranks
from cdb_video.evaluation import posthoc
from cdb_video.evaluation.features import load_features
from cdb_video.evaluation.predictions import load_predictions
from cdb_video.experiments import LoadedRun, find_checkpoint, load_run, open_run, score
from cdb_video.training.checkpoint import save_checkpoint
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
Tool = Callable[..., str]


# Many short runs of the tool, each of which opens a run.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another are slow where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned little."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("runs"))
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run).fit()
    run.close()
    return run.path


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """`tool(status, name, *arguments) -> str`: what it printed before it exited so."""

    def run(status: int | None, name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *(str(argument) for argument in arguments)])
        monkeypatch.setattr(posthoc, "NUM_STEPS", 30)
        # Else the tool would set this process's number of threads.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        captured = capsys.readouterr()
        assert exit_info.value.code == status, captured.err
        return captured.err if status else captured.out

    return run


def read_report(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"report_{name}.json").read_text())
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested JSON, by their path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: leaf for key, part in items for k, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value}


@pytest.fixture
def undecodable(tiny_data: Path, tmp_path: Path) -> str:
    """The override for the same annotations, with videos that nobody can decode."""
    folder = tmp_path / "undecodable"
    shutil.copytree(tiny_data, folder)
    for path in folder.glob("*.mp4"):
        path.write_bytes(b"no video")
    return f"data.root={folder}"


def test_logit_adjustment_is_the_figure_that_every_report_has(trained: Path, tool: Tool) -> None:
    printed = tool(None, "posthoc.py", trained, "logit-adjust")

    run = load_run(trained)
    split = read_role(run.config, "test", vocabularies=run.vocabularies)
    before = score(run, split).predictions
    tool(None, "evaluate.py", trained)
    report = read_report(trained, "test_logit-adjust")
    for head, figures in report["heads"].items():
        expected = read_report(trained, "test")["heads"][head]["mean_class_accuracy_logit_adjusted"]
        assert figures["mean_class_accuracy"] == expected
    assert report["posthoc"] == {"method": "logit-adjust", "tau": 1.0}
    after, classes = load_predictions(trained / "predictions_test_logit-adjust.npz")
    assert after.ids == before.ids
    prior = classes["noun"].train_counts / classes["noun"].train_counts.sum()
    by_hand = before.heads["noun"].scores / prior
    by_hand = by_hand / by_hand.sum(1, keepdim=True)
    torch.testing.assert_close(after.heads["noun"].scores, by_hand, rtol=0, atol=1e-6)
    assert "worst fifth" in printed
    assert not list(trained.glob("posthoc-logit-adjust*"))


@pytest.mark.parametrize("method", ["crt", "lws", "tau-norm"])
def test_both_reports_are_those_of_evaluation(
    trained: Path, tiny_data: Path, tool: Tool, method: str
) -> None:
    printed = tool(None, "posthoc.py", trained, method, "views.num_clips=2")
    folder = trained / f"posthoc-{method}"
    assert f"corrected run: {folder}" in printed
    before, after = read_report(trained, "test"), read_report(trained, f"test_{method}")

    tool(None, "evaluate.py", trained, "views.num_clips=2")
    tool(None, "evaluate.py", folder, "views.num_clips=2")

    assert flat(read_report(trained, "test")) == pytest.approx(flat(before), abs=1e-5)
    assert after.pop("posthoc")["method"] == method
    assert flat(read_report(folder, "test")) == pytest.approx(flat(after), abs=1e-5)
    assert (after["run"], after["views"]) == (f"tiny-{method}", "2x1")
    run, corrected = load_run(trained), load_run(folder)
    assert_only_heads_differ(run, corrected)
    assert corrected.config.views.num_clips == 1  # given for one call, and not the run's
    assert set(corrected.predict(tiny_data / "test_0.mp4")) == {"verb", "noun"}


def assert_only_heads_differ(before: LoadedRun, after: LoadedRun) -> None:
    others = after.model.state_dict()
    changed = {k for k, value in before.model.state_dict().items() if not value.equal(others[k])}
    # Of tau-norm the biases at least: tau may be 0.
    assert {key.split(".")[0] for key in changed} == {"heads"}


def test_tau_comes_from_the_validation_split_or_from_the_user(trained: Path, tool: Tool) -> None:
    printed = tool(None, "posthoc.py", trained, "tau-norm", "--split", "val")
    chosen = read_report(trained, "val_tau-norm")
    tool(None, "posthoc.py", trained, "tau-norm", "--tau", "0.5", "--split", "val")
    given = read_report(trained, "val_tau-norm")

    assert chosen["posthoc"]["chosen_on"] == "val"
    assert "tau" in chosen["split_fed"]
    taus = chosen["posthoc"]["tau"]
    assert set(taus) == {"verb", "noun"}
    assert f"tau: {taus}" in printed
    assert given["posthoc"] == {"method": "tau-norm", "tau": {"verb": 0.5, "noun": 0.5}}
    assert "tau" not in given["split_fed"]
    for head, figures in chosen["heads"].items():
        # One view a video: what tau was chosen by is what is reported.
        assert figures["mean_class_accuracy"] >= given["heads"][head]["mean_class_accuracy"]


def test_tau_is_never_chosen_without_a_validation_split(trained: Path, tool: Tool) -> None:
    without = ["data.val_split=null", "loss.difficulty.source=train"]

    error = tool(2, "posthoc.py", trained, "tau-norm", *without)

    assert "data.val_split is null: tau is chosen on the validation split" in error
    assert error.count("\n") == 1
    tool(None, "posthoc.py", trained, "tau-norm", "--tau", "1", *without)


def test_a_head_without_labels_to_learn_from_is_named(
    trained: Path, tiny_data: Path, tmp_path: Path, tool: Tool
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    table = (folder / "clips.csv").read_text()
    (folder / "clips.csv").write_text(re.sub(r",\w+,val$", ",,val", table, flags=re.MULTILINE))
    data = f"data.root={folder}"
    tool(None, "posthoc.py", trained, "tau-norm")  # keeps features, with the labels of now

    error = tool(2, "posthoc.py", trained, "tau-norm", data)

    assert "data.val_split: none of its 7 clips is labelled for head 'noun'" in error
    assert error.count("\n") == 1
    tool(None, "posthoc.py", trained, "tau-norm", "--tau", "1", data)


def test_what_was_decoded_once_is_not_decoded_again(
    trained: Path, tool: Tool, undecodable: str
) -> None:
    tool(None, "posthoc.py", trained, "crt")

    tool(None, "posthoc.py", trained, "lws", undecodable)
    tool(None, "posthoc.py", trained, "logit-adjust", undecodable)

    for changed in ("views.num_clips=3", "clip.stride=2"):
        assert "test_0.mp4" in tool(2, "posthoc.py", trained, "logit-adjust", undecodable, changed)


def test_logit_adjustment_needs_nothing_but_predictions_of_these_weights_and_views(
    trained: Path, tool: Tool, undecodable: str
) -> None:
    best = find_checkpoint(trained)
    [other] = [path for path in (trained / "checkpoints").glob("step-*") if path != best]
    tool(None, "posthoc.py", trained, "logit-adjust")
    for path in trained.glob("posthoc_features_test*"):
        path.unlink()

    tool(None, "posthoc.py", trained, "logit-adjust", "--tau", "0.5", undecodable)

    assert read_report(trained, "test_logit-adjust")["posthoc"]["tau"] == 0.5
    assert "test_0.mp4" in tool(2, "posthoc.py", other, "logit-adjust", undecodable)
    assert "test_0.mp4" in tool(
        2, "posthoc.py", trained, "logit-adjust", undecodable, "views.num_crops=3"
    )


def test_features_are_kept_for_the_weights_that_they_are_of(trained: Path, tool: Tool) -> None:
    path = trained / "posthoc_features_train_1x1.npz"
    best = find_checkpoint(trained)
    [other] = [path for path in (trained / "checkpoints").glob("step-*") if path != best]

    tool(None, "posthoc.py", best, "lws")
    of_best = load_features(path)[0].features
    tool(None, "posthoc.py", other, "lws")

    assert of_best.shape == (12, 1, 128)
    assert not torch.equal(load_features(path)[0].features, of_best)


def test_a_cosine_head_is_refused_in_one_line(trained: Path, tmp_path: Path, tool: Tool) -> None:
    source = find_checkpoint(trained)
    config = load_config(source / "config.yaml", ["model.head_type=cosine"])
    model = build_model(
        config.model, num_classes={"verb": 2, "noun": 3}, num_frames=4, crop_size=16
    )
    texts = {
        "config.yaml": dump_config(config),
        "model.json": (source / "model.json").read_text(),
    }
    save_checkpoint(tmp_path / "checkpoints", 1, model=model.state_dict(), training={}, texts=texts)

    for method in ("tau-norm", "crt", "lws"):
        error = tool(2, "posthoc.py", tmp_path, method)
        assert error.startswith("error: model.head_type: head 'verb' is a CosineHead")
        assert error.count("\n") == 1
    tool(None, "posthoc.py", tmp_path, "logit-adjust")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logit-adjust", "--tau", "-1"], "must be a number of at least 0, got -1"),
        (["tau-norm", "--tau", "nan"], "must be a number of at least 0, got nan"),
        (["crt", "--tau", "1"], "--tau: crt has none"),
        (["ncm"], "invalid choice: 'ncm'"),
        (["crt", "clip.strides=2"], "clip.strides: no such key"),
        (["crt", "data.root=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_told(trained: Path, tool: Tool, arguments: list[str], message: str) -> None:
    assert message in tool(2, "posthoc.py", trained, *arguments)


@pytest.mark.parametrize("tau", ["-1", "nan"])
def test_evaluation_adjusts_by_the_same_strengths(trained: Path, tool: Tool, tau: str) -> None:
    tool(None, "evaluate.py", trained)
    saved = trained / "predictions_test.npz"

    error = tool(2, "evaluate.py", "--predictions", saved, "--logit-adjust", tau)

    assert f"error: tau must be a number of at least 0, got {tau}" in error


def test_evaluation_writes_features_beside_its_scores(
    trained: Path, tmp_path: Path, tool: Tool
) -> None:
    out = tmp_path / "train.npz"

    tool(None, "evaluate.py", trained, "--split", "train", "--features", out)

    features, classes = load_features(out)
    assert features.features.shape == (12, 1, 128)  # one view
    assert features.features.dtype == torch.float16
    scored, _ = load_predictions(trained / "predictions_train.npz")
    assert features.ids == scored.ids
    run = load_run(trained)
    assert classes["noun"].names == run.classes["noun"].names
    for head, part in scored.heads.items():
        with torch.no_grad():
            scores = run.model.heads[head](features.features[:, 0].float()).softmax(1)
        torch.testing.assert_close(scores, part.scores, rtol=0, atol=2e-3)  # fp16
        assert torch.equal(features.labels[head], part.labels)


def test_one_features_file_is_for_one_run(trained: Path, tmp_path: Path, tool: Tool) -> None:
    out = tmp_path / "out.npz"

    assert "one file is for one RUN" in tool(2, "evaluate.py", trained, trained, "--features", out)
    assert "no such folder" in tool(
        2, "evaluate.py", trained, "--features", tmp_path / "missing" / "out.npz"
    )


def test_what_was_skipped_and_asked_for_stays_in_the_reports(
    trained: Path, tiny_data: Path, tmp_path: Path, tool: Tool
) -> None:
    folder, run, ids = tmp_path / "data", tmp_path / "run", tmp_path / "some.txt"
    shutil.copytree(tiny_data, folder)
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("posthoc*"))
    (folder / "test_0.mp4").write_bytes(b"no video")
    options = (f"data.root={folder}", "data.on_error=skip", "data.max_skipped=1")
    loaded = load_run(run)
    records = read_role(loaded.config, "test", vocabularies=loaded.vocabularies).records
    ids.write_text("\n".join(record.id for record in records[1:3]))
    tool(None, "evaluate.py", run, "--subset", ids, *options)
    before = read_report(run, "test")

    tool(None, "posthoc.py", run, "logit-adjust", *options)

    assert not list(run.glob("posthoc_features_test*"))  # its predictions were taken
    assert len(before["skipped"]) == 1
    assert before["subsets"].keys() == {"some"}
    assert read_report(run, "test") == before
    after = read_report(run, "test_logit-adjust")
    assert after["skipped"] == before["skipped"]
    assert after["subsets"].keys() == {"some"}
    assert after["logit_adjust"] == 1
    tool(None, "posthoc.py", run, "tau-norm", "--tau", "1", *options)
    (folder / "test_1.mp4").write_bytes(b"no video")
    tool(None, "posthoc.py", run, "tau-norm", "--tau", "0", *options)  # by the features kept
    assert read_report(run, "test_tau-norm")["skipped"] == before["skipped"]
