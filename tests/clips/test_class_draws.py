"""Epochs that draw classes: by the shares asked for, evenly within, by arithmetic."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cdb_video.clips.dataset import ClipSampler, TrainingClips
from cdb_video.clips.loader import TrainingOrder
from cdb_video.clips.transforms import Augmentation
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import ONE_PROCESS, Ranks

# 100 records, mixed: 60, 25, 10 and 3 of four classes, and 2 unlabelled.
LABELS = torch.tensor([0] * 60 + [1] * 25 + [2] * 10 + [3] * 3 + [-1] * 2)
LABELS = LABELS[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def order_of(
    labels=LABELS, shares=SHARES, *, global_batch_size=10, seed=0, ranks=ONE_PROCESS
) -> TrainingOrder:
    order = TrainingOrder(len(labels), global_batch_size=global_batch_size, seed=seed, ranks=ranks)
    order.draw_classes(labels, shares)
    return order


def steps_of(order, *, epoch=0, first_step=0):
    order.set_position(epoch, first_step)
    return list(order)


def drawn(order, *, epochs):
    """The records of some epochs, in order."""
    steps = chain(*(steps_of(order, epoch=epoch) for epoch in range(epochs)))
    return [key[1] for step in steps for key in step]


def test_ten_thousand_draws_have_the_shares_asked_for_and_are_even_within_a_class():
    draws = Counter(drawn(order_of(), epochs=100))

    assert draws.total() == 10_000
    per_class = [
        [draws[index] for index in LABELS.eq(label).nonzero().flatten().tolist()]
        for label in range(4)
    ]
    # Fixed seed: five p-values above 1 % are what fair draws have 95 times of 100.
    assert chisquare([sum(of) for of in per_class], 10_000 * SHARES.numpy()).pvalue > 0.01
    for of in per_class:
        assert chisquare(of).pvalue > 0.01


def test_an_unlabelled_clip_is_never_drawn():
    draws = set(drawn(order_of(), epochs=100))

    assert draws == set((LABELS >= 0).nonzero().flatten().tolist())


@pytest.mark.parametrize("never", [0, 1, 3])
def test_a_class_of_share_0_is_never_drawn(never):
    shares = SHARES.clone()
    shares[never] = 0

    draws = drawn(order_of(shares=shares / shares.sum()), epochs=30)

    assert set(LABELS[draws].tolist()) == {0, 1, 2, 3} - {never}


def test_one_class_can_have_every_draw():
    shares = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)

    assert set(LABELS[drawn(order_of(shares=shares), epochs=3)].tolist()) == {2}


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(deadline=None, database=None)
def test_shares_that_do_not_quite_sum_to_1_draw_records_of_their_classes(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (50,), generator=generator)
    labels[0] = 0
    counts = torch.bincount(labels[labels >= 0], minlength=classes)
    shares = torch.rand(classes, generator=generator, dtype=torch.float64) * (counts > 0)

    # fp32 sums end up to 1e-6 below or above 1.
    draws = drawn(order_of(labels, (shares / shares.sum()).float(), seed=seed), epochs=2)

    assert len(draws) == 100
    assert (labels[draws] >= 0).all()


def test_draws_follow_from_seed_and_epoch():
    def epoch(seed, number):
        return steps_of(order_of(seed=seed), epoch=number)

    assert epoch(0, 3) == epoch(0, 3)
    assert epoch(0, 3) != epoch(0, 4)
    assert epoch(0, 3) != epoch(1, 3)


def test_new_shares_count_from_the_next_epoch_on():
    order = order_of()
    before = steps_of(order)
    order.draw_classes(LABELS, SHARES.flip(0))

    assert steps_of(order) != before
    assert steps_of(order) == steps_of(order_of(shares=SHARES.flip(0)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_has_the_same_draws_on_any_number_of_ranks(world_size):
    alone = steps_of(order_of(global_batch_size=12), epoch=2)

    parts = [
        steps_of(order_of(global_batch_size=12, ranks=Ranks(rank, rank, world_size)), epoch=2)
        for rank in range(world_size)
    ]

    assert [sorted(chain(*step)) for step in zip(*parts, strict=True)] == [
        sorted(step) for step in alone
    ]
    assert {len(step) for part in parts for step in part} == {12 // world_size}


@pytest.mark.parametrize("first_step", [0, 1, 6, 10])
def test_an_epoch_taken_up_in_its_middle_is_the_rest_of_it(first_step):
    whole = steps_of(order_of(), epoch=3)

    assert len(whole) == 10
    assert steps_of(order_of(), epoch=3, first_step=first_step) == whole[first_step:]


def test_every_repeat_of_a_clip_has_a_key_of_its_own():
    keys = list(chain(*steps_of(order_of(), epoch=5)))

    assert len(set(keys)) == len(keys) == 100
    for index, times in Counter(key[1] for key in keys).items():
        mine = [key for key in keys if key[1] == index]
        assert mine == [(5, index), *((5, index, n) for n in range(1, times))]
    # Three clips share 40 draws.
    assert max(len(key) for key in keys) == 3


def test_a_repeat_has_frames_and_a_crop_of_its_own(coded_video):
    path = coded_video(num_frames=200)
    video = VideoRecord(id="a", path=path, video_id="a", recording="a", labels={"verb": 0})
    clips = TrainingClips(
        [video],
        sampler=ClipSampler(num_frames=2, stride=1),
        augmentation=Augmentation(crop_size=16, short_side=48, color_jitter=0.4),
        seed=0,
    )

    first, *repeats = [clips[key] for key in ((4, 0), (4, 0, 1), (4, 0, 2))]

    for repeat in repeats:
        assert repeat.index == 0
        assert not torch.equal(repeat.clips, first.clips)
        assert not torch.equal(repeat.appearance.jitter, first.appearance.jitter)
    assert torch.equal(clips[4, 0, 1].clips, repeats[0].clips)


def test_a_share_of_a_class_without_a_clip_is_refused():
    shares = torch.tensor([0.2] * 5, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"probabilities\[4\] is above 0"):
        order_of(shares=shares)
