"""What asks a run to stop, and what it leaves: the processes' side is in tests/reliability."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdb_video.build import build_trainer
from cdb_video.build_data import read_data
from cdb_video.config_file import load_config
from cdb_video.counts import ClassCounts
from cdb_video.distributed import Ranks
from cdb_video.errors import StoppedError
from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.experiments import open_run
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.signals import STOP_SIGNALS, StopRequest
from cdb_video.training.trainer import Trainer
from tests.states import differences, state_at
from tests.tiny import tiny_config
from tools.train import report_on_splits


def start(
    data: Path,
    runs: Path,
    *,
    resume: bool = False,
    loss: dict[str, Any] | None = None,
    **train: Any,
) -> Trainer:
    sizes = {"epochs": 2, "global_batch_size": 4}
    config = tiny_config(data, runs, loss=loss or {}, train={**sizes, **train})
    run, named = open_run(config, config_name="tiny", resume=resume, quiet=True)
    with closing(run):
        return build_trainer(named, ranks=Ranks(), run=run, quiet=True)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_a_flag_inside_the_block_alone(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()

    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.signal is number
    assert stop.received
    assert signal.getsignal(number) is before


def test_a_run_that_is_asked_to_stop_saves_after_the_step_and_ends_as_if_not(
    tiny_data: Path, tmp_path: Path
) -> None:
    whole = start(tiny_data, tmp_path / "whole")
    whole.fit()
    trainer = start(tiny_data, tmp_path / "runs")
    train_step = trainer.train_step

    def with_signal(batch: Any) -> None:
        if trainer.state.position.step == 3:  # in the second epoch
            os.kill(os.getpid(), signal.SIGUSR1)
        train_step(batch)

    trainer.train_step = with_signal  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match=r"by SIGUSR1 in epoch 2, and saved step-4: --resume"):
        trainer.fit()
    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["event"], last["step"], last["signal"]) == ("stop", 4, "SIGUSR1")

    start(tiny_data, tmp_path / "runs", resume=True).fit()

    states = [state_at(tmp_path / name / "tiny", 6) for name in ("runs", "whole")]
    assert differences(*states) == []


def test_a_signal_in_an_evaluation_ends_it_and_the_resumed_run_starts_it_again(
    tiny_data: Path, tmp_path: Path
) -> None:
    whole = start(tiny_data, tmp_path / "whole")
    whole.fit()
    trainer = start(tiny_data, tmp_path / "runs")
    validate = trainer.validate
    assert validate is not None

    def with_signal(model: Recognizer, last: bool, keep_going: Callable[[int], bool]) -> EvalReport:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(model, last, keep_going)

    trainer.validate = with_signal
    with pytest.raises(StoppedError, match=r"by SIGTERM in epoch 1, and saved step-3"):
        trainer.fit()
    assert not (tmp_path / "runs" / "tiny" / "report_val.json").exists()

    start(tiny_data, tmp_path / "runs", resume=True).fit()

    states = [state_at(tmp_path / name / "tiny", 6) for name in ("runs", "whole")]
    assert differences(*states) == []


def test_a_signal_between_validations_ends_the_pass_that_measures_difficulty(
    tiny_data: Path, tmp_path: Path
) -> None:
    few = {"loss": {"difficulty": {"max_clips_per_class": 2}}}
    start(tiny_data, tmp_path / "whole", eval_every=2, **few).fit()
    trainer = start(tiny_data, tmp_path / "runs", eval_every=2, **few)
    count = trainer.difficulty_pass
    assert count is not None

    def with_signal(model: Recognizer, keep_going: Callable[[int], bool]) -> dict[str, ClassCounts]:
        os.kill(os.getpid(), signal.SIGTERM)
        return count(model, keep_going)

    trainer.difficulty_pass = with_signal
    with pytest.raises(StoppedError, match=r"by SIGTERM in epoch 1, and saved step-3"):
        trainer.fit()

    start(tiny_data, tmp_path / "runs", resume=True, eval_every=2, **few).fit()

    states = [state_at(tmp_path / name / "tiny", 6) for name in ("runs", "whole")]
    assert differences(*states) == []


def test_a_stop_while_the_test_split_is_evaluated_is_in_the_log_too(
    tiny_data: Path, tmp_path: Path
) -> None:
    trainer = start(tiny_data, tmp_path)
    trainer.fit()
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        config = load_config(tmp_path / "tiny" / "config.yaml")
        with pytest.raises(StoppedError, match="stopped while evaluating test, after training"):
            report_on_splits(
                config, read_data(config), Ranks(), "cpu", stop, at=trainer.state.position
            )

    events = [
        json.loads(line) for line in (tmp_path / "tiny/metrics.jsonl").read_text().splitlines()
    ]
    assert (events[-1]["event"], events[-1]["signal"]) == ("stop", "SIGTERM")
    assert [event["event"] for event in events].count("eval") == 2  # nothing was taken back
    assert (tmp_path / "tiny" / "stopped.json").exists()


def test_a_checkpoint_is_due_by_the_clock_too(tiny_data: Path, tmp_path: Path) -> None:
    # A ten-thousandth of a second: after every step.
    trainer = start(tiny_data, tmp_path, epochs=1, save_every_minutes=1e-4 / 60, keep_last=9)

    trainer.fit()

    names = {path.name for path in (tmp_path / "tiny" / "checkpoints").glob("step-*")}
    assert names == {"step-1", "step-2", "step-3"}


def test_the_config_of_a_stopped_run_may_save_more_often(tiny_data: Path, tmp_path: Path) -> None:
    start(tiny_data, tmp_path, epochs=1).fit()

    again = start(tiny_data, tmp_path, resume=True, save_every_steps=1, rank_timeout_s=5)

    with closing(again.log):
        assert again.state.position.epoch == 1
