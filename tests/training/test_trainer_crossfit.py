"""Difficulty by crossfit in a real run: without a validation split, and with epochs left out."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from cdb_video.build import build_trainer
from cdb_video.build_data import read_data
from cdb_video.experiments import open_run
from tests.tiny import tiny_config


def test_crossfit_weighs_classes_without_a_validation_split(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tiny_data,
        tmp_path,
        data={"val_split": None, "in_memory": True},
        loss={"name": "cdb", "difficulty": {"source": "crossfit", "warmup_epochs": 2}},
        train={"epochs": 3},
    )
    run, config = open_run(config, config_name="tiny", resume=False)
    trainer = build_trainer(config, data=read_data(config), run=run)
    trainer.fit()
    run.close()

    with (run.path / "difficulty.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = {int(row["epoch"]) for row in rows if row["accuracy"]}
    assert measured == {2, 3}
    for head in ("verb", "noun"):
        weights = trainer.criterion.class_weights(head)
        torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
        # All 12 training clips are counted, each once.
        assert not trainer.epoch_log.difficulties[head].difficulty.isnan().any()
