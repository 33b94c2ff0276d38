"""Batch norm and a forward of one clip: refused before it is trained, or it does not happen."""

from pathlib import Path
from typing import Any

import pytest

from cdb_video import build
from cdb_video.build_data import read_data
from cdb_video.clips.order import TrainingOrder
from cdb_video.config import Config
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError
from tests.tiny import tiny_config


def check(config: Config, *, world_size: int = 1) -> None:
    build.check(config, read_data(config), ranks=Ranks(0, 0, world_size))


@pytest.mark.parametrize(
    ("train", "world_size"),
    [
        ({"global_batch_size": 6, "micro_batch_size": 1}, 1),
        ({"global_batch_size": 5, "micro_batch_size": 2}, 1),  # 2, 2, 1
        ({"global_batch_size": 1, "micro_batch_size": 8}, 1),
        ({"global_batch_size": 3, "micro_batch_size": 8}, 3),
    ],
)
def test_a_forward_of_one_clip_that_has_one_number_a_channel_is_refused_by_key(
    tiny_data: Path, tmp_path: Path, train: dict[str, Any], world_size: int
) -> None:
    # r3d_10 ends at one number a channel of 4 frames of 16 pixels.
    config = tiny_config(tiny_data, tmp_path, train=train)

    with pytest.raises(ConfigError, match=r"train\.micro_batch_size=.*single clip.*r3d_10.*=16"):
        check(config, world_size=world_size)


@pytest.mark.parametrize(
    ("sections", "world_size"),
    [
        ({"train": {"global_batch_size": 6, "micro_batch_size": 5}}, 1),  # 3 and 3
        ({"train": {"global_batch_size": 4, "micro_batch_size": 8}}, 2),
        ({"train": {"micro_batch_size": 1}, "model": {"backbone": "x3d_xs"}}, 1),
        ({"train": {"micro_batch_size": 1}, "model": {"freeze_backbone": True}}, 1),
        ({"train": {"micro_batch_size": 1}, "clip": {"crop_size": 32, "short_side": 32}}, 1),
    ],
)
def test_what_batch_norm_can_train_on_is_not_refused(
    tiny_data: Path, tmp_path: Path, sections: dict[str, Any], world_size: int
) -> None:
    check(tiny_config(tiny_data, tmp_path, **sections), world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_batches", [1, 2, 5])
def test_one_clip_more_than_whole_batches_is_left_out(world_size: int, num_batches: int) -> None:
    orders = [
        TrainingOrder(
            num_batches * 6 + 1, global_batch_size=6, seed=0, ranks=Ranks(r, r, world_size)
        )
        for r in range(world_size)
    ]

    sizes = [[len(step) for step in order] for order in orders]

    assert sizes == [[6 // world_size] * num_batches] * world_size


def test_a_rest_of_one_in_a_forward_trains(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data, tmp_path, train={"epochs": 1, "global_batch_size": 6, "micro_batch_size": 5}
    )
    trainer = build.build_trainer(config, ranks=Ranks(), quiet=True)

    trainer.fit()

    assert trainer.state.position.step == 2
