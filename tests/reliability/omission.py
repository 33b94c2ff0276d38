"""The test of resuming is proven: without any one part of the state a run ends differently."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from cdb_video.build import build_trainer
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks
from cdb_video.experiments import open_run
from cdb_video.training.state import PARTS
from cdb_video.training.trainer import Trainer
from tests.reliability.jobs import make_data, write_config
from tests.reliability.outcome import Outcome, Row
from tests.states import differences, lines_of, state_at

MIDDLE, LAST_STEP = 6, 8
"""Of two epochs of four steps: the middle of the second, where there is a difficulty to lose."""
FOLLOWS: dict[str, dict[str, Any]] = {
    "data": {"on_error": "skip"},
    "model": {"dropout": 0.5},
    "train": {"ema": 0.9, "precision": "fp16", "keep_last": 100, "log_every": 3},
}
"""Every part but `sampling` matters to it: difficulty from training, a clip that is skipped."""
DRAWS: dict[str, dict[str, Any]] = {
    "data": {"sampler": "cdb", "sampler_head": "noun"},
    "loss": {"name": "recall", "difficulty": {"source": "train", "floor": 0.1}},
    "train": {"keep_last": 100},
}
"""`sampling` matters to it."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Leave out every part once, and once none; more than these there are not."""
    data = make_data(folder / "data", train=12)
    (data / "train_3.mp4").write_bytes(b"no video")
    whole_data = make_data(folder / "whole_data", train=12)
    sizes = {"global_batch_size": 3, "micro_batch_size": 3}
    failures, caught = [], 0
    for name, sections, videos in (("follows", FOLLOWS, data), ("draws", DRAWS, whole_data)):
        train = {**sections["train"], **sizes}
        config = load_config(write_config(videos, folder / name, **{**sections, "train": train}))
        start(config).fit()
        whole = folder / name / "tiny"
        for part in (None, *PARTS):
            if part is not None and (part == "sampling") != (name == "draws"):
                continue
            run = go_on_without(part, config, folder / f"{name}-{part}")
            found = differences(state_at(run, LAST_STEP), state_at(whole, LAST_STEP))
            found += ["metrics.jsonl"] if lines_of(run) != lines_of(whole) else []
            if part is None and found:
                failures.append(f"{name}: with every part {found[:3]} differ")
            if part is not None and not found:
                failures.append(f"{name}: without {part} nothing differs")
            caught += part is not None and bool(found)
    return Outcome(len(PARTS), tuple(failures), {"caught": caught})


def go_on_without(part: str | None, config: Config, folder: Path) -> Path:
    """Copy the run, take up its state of the middle step but for a part, and train to the end."""
    shutil.copytree(Path(config.run.output_dir), folder)
    run = folder / "tiny"
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > MIDDLE:
            shutil.rmtree(path)
    trainer = start(moved(config, folder), resume=True)
    if part is not None:
        other = start(moved(config, folder.with_name(f"{folder.name}-other")))
        state = state_at(run, MIDDLE) | {part: other.state.state_dict()[part]}
        other.log.close()
        trainer.state.load_state_dict(state)
    trainer.fit()
    return run


def moved(config: Config, folder: Path) -> Config:
    """The same run in another folder."""
    run = config.run.model_copy(update={"output_dir": str(folder)})
    return config.model_copy(update={"run": run})


def start(config: Config, *, resume: bool = False) -> Trainer:
    """A trainer in this process."""
    run, named = open_run(config, config_name="tiny", resume=resume, quiet=True)
    with closing(run):
        return build_trainer(named, ranks=Ranks(), run=run, quiet=True)


ROW = Row(
    name="omission",
    promise="leaving out any one part of the state is noticed by the comparison of final states",
    measure=measure,
    quick=len(PARTS),
    full=len(PARTS),
)
