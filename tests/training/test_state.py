"""A run that is taken up in the middle of an epoch ends as one that was never interrupted."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError
from cdb_video.experiments import open_run
from cdb_video.training.state import PARTS, check_state
from cdb_video.training.trainer import Trainer
from tests.states import differences, lines_of, state_at
from tests.tiny import tiny_config

STEPS = 6
"""Of two epochs of three: twelve clips, four a step."""
FOLLOWS_TRAINING: dict[str, dict[str, Any]] = {
    "data": {"on_error": "skip"},
    "loss": {"difficulty": {"source": "train"}},
    "model": {"dropout": 0.5},
    "train": {"ema": 0.9, "precision": "fp16"},
}
"""Every part of the state but `sampling` matters to it."""
DRAWS_CLASSES: dict[str, dict[str, Any]] = {
    "data": {"sampler": "cdb", "sampler_head": "noun"},
    "loss": {"name": "recall"},
}
"""`sampling` matters to it, and a loss that counts while it trains."""


@pytest.fixture(scope="module")
def damaged(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data with a training clip that does not decode."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(tiny_data, folder)
    (folder / "train_3.mp4").write_bytes(b"no video")
    return folder


def config_of(data: Path, output: Path, sections: dict[str, dict[str, Any]]) -> Config:
    train = {
        "epochs": 2,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "save_every_steps": 1,
        "keep_last": 100,
        "log_every": 4,
        **sections.get("train", {}),
    }
    return tiny_config(data, output, **{**sections, "train": train})


def start(config: Config, *, resume: bool = False) -> Trainer:
    run, named = open_run(config, config_name="tiny", resume=resume, quiet=True)
    with closing(run):
        return build_trainer(named, ranks=Ranks(), run=run, quiet=True)


@pytest.fixture(scope="module")
def wholes(
    damaged: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Config, Path]]:
    """What was never interrupted: a run of each kind, with a checkpoint a step."""
    kinds = {"follows": (damaged, FOLLOWS_TRAINING), "draws": (tiny_data, DRAWS_CLASSES)}
    found = {}
    for kind, (data, sections) in kinds.items():
        runs = tmp_path_factory.mktemp(kind)
        config = config_of(data, runs, sections)
        start(config).fit()
        found[kind] = config, runs
    return found


def taken_up(whole: tuple[Config, Path], step: int, tmp_path: Path) -> Trainer:
    """A trainer that goes on from a step, in a copy of the run."""
    config, runs = whole
    shutil.copytree(runs, tmp_path / "runs")
    for path in (tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    section = config.run.model_copy(update={"output_dir": str(tmp_path / "runs")})
    return start(config.model_copy(update={"run": section}), resume=True)


@pytest.mark.parametrize("kind", ["follows", "draws"])
@pytest.mark.parametrize("step", [2, 5])
def test_a_run_taken_up_at_any_step_ends_with_the_same_state_bit_for_bit(
    wholes: dict[str, tuple[Config, Path]], kind: str, step: int, tmp_path: Path
) -> None:
    trainer = taken_up(wholes[kind], step, tmp_path)
    torch.manual_seed(step)  # what random numbers were drawn before is nothing to it

    trainer.fit()

    mine, theirs = tmp_path / "runs" / "tiny", wholes[kind][1] / "tiny"
    assert differences(state_at(mine, STEPS), state_at(theirs, STEPS)) == []
    assert lines_of(mine) == lines_of(theirs)
    tables = [(run / "difficulty.csv").read_text() for run in (mine, theirs)]
    assert tables[0] == tables[1]


def test_a_run_that_ended_before_its_evaluation_goes_on_with_it(
    wholes: dict[str, tuple[Config, Path]], tmp_path: Path
) -> None:
    trainer = taken_up(wholes["follows"], 2, tmp_path)
    trainer.train_one_epoch()
    trainer.evaluate()
    trainer.saving.save()  # as where a signal comes during an evaluation
    trainer.saving.finish()
    trainer.log.close()

    config = load_config(tmp_path / "runs" / "tiny" / "config.yaml")
    again = taken_up((config, tmp_path / "runs"), 3, tmp_path / "again")
    assert (again.state.position.epoch, again.state.position.steps) == (0, 3)
    again.fit()

    final = state_at(tmp_path / "again" / "runs" / "tiny", STEPS)
    assert differences(final, state_at(wholes["follows"][1] / "tiny", STEPS)) == []


def test_a_part_that_is_missing_or_unknown_is_refused_by_name() -> None:
    state: dict[str, object] = {**dict.fromkeys(PARTS, 0), "progress": {"clips": "these"}}

    check_state(state, clips="these")
    for part in PARTS:
        with pytest.raises(RunError, match=rf"lacks {part}$"):
            check_state({name: state[name] for name in PARTS if name != part}, clips="these")
    with pytest.raises(RunError, match=r"unknown: momentum$"):
        check_state({**state, "momentum": 0}, clips="these")
    with pytest.raises(RunError, match=r"the training clips, or their labels, are not those"):
        check_state(state, clips="others")


def test_other_training_clips_are_refused(
    wholes: dict[str, tuple[Config, Path]], tmp_path: Path
) -> None:
    trainer = taken_up(wholes["draws"], 1, tmp_path)
    state = trainer.state.state_dict()
    state["progress"]["clips"] = "others"

    with closing(trainer.log), pytest.raises(RunError, match=r"not those that the run was started"):
        trainer.state.load_state_dict(state)
