"""CDB's class weights against the paper's equations, by hand, and for any accuracies."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdb_video.losses import cdb_weights
from cdb_video.losses.cdb import DynamicTau, Tau, _tau

NAN = math.nan

# Accuracies, then tau and weights by the paper's equations 3 and 4, and by the released EGTEA and
# CIFAR code, epsilon 0.01; evaluated apart from this package, to six digits.
GOLDEN = [
    ((0, 0, 0, 0), 0.537883, (1, 1, 1, 1), 0.500000, (1, 1, 1, 1)),
    ((0.5, 0.5, 0.5, 0.5), 0.990196, (1, 1, 1, 1), 0.727186, (1, 1, 1, 1)),
    (
        (0.9, 0.6, 0.3, 0.1),
        *(1.998481, (0.027294, 0.435787, 1.333464, 2.203455)),
        *(0.999720, (0.190575, 0.762004, 1.333299, 1.714121)),
    ),
    (
        (0.9, 0.6, 0.3, 0),
        *(2.000000, (0.024096, 0.385542, 1.180723, 2.409639)),
        *(1.000000, (0.181818, 0.727273, 1.272727, 1.818182)),
    ),
    (
        (1, 0.8, 0.5, 0.2),
        *(1.954577, (0, 0.181663, 1.089109, 2.729227)),
        *(0.991523, (0, 0.538074, 1.334776, 2.127150)),
    ),
    (
        (0.95, 0.9, 0.92, 0.9),
        *(1.021974, (0.598981, 1.216349, 0.968320, 1.216349)),
        *(0.739613, (0.695030, 1.160510, 0.983950, 1.160510)),
    ),
]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: str(row[0]))
def test_dynamic_tau_and_weights_are_the_papers_and_the_released_codes(row: Any) -> None:
    accuracy, paper_tau, paper_weights, release_tau, release_weights = row
    accuracy = double(*accuracy)

    assert float(_tau(accuracy, "dynamic")) == pytest.approx(paper_tau, abs=1e-6)
    assert float(_tau(accuracy, "dynamic_release")) == pytest.approx(release_tau, abs=1e-6)
    close(cdb_weights(accuracy, tau="dynamic"), double(*paper_weights), 1e-5)
    close(cdb_weights(accuracy, tau="dynamic_release"), double(*release_weights), 1e-5)


def test_three_classes_by_hand() -> None:
    accuracy = double(0.75, 0.5, 0.0)

    # d = 1/4, 1/2, 1. Their sum is 7/4, so weights are d * 3 / (7/4) = d * 12/7.
    close(cdb_weights(accuracy, tau=1), double(3 / 7, 6 / 7, 12 / 7), 1e-12)
    # d^2 = 1/16, 1/4, 1: the sum is 21/16, the weights d^2 * 48/21.
    close(cdb_weights(accuracy, tau=2), double(1 / 7, 4 / 7, 16 / 7), 1e-12)


def test_a_class_never_measured_has_weight_one_and_no_part_in_the_mean_or_in_tau() -> None:
    with_gap = cdb_weights(double(0.9, NAN, 0.6, 0.3, 0.1))
    without = cdb_weights(double(0.9, 0.6, 0.3, 0.1))

    close(with_gap, torch.cat([without[:1], double(1), without[1:]]), 1e-12)


@pytest.mark.parametrize("tau", [0, 1, 2.5, "dynamic", "dynamic_release"])
def test_all_solved_weigh_one_each(tau: Tau) -> None:
    assert cdb_weights(double(1, 1, NAN, 1), tau=tau).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("tau", [0.5, 1, "dynamic", "dynamic_release"])
def test_a_class_that_alone_is_solved_weighs_nothing(tau: Tau) -> None:
    assert cdb_weights(double(1, 0.5, 0.5), tau=tau).tolist() == [0, 1.5, 1.5]


def test_tau_zero_weighs_every_class_alike() -> None:
    assert cdb_weights(double(1, 0.5, NAN, 0), tau=0).tolist() == [1, 1, 1, 1]


def test_powers_too_small_for_a_float_keep_their_proportions() -> None:
    # 0.5^1060 is below the normal range of a double, and 0.5^3000 is 0.
    for tau in (1060, 3000):
        close(cdb_weights(double(0.5, 0.5, 0.75), tau=tau), double(1.5, 1.5, 0))


def test_weights_keep_the_type_of_the_accuracies() -> None:
    assert cdb_weights(torch.rand(3)).dtype == torch.float32
    assert cdb_weights(torch.rand(3).double()).dtype == torch.float64


accuracies = st.lists(
    st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, NAN]), min_size=1, max_size=20
).filter(lambda values: not all(map(math.isnan, values)))
taus = st.floats(0, 1e6) | st.sampled_from([*get_args(DynamicTau), 0, 1, 2])


@given(values=accuracies, tau=taus)
@settings(deadline=None, database=None)
def test_weights_are_finite_not_negative_and_mean_one_over_the_measured(
    values: list[float], tau: Tau
) -> None:
    accuracy = torch.tensor(values)

    weights = cdb_weights(accuracy, tau=tau)

    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert float(weights[~accuracy.isnan()].mean()) == pytest.approx(1, abs=1e-5)
    assert (weights[accuracy.isnan()] == 1).all()


@given(values=accuracies, tau=taus)
@settings(deadline=None, database=None)
def test_a_harder_class_never_weighs_less(values: list[float], tau: Tau) -> None:
    accuracy = torch.tensor([value for value in values if not math.isnan(value)])

    weights = cdb_weights(accuracy, tau=tau)

    assert (weights[accuracy.argsort(descending=True)].diff() >= 0).all()


@given(values=accuracies, tau=taus, data=st.data())
@settings(deadline=None, database=None)
def test_renumbering_the_classes_renumbers_the_weights(
    values: list[float], tau: Tau, data: st.DataObject
) -> None:
    accuracy = torch.tensor(values)
    order = data.draw(st.permutations(range(len(values))))

    close(cdb_weights(accuracy[order], tau=tau), cdb_weights(accuracy, tau=tau)[order], 1e-5)


@pytest.mark.parametrize(
    ("accuracy", "tau", "message"),
    [
        (double(0.5, 1.2), 1, r"class_accuracy\[1\] must be in \[0, 1\] or NaN, got 1.2"),
        (double(-0.1, 0.2), 1, r"class_accuracy\[0\] .*got -0.1"),
        (double(0.1, math.inf), 1, r"class_accuracy\[1\] .*got inf"),
        (double(NAN, NAN), 1, "class_accuracy is NaN for every one of 2 classes"),
        (torch.ones(2, 3), 1, r"class_accuracy must be \(K,\), got shape \(2, 3\)"),
        (torch.tensor([0, 0, 1]), 1, "class_accuracy .*floating-point.*got torch.int64"),
        (double(0.5), -3, "tau must be a number >= 0 or one of dynamic, .*, got -3"),
        (double(0.5), NAN, "tau .*got nan"),
        (double(0.5), math.inf, "tau .*got inf"),
        (double(0.5), True, "tau .*got True"),
        (double(0.5), "dynamics", "tau .*got 'dynamics'"),
    ],
)
def test_a_bad_value_is_refused_by_name(accuracy: Tensor, tau: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cdb_weights(accuracy, tau=tau)
