"""Mixed clips and their loss, by hand; what a configuration may mix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.errors import ConfigError
from cdb_video.losses import CDBLoss, FocalLoss, MultiHeadLoss
from cdb_video.training.mixing import NOT_MIXED, Mixed, Mixing, make_mixing
from tests.host_sync import NoHostSync
from tests.tiny import tiny_config


def numbered(count: int = 4, side: int = 8) -> torch.Tensor:
    """Clip i has the value i everywhere."""
    return (
        torch.arange(count, dtype=torch.float32)
        .reshape(-1, 1, 1, 1, 1)
        .expand(-1, 3, 2, side, side)
    )


def test_mixup_is_a_weighted_mean_of_a_clip_and_its_neighbour() -> None:
    torch.manual_seed(0)
    clips, mixed = Mixing(mixup=0.8, cutmix=0.0)(numbered())

    share = mixed.share
    assert 0 < share < 1
    expected = [share * i + (1 - share) * ((i - 1) % 4) for i in range(4)]
    assert clips[:, 0, 0, 0, 0].tolist() == pytest.approx(expected)
    assert all(len(clip.unique()) == 1 for clip in clips)


def test_cutmix_has_a_rectangle_of_the_neighbour_in_all_frames_and_its_share_is_the_area() -> None:
    seen = []
    for seed in range(20):
        torch.manual_seed(seed)
        clips, mixed = Mixing(mixup=0.0, cutmix=1.0)(numbered(side=16))

        other = clips[2, 0, 0] == 1  # of clip 2, what is clip 1's
        assert float(other.double().mean()) == pytest.approx(1 - mixed.share)
        rows, columns = other.any(1).sum(), other.any(0).sum()
        assert int(rows * columns) == int(other.sum())  # a rectangle
        assert all(torch.equal(part, clips[2, 0, 0]) for part in clips[2].flatten(0, 1))
        seen.append(mixed.share)
    assert min(seen) < 0.6 < 0.9 < max(seen)


def test_both_take_turns() -> None:
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        clips, _ = Mixing(mixup=0.8, cutmix=1.0)(numbered())
        kinds.add(len(clips[1].unique()) > 1 or float(clips[1].max()) == 1.0)

    assert kinds == {True, False}


def test_what_is_drawn_follows_from_the_steps_generator_alone() -> None:
    def draw(seed: int) -> tuple[torch.Tensor, Mixed]:
        torch.manual_seed(seed)
        return Mixing(mixup=0.8, cutmix=0.0)(numbered())

    assert torch.equal(draw(3)[0], draw(3)[0])
    assert draw(3)[1] != draw(4)[1]


def test_one_clip_has_no_neighbour_and_without_alpha_nothing_is_mixed() -> None:
    clips = numbered(1)

    assert Mixing(mixup=0.8, cutmix=0.0)(clips) == (clips, NOT_MIXED)
    clips = numbered()
    assert make_mixing(mixup=0.0, cutmix=0.0)(clips) == (clips, NOT_MIXED)


@pytest.mark.parametrize("base", [None, "focal"])
def test_each_label_is_weighed_by_its_own_class_whatever_the_base(base: str | None) -> None:
    torch.manual_seed(0)
    loss = CDBLoss(
        3,
        base=FocalLoss(3, reduction="none", ignore_index=-1) if base else None,
        reduction="sum",
        ignore_index=-1,
    )
    loss.update(torch.tensor([0.9, 0.5, 0.1]))
    weights = loss.class_weights
    assert len(weights.unique()) == 3
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])

    found = Mixed(0.7).losses(MultiHeadLoss({"verb": loss}), {"verb": logits}, {"verb": labels})

    log_p = logits.log_softmax(1)
    each = -log_p if base is None else -((1 - log_p.exp()) ** 2) * log_p  # focal: gamma 2
    expected = 0.0
    for i, (own, other) in enumerate(zip([0, 2, -1, 1], [1, 0, 2, -1], strict=True)):
        for share, label in ((0.7, own), (0.3, other)):
            if label >= 0:
                expected += share * float(weights[label] * each[i, label])
    assert float(found["verb"]) == pytest.approx(expected, rel=1e-5)


def test_a_run_mixes_resumes_to_the_bit_and_counts_no_mixed_clip(
    tiny_data: Path, tmp_path: Path
) -> None:
    def trainer(epochs: int):  # type: ignore[no-untyped-def]
        config = tiny_config(
            tiny_data,
            tmp_path,
            augment={"mixup": 0.8, "cutmix": 1.0},
            loss={"name": "cross_entropy"},
            train={"epochs": epochs, "micro_batch_size": 3},
        )
        return build_trainer(config, quiet=True)

    whole, first, second = trainer(2), trainer(2), trainer(2)
    whole.train_one_epoch()
    with NoHostSync():
        clips, _ = whole.mixing(torch.randn(3, 3, 2, 8, 8))
    assert len(clips) == 3
    whole.state.position.end_epoch()
    whole.train_one_epoch()

    first.train_one_epoch()
    first.state.position.end_epoch()
    second.state.load_state_dict(first.state.state_dict())
    second.train_one_epoch()

    assert int(whole.train_counts["verb"].total.sum()) == 0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"augment": {"mixup": 0.8}, "loss": {"name": "cdb", "difficulty": {"source": "train"}}},
            r"augment\.mixup=0\.8: loss\.difficulty\.source=train counts training clips",
        ),
        (
            {"augment": {"cutmix": 1}, "loss": {"name": "recall"}},
            r"augment\.cutmix=1: the recall loss counts training clips",
        ),
        (
            {"augment": {"rand_augment": [2, 9]}, "data": {"pixels": "yuv"}},
            r"data\.pixels=yuv: augment\.rand_augment and augment\.erase change RGB",
        ),
        (
            {
                "augment": {"cutmix": 1},
                "data": {"format": "features"},
                "model": {"backbone": "features"},
            },
            r"augment\.cutmix=1: features have no pixels to cut",
        ),
    ],
)
def test_what_cannot_be_together_is_refused(
    tmp_path: Path, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, tmp_path, **sections)
