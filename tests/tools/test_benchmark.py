"""tools/benchmark.py as a user types it, and the arithmetic of its ratios with a clock of ours."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarks.timing import Clock, cost_ratio, interleave

BENCHMARK = Path(__file__).parent.parent.parent / "tools" / "benchmark.py"


class Machine:
    """Arms that take as long as they say, by a clock that nothing else moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    @property
    def clock(self) -> Clock:
        return Clock("made up", lambda: self.now)

    def run(self, name: str, seconds: float) -> None:
        self.calls.append(name)
        self.now += seconds


def test_every_round_runs_each_arm_once_in_alternating_order() -> None:
    machine = Machine()
    arms = {name: lambda name=name: machine.run(name, 1.0) for name in "abc"}

    interleave(arms, repeats=2, warm_up=1, clock=machine.clock)

    assert "".join(machine.calls) == "abc" + "cba" + "abc"


def test_an_arms_seconds_are_its_own_and_leave_out_the_warm_up() -> None:
    machine = Machine()
    slow = iter([100.0, 4.0, 6.0])
    arms = {"slow": lambda: machine.run("slow", next(slow)), "fast": lambda: machine.run("", 2.0)}

    seconds = interleave(arms, repeats=2, warm_up=1, clock=machine.clock)

    assert seconds == {"slow": [4.0, 6.0], "fast": [2.0, 2.0]}


def test_no_round_begins_after_the_limit_but_one_that_counts_always_does() -> None:
    machine = Machine()
    arms = {"a": lambda: machine.run("a", 5.0)}

    # At 5 after the warm-up, then at 10 and 15.
    assert interleave(arms, repeats=9, warm_up=1, clock=machine.clock, longest_s=15.0) == {
        "a": [5.0, 5.0]
    }
    assert interleave(arms, repeats=9, warm_up=1, clock=machine.clock, longest_s=1.0) == {
        "a": [5.0]
    }


def test_the_ratio_is_the_median_of_ratios_within_a_round() -> None:
    # 2/1, 10/2 and 90/30; the medians of the times alone would give 10/2.
    ratio = cost_ratio([2.0, 10.0, 90.0], [1.0, 2.0, 30.0])

    assert ratio.median == 3.0
    # Three draws of three have 2 as their median in 7 of 27 cases, and 5 in as many.
    assert ratio.interval == (2.0, 5.0)


def test_one_round_in_which_the_machine_was_busy_moves_nothing() -> None:
    ratio = cost_ratio([1.1] * 40 + [50.0], [1.0] * 41)

    assert ratio.median == pytest.approx(1.1)
    assert ratio.interval == pytest.approx((1.1, 1.1))


@pytest.mark.slow
def test_loss_times_steps_and_losses_alone(tmp_path: Path) -> None:
    arguments = ["loss", "--repeats", "3", "--device", "cpu", "--json", "out.json"]
    command = [sys.executable, str(BENCHMARK), *arguments]
    # From another folder, as a user may.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["benchmark"] == "loss"
    assert (report["clock"], report["precision"]) == ("CPU time", "fp32")
    assert {"python", "torch"} <= set(report["versions"])
    assert set(report["ratios"]) == {"cdb/cross_entropy", "cdb_alone/cross_entropy_alone"}
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        assert 0 < low <= ratio <= high
    assert {figures["rounds"] for figures in report["arms"].values()} == {3}
    assert all(figures["median_ms"] > 0 for figures in report["arms"].values())
    assert "cdb/cross_entropy" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--repeats", "0"], "must be at least 1, got 0"),
        (["loss", "--json", "nowhere/out.json"], "nowhere: no such folder"),
        (["loader", "--frame-size", "65x48"], "both must be even and above 0, got 65x48"),
        (["lossy"], "invalid choice: 'lossy'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    # In this process, to be quick: the folder of the script is what Python would put there.
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])

    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(BENCHMARK), run_name="__main__")

    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
