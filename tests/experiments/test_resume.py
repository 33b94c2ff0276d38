"""What a run goes on from: without the weights it began with, with what is left of its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.config import Config
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError
from cdb_video.experiments import open_run
from cdb_video.training.trainer import Trainer
from tests.hub_models import save_hub_model
from tests.tiny import tiny_config


@contextmanager
def opened(config: Config, *, resume: bool) -> Iterator[Trainer]:
    run, named = open_run(config, config_name="tiny", resume=resume, quiet=True)
    try:
        trainer = build_trainer(named, ranks=Ranks(), run=run, quiet=True)
        yield trainer
        trainer.log.close()
    finally:
        run.close()


def trained(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    """A finished run `output/tiny` of two epochs of two steps."""
    config = tiny_config(root, output, **sections)
    with opened(config, resume=False) as trainer:
        trainer.fit()
    return config


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    trained(tiny_data, output)
    return output / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def damage(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_weights_that_a_run_began_with_are_not_looked_for_again(
    finished: Path, tiny_data: Path, tmp_path: Path
) -> None:
    weights = Path(shutil.copytree(finished / "checkpoints" / "step-4", tmp_path / "weights"))
    about = json.loads((weights / "model.json").read_text())
    about["normalization"]["mean"] = [0.1, 0.2, 0.3]
    (weights / "model.json").write_text(json.dumps(about))
    config = trained(tiny_data, tmp_path / "runs", model={"weights": str(weights)})
    shutil.rmtree(weights)

    with opened(config, resume=True) as trainer:
        assert trainer.state.position.step == 4
        # What the weights expect of pixels is known from the checkpoint too.
        assert tuple(trainer.model.normalization.mean) == (0.1, 0.2, 0.3)


def test_a_run_of_a_hub_model_goes_on_without_the_models_folder(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vivit"
    save_hub_model(folder, "vivit")
    model = {"backbone": f"hf:{folder}"}
    config = trained(tiny_data, tmp_path / "runs", model=model, train={"epochs": 1})
    shutil.rmtree(folder)

    with opened(config, resume=True) as trainer:
        assert trainer.state.position.epoch == 1


def test_a_run_whose_every_checkpoint_is_damaged_is_not_started_over(
    run: Path, tiny_data: Path
) -> None:
    for checkpoint in (run / "checkpoints").glob("step-*"):
        damage(checkpoint)
    before = files(run)

    for _ in range(2):  # the second time they are set aside already
        config = tiny_config(tiny_data, run.parent, optim={"lr": 0.5})
        with pytest.raises(
            RunError, match="every checkpoint is damaged, there is nothing to resume"
        ):
            open_run(config, config_name="tiny", resume=True, quiet=True)

    assert files(run) == before


def test_a_refused_resume_changes_no_file_of_the_run(
    run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_data, tmp_path / "other"))
    table = other / "clips.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(row for row in rows if not row.startswith("train_0")) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("torn")
    before = files(run)
    config = tiny_config(other, run.parent)

    with pytest.raises(RunError, match="the training clips"), opened(config, resume=True):
        pass

    assert files(run) == before


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_best_checkpoint_that_is_lost_is_said_and_forgotten(
    run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    best = run / "checkpoints" / "step-2"
    with opened(tiny_config(tiny_data, run.parent), resume=True) as trainer:
        assert trainer.state.best is not None
        trainer.state.best = {**trainer.state.best, "checkpoint": "step-2"}
        trainer.saving.save()
        trainer.saving.finish()
    damage(best) if harm == "damaged" else shutil.rmtree(best)

    with opened(tiny_config(tiny_data, run.parent), resume=True) as trainer:
        assert trainer.state.best is None

    said = capsys.readouterr().err
    assert "it was the best one" in said
    assert ("set aside as damaged-step-2" in said) == (harm == "damaged")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "damaged_checkpoint" for event in events) == 1


def test_what_happens_to_bad_clips_may_be_changed_on_resume(run: Path, tiny_data: Path) -> None:
    config = tiny_config(
        tiny_data, run.parent, data={"on_error": "skip", "max_skipped": 3}, train={"epochs": 3}
    )

    with opened(config, resume=True) as trainer:
        assert trainer.state.position.epoch == 2
        assert torch.isfinite(next(trainer.model.parameters())).all()
