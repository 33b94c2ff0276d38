"""A NaN or an infinity in a clip, a loss or a gradient changes no part of the state."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdb_video.build import build_trainer
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks
from cdb_video.training.trainer import Trainer
from tests.reliability.jobs import ForkedJob, events, make_data, write_config
from tests.reliability.outcome import Outcome, Row
from tests.states import differences

PLACES = ("clip", "loss", "gradient")
CASES = [
    *product(PLACES, (math.nan, math.inf), ("fp32", "bf16", "fp16"), (1, 2, 5)),
    # Finite, and its norm is not.
    ("gradient", 1e25, "fp32", 2),
]
"""Where, what, in which precision, in which step."""
TWO_RANKS = "tests.reliability.bad_rank"


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every case on one process, and every place on one of two ranks."""
    data = make_data(folder / "data", train=24)
    failures = []
    for place, value, precision, step in CASES[:count]:
        found = inject(data, folder, place, value, precision, step)
        failures += [f"{place}, {value}, {precision}, step {step}: {line}" for line in found]
    for place in PLACES:
        failures += [f"{place} of one of two ranks: {line}" for line in on_two(data, folder, place)]
    return Outcome(min(count, len(CASES)) + len(PLACES), tuple(failures))


def inject(
    data: Path, folder: Path, place: str, value: float, precision: str, bad_step: int
) -> list[str]:
    """What of the state one step with a bad number changed, and what was not recorded of it."""
    train = {"ema": 0.9, "precision": precision, "global_batch_size": 4, "save_every_steps": None}
    config = load_config(write_config(data, folder / "none", train=train))
    trainer = build_trainer(config, ranks=Ranks(), quiet=True)
    with closing(trainer.log):
        batches = trainer.loader.epoch(0)
        for step, batch in enumerate(batches, 1):
            before = snapshot(trainer)
            undo = plant(trainer, place, value) if step == bad_step else None
            trainer.train_step(batch)
            if undo is not None:
                undo()
                break
        return judge(trainer, before, place, batch.indices.tolist(), bad_step)


def judge(
    trainer: Trainer, before: dict[str, Any], place: str, clips: list[int], step: int
) -> list[str]:
    """Lines for what differs from before the step, and for what was told of it."""
    found = differences(snapshot(trainer), before)
    told = [bad for bad in trainer.gate.read() if bad]
    overflow = place == "gradient" and trainer.options.precision == "fp16"
    if overflow and not told:  # the scaler's to mend
        return found
    if [bad.step for bad in told] != [step]:
        return [*found, f"recorded {told}"]
    # Of a step in parts the clips of the part are named, and always some.
    if not told[0].clips or not set(told[0].clips) <= set(clips):
        found.append(f"clips {told[0].clips} are not of {clips}")
    return found


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """The protected parts: all but the position, and the scale, which a bad step may lower."""
    state = trainer.state.state_dict()
    kept = {part: value for part, value in state.items() if part not in ("progress", "scaler")}
    # AdamW knows no moments before its first step, and zeros after one that was not applied.
    optimizer = kept["optimizer"]["state"]
    names = ("step", "exp_avg", "exp_avg_sq")
    moments = {
        index: {name: optimizer.get(index, {}).get(name) for name in names}
        for index in range(len(list(trainer.model.parameters())))
    }
    kept["optimizer"] = {
        index: {
            name: torch.zeros(()) if value is None or not bool(value.any()) else value.clone()
            for name, value in of_weight.items()
        }
        for index, of_weight in moments.items()
    }
    return copied(kept)


def copied(value: Any) -> Any:
    """A copy whose tensors are not the trainer's."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


def plant(trainer: Trainer, place: str, value: float) -> Callable[[], None]:
    """Put a bad number into the next step; what takes it out again is returned."""
    if place == "clip":
        hook = trainer.to_input.register_forward_hook(lambda m, i, out: spoilt(out, value))
    elif place == "loss":
        hook = trainer.criterion.register_forward_hook(
            lambda m, i, out: {head: loss + value for head, loss in out.items()}
        )
    else:
        weight = next(trainer.model.parameters())
        hook = weight.register_hook(lambda gradient: spoilt(gradient, value))
    return hook.remove


def spoilt(tensor: Tensor, value: float) -> Tensor:
    """The tensor with one number replaced."""
    tensor = tensor.clone()
    tensor[(0,) * tensor.ndim] = value
    return tensor


def on_two(data: Path, folder: Path, place: str) -> list[str]:
    """What went wrong on the ranks, one of which had the bad number."""
    output = folder / f"two-{place}"
    config = write_config(data, output, train={"ema": 0.9, "epochs": 1})
    job = ForkedJob(
        [str(config)],
        num_ranks=2,
        folder=folder / f"two-{place}-log",
        prepare=TWO_RANKS,
        environment={"PLACE": place, "OUT": str(output)},
    )
    job.wait()
    found = [output / f"rank{rank}.json" for rank in range(2)]
    if not all(path.exists() for path in found):
        return [job.output()]
    lines = [json.loads(path.read_text()) for path in found]
    told = events(output / "tiny")
    bad = [(event["step"], event["reason"]) for event in told if event["event"] == "bad_step"]
    reason = "gradient" if place == "gradient" else "loss"
    if bad != [(2, reason)]:
        lines.append(f"recorded {bad}")
    return [str(line) for line in lines if line]


def check_second_step() -> None:
    """On a rank: let rank 1's second step have a bad number, and write down what it changed."""
    train_step = Trainer.train_step
    place, out = os.environ["PLACE"], Path(os.environ["OUT"])

    def checked(self: Trainer, batch: Any) -> None:
        second = self.state.position.step == 1
        before = snapshot(self) if second else {}
        undo = plant(self, place, math.nan) if second and self.ranks.rank == 1 else None
        train_step(self, batch)
        if undo is not None:
            undo()
        if second:
            found = differences(snapshot(self), before)
            (out / f"rank{self.ranks.rank}.json").write_text(json.dumps(found))

    Trainer.train_step = checked  # type: ignore[method-assign]


ROW = Row(
    name="bad_numbers",
    promise="NaN and infinity in a clip, the loss or a gradient (fp32, bf16, fp16; also of one of "
    "two ranks) change no part of the state but the loss scale, and are recorded",
    measure=measure,
    quick=len(CASES),
    full=len(CASES),
)
