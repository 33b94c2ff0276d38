import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdb_video.build import build_trainer
from cdb_video.build_data import read_data, read_role
from cdb_video.clips.decoders import open_video
from cdb_video.datasets.annotations import Vocabulary
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError, RunError
from cdb_video.experiments import find_checkpoint, load_run, open_run, score
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def run_folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("runs"), train={"epochs": 3})
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run).fit()
    run.close()
    return run.path


def test_a_finished_run_is_one_line(run_folder: Path, tiny_data: Path) -> None:
    run = load_run(run_folder)

    assert run.class_names == {"verb": ("close", "open"), "noun": ("bowl", "cup", "pot")}
    with open_video(tiny_data / "test_0.mp4") as video:
        # Eight frames, four in the clip: the middle one starts at frame 2.
        frames = video.frames(torch.arange(2, 6))
    with torch.inference_mode():
        logits = run.model(run.transform(frames))
    scores = {head: values.softmax(1)[0] for head, values in logits.items()}
    predicted = run.predict(tiny_data / "test_0.mp4")
    for head, ranking in predicted.items():
        expected = dict(zip(run.class_names[head], scores[head].tolist(), strict=True))
        assert dict(ranking) == pytest.approx(expected, abs=1e-6)


def test_a_folder_of_frames_is_predicted_as_its_video(
    run_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = load_run(run_folder)
    with open_video(tiny_data / "test_0.mp4") as video:
        for i, frame in enumerate(video.frames(torch.arange(video.num_frames))):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:06d}.png")

    assert run.predict(tmp_path, fps=24) == run.predict(tiny_data / "test_0.mp4")


def test_a_run_means_its_best_checkpoint(run_folder: Path) -> None:
    best = json.loads((run_folder / "checkpoints" / "best.json").read_text())

    assert find_checkpoint(run_folder).name == best["checkpoint"]
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    evaluations = [e for e in map(json.loads, lines) if e["event"] == "eval"]
    top = max(evaluations, key=lambda e: (e["selection"], -e["loss"], -e["epoch"]))
    assert (best["epoch"], best["mean_class_accuracy"]) == (top["epoch"], top["selection"])


@pytest.mark.parametrize(
    "damage", ["no file", "no JSON", "a name that is not there", "a damaged one"]
)
def test_without_the_best_checkpoint_a_run_is_its_newest_and_says_so(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    best = run / "checkpoints" / "best.json"
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    if damage == "no file":
        best.unlink()
    elif damage == "no JSON":
        best.write_text("{")
    elif damage == "a name that is not there":
        best.write_text('{"checkpoint": "step-999"}')
    else:
        (newest.parent / "step-1").mkdir()  # what was the best
        (newest.parent / "step-1" / "manifest.json").write_text('{"model.safetensors": "0"}')
        best.write_text('{"checkpoint": "step-1"}')

    assert load_run(run).checkpoint == newest
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_folder_is_a_run_as_well(run_folder: Path) -> None:
    checkpoint = sorted((run_folder / "checkpoints").glob("step-*"))[0]

    assert load_run(checkpoint).checkpoint == checkpoint


def test_resuming_on_data_with_other_classes_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_data, tmp_path, train={"epochs": 1})
    data = read_data(config)
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, data=data, ranks=Ranks(), run=run).fit()
    run.close()
    other = {**data.train.vocabularies, "verb": Vocabulary(["open", "close"])}  # another order

    with pytest.raises(RunError, match=r"verb classes are open, close, .*started with close, open"):
        open_run(config, config_name="tiny", resume=True, vocabularies=other)


def test_evaluation_needs_the_videos_of_its_split_alone(
    run_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips.csv").write_text((tiny_data / "clips.csv").read_text())
    for video in tiny_data.glob("test_*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    run = load_run(run_folder, overrides=[f"data.root={tmp_path}"])

    split = read_role(run.config, "test", vocabularies=run.vocabularies)

    assert len(score(run, split).predictions) == 5


@pytest.mark.parametrize("whole_run", [False, True])
def test_weights_of_a_run_start_another_with_their_normalization(
    run_folder: Path, tiny_data: Path, tmp_path: Path, whole_run: bool
) -> None:
    found = find_checkpoint(run_folder)
    copy = tmp_path / "run" / "checkpoints" / found.name
    shutil.copytree(found, copy)
    about = json.loads((copy / "model.json").read_text())
    about["normalization"] = {"mean": [1, 2, 3], "std": [4, 5, 6], "value_range": 255.0}
    (copy / "model.json").write_text(json.dumps(about))

    weights = str(tmp_path / "run" if whole_run else copy)

    trainer = build_trainer(tiny_config(tiny_data, tmp_path, model={"weights": weights}))

    assert trainer.state.position.epoch == 0
    assert trainer.model.normalization == ((1, 2, 3), (4, 5, 6), 255.0)
    loaded = load_run(run_folder).model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in trainer.model.state_dict().items())


def test_a_run_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()

    with pytest.raises(RunError, match="no checkpoint in it yet"):
        load_run(tmp_path)


def test_overrides_of_a_run_are_checked(run_folder: Path) -> None:
    assert load_run(run_folder, overrides=["views.num_clips=3"]).config.views.num_clips == 3
    with pytest.raises(ConfigError, match="no such key"):
        load_run(run_folder, overrides=["views.clips=3"])


def test_a_damaged_newest_checkpoint_is_passed_over_on_resume(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tiny_data, tmp_path)
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run).fit()
    run.close()
    (run.path / "checkpoints" / "step-4" / "model.safetensors").write_bytes(b"")

    again, named = open_run(config, config_name="tiny", resume=True)
    trainer = build_trainer(named, ranks=Ranks(), run=again)
    again.close()
    trainer.log.close()

    assert trainer.state.position.step == 2
    said = capsys.readouterr()
    assert "set aside as damaged-step-4" in said.err
    assert "resuming from step-2" in said.out
    events = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    [damaged] = [event for event in events if event["event"] == "damaged_checkpoint"]
    assert damaged["step"] == 2
    assert "damaged-step-4" in damaged["reason"]
