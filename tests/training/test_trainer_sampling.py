"""Real runs that draw classes or defer their weights: they train, and go on where they stopped."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.config import Config
from cdb_video.distributed import Ranks
from cdb_video.experiments import open_run
from cdb_video.losses import effective_number_weights
from cdb_video.training.trainer import Trainer
from tests.tiny import tiny_config

CDB_SAMPLER = {
    "data": {"sampler": "cdb", "sampler_head": "noun"},
    # Recall of seven clips can be the same for every class: then nothing would differ.
    "loss": {"name": "cross_entropy", "tau": 1, "difficulty": {"statistic": "loss"}},
}
DEFERRED = {"loss": {"name": "balanced_softmax", "defer": 0.5}}
KEPT = (0, 3, 6, 9, 1, 4, 2)
"""Training clips of `tiny_data` whose nouns are 4, 2 and 1."""


@pytest.fixture
def tail(tiny_data: Path, tmp_path: Path) -> Path:
    """The clips of `tiny_data`, but long-tailed in training."""
    header, *rows = (tiny_data / "clips.csv").read_text().splitlines()
    train, rest = rows[:12], rows[12:]
    kept = [f"{tiny_data}/{row}" for row in (*(train[i] for i in KEPT), *rest)]
    (tmp_path / "clips.csv").write_text("\n".join([header, *kept]) + "\n")
    return tmp_path


def config_of(root: Path, output: str = "runs", *, epochs: int = 2, **sections: Any) -> Config:
    return tiny_config(
        root,
        root / output,
        **sections,
        optim={"schedule": "constant"},
        train={"epochs": epochs, "global_batch_size": 3, "micro_batch_size": 3},
    )


def fit(config: Config, *, resume: bool = False) -> Trainer:
    run, config = open_run(config, config_name="tiny", resume=resume)
    with closing(run):
        trainer = build_trainer(config, ranks=Ranks(), run=run, quiet=True)
        trainer.fit()
    return trainer


@pytest.mark.parametrize("sections", [CDB_SAMPLER, DEFERRED], ids=["cdb sampler", "deferred"])
def test_a_resumed_run_ends_with_the_uninterrupted_runs_weights_bit_for_bit(
    tail: Path, sections: dict[str, Any]
) -> None:
    whole = fit(config_of(tail, "whole", **sections))
    fit(config_of(tail, "parts", epochs=1, **sections))

    resumed = fit(config_of(tail, "parts", **sections), resume=True)

    assert resumed.state.position == whole.state.position
    for part in ("model", "criterion"):
        mine, theirs = (getattr(trainer, part).state_dict() for trainer in (resumed, whole))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def test_the_cdb_sampler_draws_by_what_validation_measured(tail: Path) -> None:
    trainer = build_trainer(config_of(tail, epochs=1, **CDB_SAMPLER), quiet=True)

    trainer.fit()

    assert trainer.sampling is not None
    assert trainer.validate is not None
    difficulty = 1 - (-trainer.validate(trainer.model).counts["noun"].class_loss).exp()
    # A resumed run that forgot them would draw evenly.
    assert float(difficulty.max() - difficulty.min()) > 1e-3
    torch.testing.assert_close(
        trainer.sampling.probabilities(1, 2), difficulty / difficulty.sum(), rtol=0, atol=1e-12
    )


def test_drawn_classes_are_the_ones_that_are_trained_on(tail: Path) -> None:
    sections = {"data": {"sampler": "class_balanced", "sampler_head": "noun"}}
    trainer = build_trainer(config_of(tail, **sections), quiet=True)
    assert trainer.sampling is not None
    trainer.sampling.class_counts[0] = 0

    trainer.train_one_epoch()

    # The epoch is as long as ever: two steps of three.
    totals = trainer.train_counts["noun"].total.tolist()
    assert totals[0] == 0
    assert sum(totals) == 6


@pytest.mark.parametrize(("defer", "is_on"), [(0.5, True), (0.75, False)])
def test_deferred_weights_are_on_after_their_share_of_the_epochs(
    tail: Path, defer: float, is_on: bool
) -> None:
    loss = {"name": "cross_entropy", "defer": defer}
    trainer = build_trainer(config_of(tail, loss=loss), quiet=True)

    trainer.fit()

    # The second of two epochs begins at half.
    nouns = trainer.epoch_log.classes["noun"]
    counts = dict(zip(nouns.names, nouns.train_counts.tolist(), strict=True))
    assert counts == {"cup": 4, "pot": 2, "bowl": 1}
    weights = effective_number_weights(nouns.train_counts, beta=0.9999)
    expected = weights if is_on else torch.ones(3)
    assert torch.equal(trainer.criterion.class_weights("noun"), expected)
