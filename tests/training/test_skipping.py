"""Clips that do not decode are left out of loss, counts and figures, recorded, and bounded."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cdb_video.build import build_trainer
from cdb_video.clips.batch import Appearance, Batch, Skipped
from cdb_video.clips.dataset import ClipSampler, TrainingClips
from cdb_video.clips.loader import TrainingLoader, TrainingOrder
from cdb_video.clips.transforms import Augmentation
from cdb_video.config_file import dump_config
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError, DecodeError
from cdb_video.experiments import open_run
from cdb_video.losses import CrossEntropyLoss, MultiHeadLoss
from cdb_video.models.base import Normalization
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.optim import Schedule, build_optimizer
from cdb_video.training.options import TrainerOptions
from cdb_video.training.trainer import Trainer
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]


class NormedColour(nn.Module):
    """A backbone with batch norm: its features are the normed mean colour."""

    num_features = 3
    normalization = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips):
        return self.norm(clips).mean((2, 3, 4))


def make_trainer():
    torch.manual_seed(0)
    model = Recognizer(NormedColour(), num_classes={"verb": 3}, dropout=0.0)
    records = [
        VideoRecord(id=f"clip{i}", path=Path(f"{i}.mp4"), video_id="", recording="", labels={})
        for i in range(6)
    ]
    clips = TrainingClips(
        records,
        sampler=ClipSampler(num_frames=2, stride=1),
        augmentation=Augmentation(crop_size=4, short_side=4),
        seed=0,
    )
    optimizer = build_optimizer(model, name="sgd", lr=0.5, momentum=0.0, weight_decay=0.0)
    schedule = Schedule(epochs=1, shape="constant")
    schedule.apply(optimizer, 0.0)
    order = TrainingOrder(6, global_batch_size=6, seed=0)
    trainer = Trainer(
        model=model,
        criterion=MultiHeadLoss({"verb": CrossEntropyLoss(3, reduction="sum", ignore_index=-1)}),
        optimizer=optimizer,
        schedule=schedule,
        loader=TrainingLoader(clips, order, num_workers=0, pin_memory=False),
        validate=None,
        classes={},
        options=TrainerOptions(epochs=1, micro_batch_size=6),
    )
    trainer.model.train()
    return trainer


def batch_of(size, *, skipped):
    generator = torch.Generator().manual_seed(1)
    return Batch(
        clips=torch.randint(256, (size, 1, 3, 2, 4, 4), generator=generator, dtype=torch.uint8),
        labels={"verb": torch.arange(size) % 3} if size else {},
        indices=torch.arange(size),
        appearance=Appearance(flip=torch.zeros(size, dtype=torch.bool), jitter=torch.ones(size, 3)),
        skipped=tuple(Skipped(i, f"{i}.mp4: garbage") for i in skipped),
    )


def test_a_skipped_clip_adds_nothing_and_the_divisor_stays_the_global_batch():
    trainer, reference = make_trainer(), make_trainer()
    batch = batch_of(4, skipped=[4, 5])
    logits = reference.model(batch.clips.flatten(0, 1).float() / 255)["verb"]
    (F.cross_entropy(logits, batch.labels["verb"], reduction="sum") / 6).backward()

    trainer.train_step(batch)

    for mine, theirs in zip(trainer.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, atol=1e-6, rtol=1e-5)
    # The mean loss that is logged is over the four that were there.
    assert trainer.loss_sums[-1] == 4
    assert trainer.train_counts["verb"].total.tolist() == [2, 1, 1]
    figures = trainer.step_log.write(lr_factor=1.0, clips_per_s=1.0)
    expected = F.cross_entropy(logits.detach(), batch.labels["verb"])
    assert figures["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert trainer.skipped.reasons == {"clip4": "4.mp4: garbage", "clip5": "5.mp4: garbage"}


def test_a_step_whose_every_clip_is_skipped_moves_nothing():
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    trainer.train_step(batch_of(0, skipped=range(6)))

    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.model.training
    assert trainer.train_counts["verb"].total.tolist() == [0, 0, 0]
    assert trainer.step_log.write(lr_factor=1.0, clips_per_s=1.0) == {}
    assert len(trainer.skipped.reasons) == 6


@pytest.fixture
def damaged(tiny_data, tmp_path):
    """The tiny data with two training and one validation video cut in half."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_data, folder)
    for name in ("train_2.mp4", "train_7.mp4", "val_3.mp4"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    return folder


def fit(config, *, resume=False):
    run, named = open_run(config, config_name="tiny", resume=resume)
    with closing(run):
        trainer = build_trainer(named, ranks=Ranks(), run=run)
        trainer.fit()
    return trainer


def events_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_run_skips_records_counts_and_resumes(damaged, tmp_path):
    def config(epochs):
        return tiny_config(
            damaged,
            tmp_path,
            data={"on_error": "skip", "max_skipped": 3},
            train={"epochs": epochs, "log_every": 1},
        )

    fit(config(1))
    trainer = fit(config(2), resume=True)

    events = events_of(tmp_path / "tiny")
    skips = [event for event in events if event["event"] == "skip"]
    # Each once in the whole run, the training clips in the first epoch, in steps 1 and 2.
    assert sorted(event["id"] for event in skips) == ["train_2", "train_7", "val_3"]
    for event in skips:
        assert event["path"] == str(damaged / f"{event['id']}.mp4")
        assert event["reason"].startswith(f"{event['path']}: ")
        assert event["epoch"] <= 1
        assert event["step"] in (1, 2)
    assert trainer.skipped.reasons == {event["id"]: event["reason"] for event in skips}
    # 12 clips, all but two; 7 videos, all but one.
    assert int(trainer.train_counts["verb"].total.sum()) == 10
    report = json.loads((tmp_path / "tiny" / "report_val.json").read_text())
    assert report["num_videos"] == 6
    assert sum(report["heads"]["verb"]["count"].values()) == 6
    [reason] = [event["reason"] for event in skips if event["id"] == "val_3"]
    assert report["skipped"] == [{"id": "val_3", "reason": reason}]


@pytest.mark.slow
def test_training_and_validation_together_may_skip_max_skipped(damaged, tmp_path):
    config = tiny_config(
        damaged,
        tmp_path,
        data={"on_error": "skip", "max_skipped": 2},
        train={"epochs": 1},
    )

    # Two training clips are allowed; the validation clip is the third.
    with pytest.raises(
        DecodeError,
        match=r"^data\.max_skipped=2: 3 clips did not decode; the last is val_3: .*val_3\.mp4: ",
    ):
        fit(config)


@pytest.mark.slow
def test_in_memory_too_clips_are_skipped(damaged, tmp_path):
    config = tiny_config(
        damaged,
        tmp_path,
        data={"on_error": "skip", "max_skipped": 3, "in_memory": True},
        train={"epochs": 1},
    )

    trainer = fit(config)

    assert set(trainer.skipped.reasons) == {"train_2", "train_7", "val_3"}


def test_batch_norm_over_the_ranks_and_skipping_exclude_each_other(tiny_data, tmp_path):
    config = tiny_config(
        tiny_data, tmp_path, data={"on_error": "skip"}, train={"sync_batch_norm": True}
    )

    with pytest.raises(ConfigError, match=r"train\.sync_batch_norm=true"):
        build_trainer(config, ranks=Ranks())


@pytest.mark.slow
def test_a_rank_without_a_clip_in_a_step_keeps_pace(damaged, tmp_path):
    # A clip a rank and step: each broken one leaves a rank without any.
    config = tiny_config(
        damaged,
        tmp_path,
        data={"on_error": "skip", "max_skipped": 3},
        # Large enough for batch norm over the last layer's positions of one clip.
        clip={"crop_size": 48, "short_side": 48},
        train={"epochs": 2, "global_batch_size": 2, "micro_batch_size": 2, "log_every": 4},
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["tests/training/skipping_ranks.py", str(tmp_path / "config.yaml"), str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    files = sorted(tmp_path.glob("rank*.pt"))
    assert len(files) == 2, done.stderr
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert first["step"] == second["step"] == 12
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
        assert value.isfinite().all(), name
    assert set(first["skipped"]) == {"train_2", "train_7", "val_3"}
    assert first["skipped"] == second["skipped"]
    assert first["skipped_videos"] == second["skipped_videos"] == ["val_3"]
    assert first["train_total"] == 10
    assert sorted(
        event["id"] for event in events_of(tmp_path / "tiny") if event["event"] == "skip"
    ) == [
        "train_2",
        "train_7",
        "val_3",
    ]
