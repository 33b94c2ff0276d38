"""Figures against scikit-learn, plain loops and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from cdb_video.counts import ClassCounts
from cdb_video.evaluation import report_data
from cdb_video.evaluation.metrics import (
    SCORED_FIGURES,
    class_precision,
    expected_calibration_error,
    figure_intervals,
    harmonic_mean,
    head_figures,
    logit_adjusted,
    paper_groups,
    selection_figure,
    worst_fifth,
)
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions

NUM_CLASSES = 9
ABSENT = (2, 7)


def predictions(scores, labels):
    return HeadPredictions(scores=scores, view_scores=scores[:, None].half(), labels=labels)


def classes(train_counts):
    names = tuple(f"class {i}" for i in range(len(train_counts)))
    return HeadClasses(names=names, train_counts=torch.tensor(train_counts))


def random_predictions(*, seed=0, num_videos=300):
    """Scores that are right about half the time; two classes have no video, some videos no label.

    Absent classes are predicted too.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, NUM_CLASSES, (num_videos,), generator=generator)
    for c in ABSENT:
        labels[labels == c] = 0
    logits = torch.randn(num_videos, NUM_CLASSES, generator=generator)
    logits[labels >= 0, labels[labels >= 0]] += 1.2
    return predictions(logits.softmax(1), labels)


def random_figures():
    part = random_predictions()
    labelled = part.labels >= 0
    figures = head_figures(part, classes([150, 101, 100, 60, 20, 20, 19, 3, 0]))
    return figures, part.scores[labelled].numpy(), part.labels[labelled].numpy()


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_figures_are_scikit_learns():
    figures, scores, labels = random_figures()

    guesses = scores.argmax(1)
    present = sorted(set(labels.tolist()))
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, guesses, labels=present, average="macro", zero_division=0
    )
    assert set(guesses.tolist()) & set(ABSENT)  # absent classes are among the predictions
    expected = {
        "num_classes": 9,
        "num_classes_present": 7,
        "num_videos": len(labels),
        "top1": accuracy_score(labels, guesses),
        "top5": top_k_accuracy_score(labels, scores, k=5, labels=range(NUM_CLASSES)),
        "mean_class_accuracy": balanced_accuracy_score(labels, guesses),
        "mean_class_precision": precision,
        "macro_f1": f1,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert figures["mean_class_accuracy"] == pytest.approx(recall, abs=1e-12)


def test_class_figures_are_a_plain_loops():
    figures, scores, labels = random_figures()

    accuracy, in_top5 = {}, []
    for c in range(NUM_CLASSES):
        mine = scores[labels == c]
        name = f"class {c}"
        assert figures["count"][name] == len(mine)
        accuracy[name] = float((mine.argmax(1) == c).mean()) if len(mine) else None
        if len(mine):
            in_top5.append(np.mean([c in row.argsort()[-5:] for row in mine]))
    assert figures["class_accuracy"] == pytest.approx(accuracy)
    assert [name for name, value in accuracy.items() if value is None] == ["class 2", "class 7"]
    assert figures["mean_class_top5"] == pytest.approx(np.mean(in_top5))


def test_shot_groups_are_by_training_clips_and_over_classes_present():
    figures, _, _ = random_figures()

    # 150 and 101 are many; 60, 20, 20 medium, beside 100, which is absent; 19 and 0 few, beside 3.
    accuracy = list(figures["class_accuracy"].values())
    groups = {"many": (0, 1), "medium": (3, 4, 5), "few": (6, 8)}
    for name, members in groups.items():
        assert figures[name]["num_classes"] == len(members)
        assert figures[name]["accuracy"] == pytest.approx(np.mean([accuracy[c] for c in members]))


def test_a_shot_group_without_a_class_is_null():
    figures = head_figures(predictions(torch.eye(2), torch.tensor([0, 1])), classes([500, 3]))

    assert figures["many"] == {"accuracy": 1.0, "num_classes": 1}
    assert figures["medium"] == {"accuracy": None, "num_classes": 0}


def test_macro_figures_by_hand():
    # True 0 0 0 1 1 2 4, predicted 0 0 1 1 2 2 2; class 3 is absent, class 4 never predicted.
    # Accuracies 2/3, 1/2, 1, 0; precisions 2/2, 1/2, 1/3, 0; F1 4/5, 1/2, 1/2, 0.
    part = predictions(torch.eye(5)[[0, 0, 1, 1, 2, 2, 2]], torch.tensor([0, 0, 0, 1, 1, 2, 4]))

    figures = head_figures(part, classes([1] * 5))

    assert class_precision(part.counts).tolist() == pytest.approx([1, 0.5, 1 / 3, 0, 0])
    assert figures["mean_class_precision"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    assert figures["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 1 / 2 + 0) / 4)


@pytest.mark.parametrize(("num_classes", "is_there"), [(5, False), (6, True)])
def test_top5_is_null_for_five_classes_or_fewer(num_classes, is_there):
    scores = torch.eye(num_classes)
    figures = head_figures(
        predictions(scores, torch.arange(num_classes)), classes([1] * num_classes)
    )

    assert (figures["top5"] is not None) is is_there
    assert (figures["mean_class_top5"] is not None) is is_there


def test_harmonic_mean_by_hand():
    assert harmonic_mean(torch.tensor([0.5, 1.0])) == pytest.approx(2 / 3)
    assert harmonic_mean(torch.tensor([0.5, 0.0, 1.0])) == 0
    assert harmonic_mean(torch.zeros(3)) == 0


@pytest.mark.parametrize(("num_classes", "lowest"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_worst_fifth_is_the_mean_of_a_fifth_of_the_classes_rounded_up(num_classes, lowest):
    accuracy = torch.arange(num_classes, 0, -1, dtype=torch.float64) / num_classes

    expected = sum(range(1, lowest + 1)) / lowest / num_classes
    assert worst_fifth(accuracy) == pytest.approx(expected)


def test_logit_adjustment_by_hand():
    scores = torch.tensor([[0.6, 0.4, 0.0]])
    counts = torch.tensor([90, 10, 0])

    adjusted = logit_adjusted(scores, counts)

    # Priors over 101: a class without training clips counts as one. A score of 0 stays last.
    assert adjusted[0, 0].item() == pytest.approx(math.log(0.6) - math.log(90 / 101))
    assert adjusted[0, 1].item() == pytest.approx(math.log(0.4) - math.log(10 / 101))
    assert adjusted.argmax(1).tolist() == [1]
    assert adjusted.isfinite().all()
    half = logit_adjusted(scores, counts, tau=0.5)
    assert half[0, 1].item() == pytest.approx(math.log(0.4) - 0.5 * math.log(10 / 101))
    assert torch.equal(logit_adjusted(scores, counts, tau=0)[0, :2], scores[0, :2].log())


def test_adjusted_accuracy_is_of_the_adjusted_predictions():
    # As trained both videos go to class 0; 0.6 / 90 < 0.4 / 10 turns the second alone.
    scores = torch.tensor([[0.95, 0.05], [0.6, 0.4]])
    figures = head_figures(predictions(scores, torch.tensor([0, 1])), classes([90, 10]))

    assert figures["mean_class_accuracy"] == 0.5
    assert figures["mean_class_accuracy_logit_adjusted"] == 1.0


def test_the_confusion_matrix_is_scikit_learns():
    part = random_predictions()
    labelled = part.labels >= 0

    expected = confusion_matrix(
        part.labels[labelled], part.scores[labelled].argmax(1), labels=range(NUM_CLASSES)
    )
    assert report_data.confusion_matrix(part).tolist() == expected.tolist()
    assert expected.sum(1)[list(ABSENT)].tolist() == [0, 0]
    assert expected.sum(0)[list(ABSENT)].min() > 0


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_calibration_error_is_torchmetrics_multiclass_one(sharpness):
    from torchmetrics.functional.classification import multiclass_calibration_error

    part = random_predictions(seed=3)
    scores = (part.scores.log() * sharpness).softmax(1)

    expected = multiclass_calibration_error(
        scores, part.labels, NUM_CLASSES, n_bins=15, norm="l1", ignore_index=-1
    )
    assert expected_calibration_error(scores, part.labels) == pytest.approx(float(expected))


def looped_calibration_error(scores, labels):
    """Guo et al. (2017), equation 3: bin m of 15 is ((m - 1) / 15, m / 15]."""
    error = 0.0
    for m in range(1, 16):
        here = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(scores, labels, strict=True)
            if (m - 1) / 15 < max(row) <= m / 15
        ]
        error += abs(sum(confidence - right for confidence, right in here))
    return error / len(labels)


def test_calibration_error_is_a_plain_loops():
    figures, scores, labels = random_figures()

    expected = looped_calibration_error(scores.tolist(), labels.tolist())
    assert figures["ece"] == pytest.approx(expected, abs=1e-6)  # fp32 sums


def test_sure_scores_share_the_last_bin():
    # One of two is right at a mean confidence of 0.975. Apart they would give (1 + 0.05) / 2.
    scores, labels = torch.tensor([[1.0, 0.0], [0.95, 0.05]]), torch.tensor([1, 0])

    assert expected_calibration_error(scores, labels) == pytest.approx(0.475, abs=1e-6)


def test_a_single_class_is_calibrated():
    figures = head_figures(predictions(torch.ones(3, 1), torch.tensor([0, 0, -1])), classes([3]))

    assert figures["ece"] == pytest.approx(0, abs=1e-6)
    assert figures["top1"] == 1


def counts_of(correct, total):
    """Counts of classes by their right and all videos; what is wrong goes to the next class."""
    counts = ClassCounts(len(total))
    for c, (right, all_) in enumerate(zip(correct, total, strict=True)):
        guesses = [c] * right + [(c + 1) % len(total)] * (all_ - right)
        if guesses:
            counts.update(torch.eye(len(total))[guesses], torch.full((all_,), c))
    return counts


def intervals_of(counts):
    """With all classes few-shot but the first, which is many-shot."""
    train_counts = torch.ones(counts.num_classes).long()
    train_counts[0] = 101
    return figure_intervals(counts, counts, train_counts)


def test_intervals_are_a_bootstrap_over_videos_class_by_class():
    correct, total = (30, 10, 24, 0, 0), (40, 25, 60, 0, 10)
    rng = np.random.default_rng(1)
    drawn = np.array(
        [
            (np.arange(n) < right)[rng.integers(n, size=(20_000, n))].mean(1)
            for right, n in zip(correct, total, strict=True)
            if n
        ]
    )

    intervals = intervals_of(counts_of(correct, total))

    # 2,000 draws of a mean with deviation 0.034: a 2.5 % quantile has a standard error of 0.002.
    means = drawn.mean(axis=0)
    assert means.std() == pytest.approx(0.034, abs=0.001)
    expected = {
        "mean_class_accuracy": means,
        "top1": np.array([40, 25, 60, 10]) @ drawn / 135,
        "many": drawn[0],
        "few": drawn[1:].mean(axis=0),
    }
    for name, values in expected.items():
        # The accuracy of one class of 40 moves in steps of 1 / 40.
        tolerance = 1 / 40 + 1e-9 if name == "many" else 0.006
        quantiles = np.quantile(values, [0.025, 0.975]).tolist()
        assert intervals[name] == pytest.approx(quantiles, abs=tolerance), name
    assert intervals["medium"] is None
    assert (intervals["top5"], intervals["mean_class_top5"]) == (None, None)  # of five classes


def test_intervals_are_the_same_every_time_and_hold_the_figures():
    figures, _, _ = random_figures()

    assert figures["mean_class_accuracy_interval"] == figures["intervals"]["mean_class_accuracy"]
    assert figures["intervals"] == random_figures()[0]["intervals"]
    for name, (low, high) in figures["intervals"].items():
        value = figures[name]["accuracy"] if name in ("many", "medium", "few") else figures[name]
        assert 0 <= low < value < high <= 1, name
    sure = intervals_of(counts_of((4, 5), (4, 5)))
    assert (sure["mean_class_accuracy"], sure["top1"]) == ([1, 1], [1, 1])


def test_paper_groups_are_classes_above_and_up_to_600_clips():
    # True 0 0 0 1 1 2 4, predicted 0 0 1 1 2 2 2: accuracies 2/3, 1/2, 1, 0; precisions as above.
    part = predictions(torch.eye(5)[[0, 0, 1, 1, 2, 2, 2]], torch.tensor([0, 0, 0, 1, 1, 2, 4]))

    found = paper_groups(part.counts, classes([601, 601, 600, 5000, 3]))

    assert found["majority"] == {
        "accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "precision": pytest.approx((1 + 1 / 2) / 2),
        "num_classes": 2,  # and class 3, which is absent
    }
    assert found["minority"] == {
        "accuracy": pytest.approx((1 + 0) / 2),
        "precision": pytest.approx((1 / 3 + 0) / 2),
        "num_classes": 2,
    }


# Of EGTEA's verbs, in the order of verb_idx.txt: split 1 without the clips of subjects P20 to P26,
# which train the paper's models, and those clips (counted in the split files of its release).
EGTEA_TRAIN = (
    *(429, 779, 1421, 822, 129, 1335, 130, 308, 223, 249),
    *(54, 54, 139, 42, 78, 117, 26, 15, 22),
)
EGTEA_HELD_OUT = (
    *(173, 255, 447, 23, 75, 396, 59, 92, 112, 109),
    *(36, 36, 14, 20, 30, 22, 6, 15, 7),
)


def test_egteas_verbs_fall_into_the_papers_5_and_14_classes_with_the_held_out_clips():
    train, held_out = torch.tensor(EGTEA_TRAIN), torch.tensor(EGTEA_HELD_OUT)
    assert (train.sum(), held_out.sum()) == (6372, 1927)
    names = tuple(map(str, range(19)))
    counts = predictions(torch.eye(19), torch.arange(19)).counts

    paper = paper_groups(counts, HeadClasses(names, train, annotated_counts=train + held_out))
    released_code = paper_groups(counts, HeadClasses(names, train))

    sizes = [[found[n]["num_classes"] for n in found] for found in (paper, released_code)]
    assert sizes == [[5, 14], [4, 15]]


def test_a_head_without_labels_has_no_figure_but_every_key():
    unlabelled = predictions(torch.rand(4, 3).softmax(1), torch.full((4,), -1))
    labelled = predictions(torch.rand(4, 3).softmax(1), torch.tensor([0, 1, 2, 0]))

    figures = head_figures(unlabelled, classes([5, 2, 1]))

    assert figures.keys() == head_figures(labelled, classes([5, 2, 1])).keys()
    assert (figures["num_classes"], figures["num_classes_present"]) == (3, 0)
    assert figures["num_videos"] == 0
    assert [figures[name] for name in SCORED_FIGURES] == [None] * len(SCORED_FIGURES)
    assert figures["intervals"] is None
    for group in ("majority", "minority"):
        assert figures[group] == {"accuracy": None, "precision": None, "num_classes": 0}
    assert figures["few"] == {"accuracy": None, "num_classes": 0}
    assert figures["class_accuracy"] == {"class 0": None, "class 1": None, "class 2": None}
    assert figures["train_count"] == {"class 0": 5, "class 1": 2, "class 2": 1}


def test_selection_is_by_the_named_head_then_action_then_the_mean():
    counts = {"verb": counts_of((1, 1), (2, 1)), "noun": counts_of((1, 0), (4, 1))}

    assert selection_figure(counts, select_by="noun") == 0.125
    assert selection_figure(counts) == pytest.approx((0.75 + 0.125) / 2)
    assert selection_figure(counts | {"action": counts_of((1, 1), (1, 1))}) == 1
    assert (
        selection_figure(counts | {"action": counts_of((1, 1), (1, 1))}, select_by="verb") == 0.75
    )


def test_a_head_without_labels_is_left_out_of_the_selection():
    counts = {"verb": counts_of((1, 1), (2, 1)), "noun": counts_of((0, 0), (0, 0))}

    assert selection_figure(counts) == 0.75
    assert math.isnan(selection_figure(counts, select_by="noun"))


def test_scores_that_are_nan_are_wrong_and_of_no_confidence():
    # The argmax of NaN scores is class 0, the label of the second video.
    scores = torch.tensor([[0.8, 0.2], [math.nan, math.nan]])
    labels = torch.tensor([0, 0])

    assert expected_calibration_error(scores, labels) == pytest.approx(0.1)  # (0.2 + 0) / 2
    found = report_data.reliability(predictions(scores, labels))
    assert found.count[0] == found.count[12] == 1
    assert found.accuracy[0] == 0
    assert found.accuracy[12] == 1


def test_adjusted_scores_are_not_adjusted_again():
    part, known = random_predictions(), classes(range(1, NUM_CLASSES + 1))
    name = "mean_class_accuracy_logit_adjusted"

    figures = head_figures(part, known)
    adjusted = head_figures(part, known, adjusted=True)

    assert figures[name] > 0
    assert (adjusted[name], adjusted["intervals"][name]) == (None, None)
    assert adjusted["mean_class_accuracy"] == figures["mean_class_accuracy"]
