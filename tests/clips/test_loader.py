"""Which batch goes where: order by arithmetic, every record once, errors in one line."""

import gc
import weakref
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdb_video.clips.dataset import ClipSampler, EvaluationViews, TrainingClips
from cdb_video.clips.loader import (
    EvaluationLoader,
    EvaluationOrder,
    TrainingLoader,
    TrainingOrder,
)
from cdb_video.clips.transforms import Augmentation, EvaluationCrops
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import ConfigError, DecodeError

# On a machine with one core torch advises against two workers; they are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def keys_of(num_records, *, global_batch_size, seed=0, epoch=0, first_step=0, ranks=ONE_PROCESS):
    """The (epoch, index) keys of each step of a rank."""
    order = TrainingOrder(num_records, global_batch_size=global_batch_size, seed=seed, ranks=ranks)
    order.set_position(epoch, first_step)
    steps = list(order)
    assert len(steps) == len(order)
    return steps


def every_rank(world_size):
    return [Ranks(rank=r, local_rank=r, world_size=world_size) for r in range(world_size)]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_whole_global_batches_of_distinct_records(num_records, batch, seed, epoch):
    steps = keys_of(num_records, global_batch_size=batch, seed=seed, epoch=epoch)

    size = min(batch, num_records)
    assert [len(step) for step in steps] == [size] * (num_records // size)
    keys = list(chain(*steps))
    assert {key[0] for key in keys} == {epoch}
    assert len(set(keys)) == len(keys)
    assert {key[1] for key in keys} <= set(range(num_records))


def test_an_epoch_without_remainder_is_a_permutation():
    steps = keys_of(24, global_batch_size=6)

    indices = [index for step in steps for _, index in step]
    assert sorted(indices) == list(range(24))
    assert indices != sorted(indices)


def test_order_differs_by_epoch_and_by_seed():
    def order(**position):
        steps = keys_of(30, global_batch_size=6, **position)
        return [index for step in steps for _, index in step]

    assert order(epoch=1) == order(epoch=1)
    assert order(epoch=1) != order(epoch=2)
    assert order(epoch=1, seed=0) != order(epoch=1, seed=1)


def test_the_records_that_are_dropped_change_by_epoch():
    dropped = [
        set(range(10))
        - {index for step in keys_of(10, global_batch_size=4, epoch=e) for _, index in step}
        for e in range(5)
    ]

    assert [len(left) for left in dropped] == [2] * 5
    assert len({frozenset(left) for left in dropped}) > 1


def test_a_batch_larger_than_the_split_is_the_whole_split():
    assert [sorted(step) for step in keys_of(4, global_batch_size=6)] == [
        [(0, 0), (0, 1), (0, 2), (0, 3)]
    ]


@pytest.mark.parametrize(("num_records", "batch"), [(26, 6), (24, 12), (5, 6)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_has_the_same_clips_on_any_number_of_ranks(num_records, batch, world_size):
    alone = keys_of(num_records, global_batch_size=batch, epoch=2)

    parts = [
        keys_of(num_records, global_batch_size=batch, epoch=2, ranks=ranks)
        for ranks in every_rank(world_size)
    ]

    together = [list(chain(*step)) for step in zip(*parts, strict=True)]
    assert [sorted(step) for step in together] == [sorted(step) for step in alone]
    if num_records >= batch:
        assert {len(step) for part in parts for step in part} == {batch // world_size}


@pytest.mark.parametrize("first_step", [0, 1, 3, 4])
def test_an_epoch_taken_up_in_its_middle_is_the_rest_of_it(first_step):
    whole = keys_of(26, global_batch_size=6, epoch=3)

    assert keys_of(26, global_batch_size=6, epoch=3, first_step=first_step) == whole[first_step:]


def test_a_global_batch_that_ranks_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=8 must divide by the 3 ranks"):
        TrainingOrder(100, global_batch_size=8, seed=0, ranks=Ranks(world_size=3))


def test_fewer_records_than_ranks_are_refused():
    with pytest.raises(ConfigError, match="2 training clips are too few for 3 ranks"):
        TrainingOrder(2, global_batch_size=3, seed=0, ranks=Ranks(world_size=3))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_records", range(1, 21))
def test_evaluation_takes_every_record_once_over_the_ranks(num_records, world_size):
    orders = [
        EvaluationOrder(num_records, batch_size=3, ranks=ranks) for ranks in every_rank(world_size)
    ]

    batches = [list(order) for order in orders]

    assert Counter(chain(*chain(*batches))) == Counter(range(num_records))
    assert all(len(batch) <= 3 for batch in chain(*batches))
    assert [len(order) for order in orders] == [len(part) for part in batches]
    assert [list(order.indices) for order in orders] == [list(chain(*part)) for part in batches]
    sizes = [len(order.indices) for order in orders]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def records(coded_video):
    return [make_record(coded_video(f"{i}.mp4", num_frames=8 + i), i) for i in range(6)]


def make_record(path, verb=0):
    return VideoRecord(
        id=path.stem, path=path, video_id=path.stem, recording=path.stem, labels={"verb": verb}
    )


def training_loader(records, *, num_workers=0, ranks=ONE_PROCESS, global_batch_size=6):
    clips = TrainingClips(
        records,
        sampler=ClipSampler(num_frames=4, stride=1),
        augmentation=Augmentation(crop_size=16, short_side=16, color_jitter=0.4),
        seed=0,
    )
    order = TrainingOrder(len(clips), global_batch_size=global_batch_size, seed=0, ranks=ranks)
    return TrainingLoader(clips, order, num_workers=num_workers, pin_memory=False)


def evaluation_loader(records, *, clips_per_batch=4, num_workers=0, ranks=ONE_PROCESS):
    views = EvaluationViews(
        records,
        sampler=ClipSampler(num_frames=4, stride=1),
        crops=EvaluationCrops(crop_size=16, short_side=16),
        num_clips=2,
    )
    return EvaluationLoader(
        views, clips_per_batch=clips_per_batch, ranks=ranks, num_workers=num_workers
    )


def samples_of(batches):
    """Index -> everything that the loader drew for it."""
    return {
        int(batch.indices[i]): torch.cat(
            [
                batch.clips[i].flatten().float(),
                batch.labels["verb"][i : i + 1].float(),
                batch.appearance.flip[i : i + 1].float(),
                batch.appearance.jitter[i],
            ]
        )
        for batch in batches
        for i in range(len(batch))
    }


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for index, drawn in mine.items():
        assert torch.equal(drawn, theirs[index]), index


@pytest.mark.parametrize("num_workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(records, num_workers):
    alone, workers = training_loader(records), training_loader(records, num_workers=num_workers)

    first, second = samples_of(alone.epoch(0)), samples_of(alone.epoch(1))

    assert_same(samples_of(workers.epoch(0)), first)
    assert_same(samples_of(workers.epoch(1)), second)  # the workers live on
    assert not any(torch.equal(first[index], second[index]) for index in range(6))


@pytest.mark.parametrize("world_size", [2, 3])
def test_samples_do_not_depend_on_the_number_of_ranks(records, world_size):
    alone = samples_of(training_loader(records).epoch(4))

    parts = [training_loader(records, ranks=ranks).epoch(4) for ranks in every_rank(world_size)]

    assert_same(samples_of(chain(*parts)), alone)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_in_mid_epoch_also_after_an_epoch_was_left(records, num_workers):
    loader = training_loader(records, num_workers=num_workers, global_batch_size=2)
    whole = list(loader.epoch(1))
    left = loader.epoch(0)
    next(left)

    rest = list(loader.epoch(1, first_step=1))

    assert loader.steps_per_epoch == len(whole) == 3
    assert [part.indices.tolist() for part in rest] == [part.indices.tolist() for part in whole[1:]]
    assert_same(samples_of(rest), samples_of(whole[1:]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_batch_has_whole_videos(records, num_workers):
    loader = evaluation_loader(records, clips_per_batch=5, num_workers=num_workers)

    batches = list(loader)

    # 2 views a video: 5 clips are 2 videos.
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert [batch.labels["verb"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert {batch.clips.shape for batch in batches} == {(2, 2, 3, 4, 16, 16)}
    assert len(loader) == 3


def test_a_batch_of_fewer_clips_than_views_is_still_a_whole_video(records):
    batches = list(evaluation_loader(records, clips_per_batch=1))

    assert [batch.clips.shape[:2] for batch in batches] == [(1, 2)] * 6


def test_a_rank_without_a_video_has_no_batch(records):
    assert list(evaluation_loader(records[:1], ranks=Ranks(rank=1, world_size=2))) == []


def damage(records, index, kind):
    """Replace a record's file by one that cannot be decoded."""
    path = records[index].path
    content = path.read_bytes()
    damaged = {"garbage": b"\x07garbage" * 500, "empty": b"", "half": content[: len(content) // 2]}
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[kind])


def read_to_the_error(batches):
    """The indices of each batch before the error, and the error's message.

    The error itself is not kept: its traceback would hold the loader, and its workers.
    """
    seen = []
    try:
        for batch in batches:
            seen.append(batch.indices.tolist())
    except DecodeError as error:
        return seen, str(error)
    pytest.fail("no DecodeError")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["garbage", "empty", "half", "missing"])
def test_a_file_that_cannot_be_decoded_is_named_in_one_line(records, kind, num_workers):
    damage(records, 3, kind)
    loader = evaluation_loader(records, clips_per_batch=2, num_workers=num_workers)

    seen, message = read_to_the_error(loader)

    assert message.startswith(f"{records[3].path}: ")
    assert "\n" not in message
    assert seen == [[0], [1], [2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_other_clip_takes_the_place_of_a_broken_one(records, num_workers):
    damage(records, 3, "garbage")
    steps = [[index for _, index in step] for step in keys_of(6, global_batch_size=2)]
    broken = next(s for s, step in enumerate(steps) if 3 in step)

    training = training_loader(records, num_workers=num_workers, global_batch_size=2)
    evaluation = evaluation_loader(records, clips_per_batch=4, num_workers=num_workers)

    assert read_to_the_error(training.epoch(0))[0] == steps[:broken]
    assert read_to_the_error(evaluation)[0] == [[0, 1]]


def test_workers_end_with_the_loader_after_an_error(records):
    # By reference counting: the garbage collector would end them after a wait of 5 s each.
    damage(records, 0, "garbage")
    loader = evaluation_loader(records, num_workers=1)
    alive = weakref.ref(loader)

    gc.disable()
    try:
        read_to_the_error(loader)
        del loader
        assert alive() is None
    finally:
        gc.enable()
