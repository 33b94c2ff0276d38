"""`data.untrusted` holds wherever the configuration is used: the same clips, by a stricter way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build_clips import build_evaluation_loader, build_training_loader, file_opener
from cdb_video.build_data import load_into_memory, read_data
from cdb_video.clips.child import ChildDecoder
from cdb_video.config import Config
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError, DataError, DecodeError
from cdb_video.evaluation.predict import segment_record
from cdb_video.experiments import load_run
from cdb_video.prepare.ingest import prepare_videos
from cdb_video.prepare.reencode import Settings
from tests.conftest import write_coloured_video
from tests.saved_run import save_run
from tests.tiny import tiny_config
from tools.check_data import read_splits


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def config_of(root: Path, *, untrusted: bool = True, **data: Any) -> Config:
    return tiny_config(root, root.parent, data={"untrusted": untrusted, **data})


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
        pytest.param({"in_memory": True}, marks=pytest.mark.slow),
    ],
)
def test_clips_are_the_same(data: Path, options: dict[str, Any]) -> None:
    batches = []
    for untrusted in (False, True):
        config = config_of(data, untrusted=untrusted, **options)
        found = read_data(config)
        load_into_memory(config, found, ["train"], ranks=ONE_PROCESS)
        training = build_training_loader(
            config, found.train, ranks=ONE_PROCESS, memory=found.memory
        )
        evaluation = build_evaluation_loader(config, found.train, ranks=ONE_PROCESS)
        batches.append([*training.epoch(0), *evaluation])

    for trusted, other in zip(*batches, strict=True):
        assert torch.equal(trusted.clips, other.clips)
        assert torch.equal(trusted.indices, other.indices)


def test_a_link_out_is_refused_in_training_and_found_by_the_doctor(data: Path) -> None:
    outside = data.parent / "outside.mp4"
    (data / "train_0.mp4").rename(outside)
    (data / "train_0.mp4").symlink_to(outside)
    read_data(config_of(data, untrusted=False))

    for read in (read_data, read_splits):
        with pytest.raises(DataError, match=r"train_0\.mp4: data\.untrusted: a link out of"):
            read(config_of(data))


def test_a_predicted_video_has_a_process_of_its_own_with_the_time_limit(tmp_path: Path) -> None:
    video = write_coloured_video(tmp_path / "a.mp4", channel=1, level=90)
    run = save_run(tmp_path)
    trusting = load_run(run, overrides=["data.decode_timeout_s=0.5"])
    strict = load_run(run, overrides=["data.untrusted=true"])

    assert strict.predict(video) == trusting.predict(video)
    with trusting.scorer.opener(segment_record(video)) as opened:
        assert isinstance(opened, ChildDecoder)
    os.mkfifo(tmp_path / "0.png")  # whose reading never ends
    with pytest.raises(DecodeError, match=r"took longer than 0\.5 s to decode"):
        trusting.predict(tmp_path, fps=5)


def test_other_decoders_are_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.untrusted=true needs decoder=pyav, got decoder="):
        config_of(data, decoder="decord")


def test_an_old_ffmpeg_is_refused_by_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdb_video.clips.untrusted.FFMPEG_FLOORS", ((99, 0, 0),))
    file_opener(config_of(data, untrusted=False))

    with pytest.raises(ConfigError, match=r"^data\.untrusted=true: PyAV .* needed is 99\.0\.0"):
        file_opener(config_of(data))


@pytest.mark.slow
def test_videos_are_prepared_strictly(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "val_0.mp4", data / "text.mp4")
    (data / "text.mp4").write_text("not a video")

    made = prepare_videos(
        data, tmp_path / "made", Settings(short_side=16), untrusted=True, quiet=True
    )

    assert len(made.made) == 24
    assert [failure.source for failure in made.failures] == ["text.mp4"]
    (data / "link.mp4").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=r"link\.mp4: data\.untrusted: a link out of"):
        prepare_videos(data, tmp_path / "other", Settings(), untrusted=True)
