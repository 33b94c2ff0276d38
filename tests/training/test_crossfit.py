"""Cross-fitted counts where the answer is known: what separates, what only the prior tells."""

import math

import pytest
import torch

from cdb_video.errors import DataError, RunError
from cdb_video.training.crossfit import crossfit_counts


def labels_of(*class_counts):
    """(M,) labels: so many clips of class 0, of class 1, ..."""
    return torch.arange(len(class_counts)).repeat_interleave(torch.tensor(class_counts))


def separable(target, *, seed=0):
    """(M, 8) features: a class is a corner, with noise far smaller than the way between corners."""
    generator = torch.Generator().manual_seed(seed)
    corners = 4 * torch.eye(8)[target]
    return corners + 0.1 * torch.randn(len(target), 8, generator=generator)


def test_separable_classes_are_right_once_a_clip():
    target = labels_of(12, 6, 4)

    counts = crossfit_counts(separable(target), target, num_classes=3, groups=None, seed=0)

    assert counts.total.tolist() == [12, 6, 4]
    assert counts.correct.tolist() == [12, 6, 4]


def test_a_class_of_one_clip_is_never_right():
    target = labels_of(12, 6, 1)

    counts = crossfit_counts(separable(target), target, num_classes=3, groups=None, seed=0)

    assert counts.total.tolist() == [12, 6, 1]
    assert counts.correct.tolist() == [12, 6, 0]


def test_without_a_feature_that_tells_the_natural_prior_decides():
    target = labels_of(4, 8)

    counts = crossfit_counts(torch.ones(12, 3), target, num_classes=2, groups=None, folds=4, seed=0)

    # Balanced classes would be a tie, which goes to class 0.
    assert counts.correct.tolist() == [0, 8]
    # Every fold leaves 3 and 6 clips: the intercepts say 1/3 and 2/3.
    expected = torch.tensor([math.log(3), math.log(1.5)], dtype=torch.float64)
    torch.testing.assert_close(counts.class_loss, expected, rtol=0, atol=1e-3)


def test_a_limit_of_clips_a_class_leaves_the_prior_as_it_is():
    target = labels_of(4, 8)

    counts = crossfit_counts(
        torch.ones(12, 3),
        target,
        num_classes=2,
        groups=None,
        folds=4,
        seed=0,
        max_clips_per_class=4,
    )

    assert counts.total.tolist() == [4, 4]
    assert counts.correct.tolist() == [0, 4]
    expected = torch.tensor([math.log(3), math.log(1.5)], dtype=torch.float64)
    torch.testing.assert_close(counts.class_loss, expected, rtol=0, atol=1e-3)


def test_top5_is_by_the_probabilities():
    class_counts = [28, 4, 24, 20, 8, 16, 12]  # quarters are whole: each fold has the same shares
    target = labels_of(*class_counts)

    counts = crossfit_counts(
        torch.ones(len(target), 2), target, num_classes=7, groups=None, folds=4, seed=0
    )

    assert counts.correct.tolist() == [28, 0, 0, 0, 0, 0, 0]
    assert counts.top5_correct.tolist() == [28, 0, 24, 20, 0, 16, 12]


def test_clips_of_one_recording_are_never_on_both_sides():
    # Features tell the recording, six clips each, and nothing of the class: four recordings of
    # class 0 and two of class 1.
    recordings = torch.arange(6).repeat_interleave(6)
    target = (recordings >= 4).long()
    features = torch.eye(6)[recordings]
    names = [f"r{i}" for i in recordings.tolist()]

    by_clip = crossfit_counts(features, target, num_classes=2, groups=None, seed=0)
    by_recording = crossfit_counts(features, target, num_classes=2, groups=names, seed=0)

    assert by_clip.correct.tolist() == [24, 12]
    assert by_recording.correct.tolist() == [24, 0]  # of an unseen one only the prior is known


def test_unlabelled_clips_are_left_out():
    target = labels_of(6, 6)
    target[[0, 7]] = -1

    counts = crossfit_counts(separable(target), target, num_classes=2, groups=None, seed=0)

    assert counts.total.tolist() == [5, 5]
    assert counts.correct.tolist() == [5, 5]


def test_classes_without_a_clip_have_no_accuracy():
    target = labels_of(6, 0, 6)

    counts = crossfit_counts(separable(target), target, num_classes=4, groups=None, seed=0)

    assert counts.total.tolist() == [6, 0, 6, 0]
    assert counts.correct.tolist() == [6, 0, 6, 0]


def test_fewer_recordings_than_folds_are_fewer_folds():
    target = labels_of(20, 20)
    groups = ["a", "b"] * 20

    counts = crossfit_counts(separable(target), target, num_classes=2, groups=groups, seed=0)

    assert counts.correct.tolist() == [20, 20]


def test_a_fold_that_has_seen_one_class_knows_that_one():
    target = labels_of(4, 4)
    groups = ["a"] * 4 + ["b"] * 4

    counts = crossfit_counts(separable(target), target, num_classes=2, groups=groups, seed=0)

    assert counts.total.tolist() == [4, 4]
    assert counts.correct.tolist() == [0, 0]


def test_the_same_seed_gives_the_same_counts():
    target = labels_of(30, 12, 6, 3)
    generator = torch.Generator().manual_seed(1)
    features = separable(target) + 3 * torch.randn(len(target), 8, generator=generator)

    def table(seed):
        counts = crossfit_counts(
            features, target, num_classes=4, groups=None, seed=seed, max_clips_per_class=10
        )
        return counts.to_dict()["table"]

    assert torch.equal(table(0), table(0))
    assert not torch.equal(table(0), table(1))


@pytest.mark.parametrize(
    ("class_counts", "groups", "folds", "message"),
    [
        ((4, 4), ["a"] * 8, 5, "8 labelled clips of 1 recordings"),
        ((1, 1, 1), None, 5, "at most 1 of a class"),
        ((4, 4), None, 1, "in 1 folds"),
        ((0,), [], 5, "0 labelled clips"),
    ],
)
def test_what_cannot_be_split_is_refused(class_counts, groups, folds, message):
    target = labels_of(*class_counts)

    with pytest.raises(DataError, match=message):
        crossfit_counts(
            separable(target), target, num_classes=3, groups=groups, folds=folds, seed=0
        )


def test_features_that_are_not_finite_are_refused():
    target = labels_of(4, 4)
    features = separable(target)
    features[3, 2] = torch.nan

    with pytest.raises(RunError, match="not finite"):
        crossfit_counts(features, target, num_classes=2, groups=None, seed=0)
