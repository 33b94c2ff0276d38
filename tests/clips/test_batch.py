"""The one shape check, and that a batch keeps its samples apart and in order."""

import pytest
import torch

from cdb_video.clips.batch import Appearance, Batch, Sample, collate, even_parts


def sample(index, *, views=2, verb=0, flip=False):
    clips = torch.full((views, 3, 4, 6, 6), index, dtype=torch.uint8)
    appearance = Appearance(flip=torch.tensor(flip), jitter=torch.full((3,), 1.0 + index))
    return Sample(
        clips=clips, labels={"verb": verb, "noun": -1}, index=index, appearance=appearance
    )


def test_collate_stacks_samples_in_their_order():
    batch = collate([sample(5, verb=2, flip=True), sample(3, verb=-1), sample(4, verb=1)])

    assert len(batch) == 3
    assert batch.clips.shape == (3, 2, 3, 4, 6, 6)
    assert batch.clips.dtype == torch.uint8
    assert batch.clips[:, 0, 0, 0, 0, 0].tolist() == [5, 3, 4]
    assert {head: labels.tolist() for head, labels in batch.labels.items()} == {
        "verb": [2, -1, 1],
        "noun": [-1, -1, -1],
    }
    assert all(labels.dtype == torch.int64 for labels in batch.labels.values())
    assert batch.indices.tolist() == [5, 3, 4]
    assert batch.appearance.flip.tolist() == [True, False, False]
    assert batch.appearance.jitter[:, 0].tolist() == [6, 4, 5]


def test_parts_of_a_batch_are_its_samples_in_order():
    batch = collate([sample(i, verb=i, flip=i == 4) for i in range(5)])

    parts = batch.split(2)

    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.indices.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.labels["verb"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.appearance.flip.tolist() for part in parts] == [[False] * 2, [False] * 2, [True]]
    assert torch.equal(torch.cat([part.clips for part in parts]), batch.clips)
    assert parts[1].clips.data_ptr() == batch.clips[2].data_ptr()  # no copy


@pytest.mark.parametrize(
    ("number", "most", "parts"),
    [(6, 5, [3, 3]), (7, 3, [3, 2, 2]), (5, 5, [5]), (1, 8, [1]), (3, 1, [1, 1, 1]), (0, 4, [])],
)
def test_parts_are_even_so_that_no_rest_of_one_is_left(number, most, parts):
    assert even_parts(number, most) == parts


def test_batch_moves_every_tensor():
    moved = collate([sample(0), sample(1)]).to(torch.device("meta"))

    tensors = [moved.clips, moved.indices, *moved.labels.values()]
    tensors += [moved.appearance.flip, moved.appearance.jitter]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 6


def test_plain_appearance_changes_nothing():
    plain = Appearance.plain()

    assert not plain.flip
    assert plain.jitter.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": torch.zeros(2, 3, 4, 6, 6, dtype=torch.uint8)}, r"clips must be \(B, V, C, T"),
        ({"clips": torch.zeros(2, 1, 3, 4, 6, 6)}, "clips must be uint8, got torch.float32"),
        ({"indices": torch.zeros(3)}, r"indices must be \(2,\), got \(3,\)"),
        ({"labels": {"verb": torch.zeros(1)}}, r"labels\['verb'\] must be \(2,\), got \(1,\)"),
        (
            {"appearance": Appearance(flip=torch.zeros(2, 1), jitter=torch.ones(2, 3))},
            r"flip must be \(2,\), got \(2, 1\)",
        ),
        (
            {"appearance": Appearance(flip=torch.zeros(2), jitter=torch.ones(3))},
            r"jitter must be \(2, 3\), got \(3,\)",
        ),
    ],
)
def test_wrong_shape_is_refused_with_both_shapes(change, message):
    good = {
        "clips": torch.zeros(2, 1, 3, 4, 6, 6, dtype=torch.uint8),
        "labels": {"verb": torch.zeros(2)},
        "indices": torch.zeros(2),
        "appearance": Appearance(flip=torch.zeros(2), jitter=torch.ones(2, 3)),
    }

    with pytest.raises(ValueError, match=message):
        Batch(**good | change)
