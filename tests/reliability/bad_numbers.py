"""A NaN or an infinity in a clip, a loss or a gradient changes no part of the state."""

from __future__ import annotations

import hashlib
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
VALUES = (math.nan, math.inf)
PRECISIONS = ("fp32", "bf16", "fp16")
CASES = [
    *product(PLACES, VALUES, PRECISIONS, (1, 2, 5)),
    # Finite, and its norm is not.
    ("gradient", 1e25, "fp32", 2),
]
"""Where, what, in which precision, in which step."""
ON_RANKS = list(product(PLACES, VALUES))
"""One after another in a job: every second step has one, on another rank in turn."""
PREPARE = "tests.reliability.bad_rank"
QUICK = len(CASES) + len(PRECISIONS) * len(ON_RANKS)
FULL = QUICK + len(PRECISIONS) * len(ON_RANKS)


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every case on one process, and every place and value on one of two ranks; of three in FULL.

    All of them, whatever the count.
    """
    data = make_data(folder / "data", train=24)
    failures = []
    for place, value, precision, step in CASES:
        found = inject(data, folder, place, value, precision, step)
        failures += [f"{place}, {value}, {precision}, step {step}: {line}" for line in found]
    full = count >= FULL
    for ranks, precision in product((2, 3) if full else (2,), PRECISIONS):
        found = on_ranks(data, folder, ranks, precision)
        failures += [f"one of {ranks} ranks, {precision}: {line}" for line in found]
    return Outcome(FULL if full else QUICK, tuple(failures))


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


def on_ranks(data: Path, folder: Path, num_ranks: int, precision: str) -> list[str]:
    """What went wrong on the ranks, one of which had a bad number in every second step."""
    output = folder / f"{num_ranks}-{precision}"
    batch = 2 * num_ranks
    epochs = 2 * len(ON_RANKS) * batch // 24
    train = {"ema": 0.9, "epochs": epochs, "precision": precision, "global_batch_size": batch}
    train |= {"save_every_steps": None, "log_every": 6}
    config = write_config(data, output, train=train)
    job = ForkedJob(
        [str(config)],
        num_ranks=num_ranks,
        folder=folder / f"{output.name}-log",
        prepare=PREPARE,
        environment={"OUT": str(output)},
    )
    statuses = job.wait()
    if statuses != [0] * num_ranks:
        return [f"exit statuses {statuses}: {job.output()}"]
    steps = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
    lines = []
    for number, of_ranks in enumerate(zip(*steps, strict=True), 1):
        lines += [
            f"step {number} changed {step['changed']}" for step in of_ranks if step["changed"]
        ]
        if len({(step["scale"], step["weights"]) for step in of_ranks}) > 1:
            lines.append(f"after step {number} the ranks differ in weights or loss scale")
    told = [event for event in events(output / "tiny") if event["event"] == "bad_step"]
    expected = [
        (2 * (case + 1), "gradient" if place == "gradient" else "loss")
        for case, (place, _) in enumerate(ON_RANKS)
        if place != "gradient" or precision != "fp16"  # the scaler's to mend
    ]
    if [(event["step"], event["reason"]) for event in told] != expected:
        lines.append(f"recorded {told}")
    if not all(event["clips"] for event in told):
        lines.append(f"recorded no clips: {told}")
    return lines if len(steps[0]) == 2 * len(ON_RANKS) else [*lines, f"{len(steps[0])} steps"]


def check_steps() -> None:
    """On a rank: let its bad steps have their numbers, and write down what steps changed."""
    train_step = Trainer.train_step
    out = Path(os.environ["OUT"])
    steps: list[dict[str, Any]] = []

    def checked(self: Trainer, batch: Any) -> None:
        case, is_bad = divmod(self.state.position.step, 2)
        before = snapshot(self) if is_bad else {}
        undo = None
        if is_bad and case % self.ranks.world_size == self.ranks.rank:
            undo = plant(self, *ON_RANKS[case])
        train_step(self, batch)
        if undo is not None:
            undo()
        weights = b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())
        steps.append(
            {
                "changed": differences(snapshot(self), before) if is_bad else [],
                "scale": self.scaler.get_scale(),
                "weights": hashlib.sha256(weights).hexdigest(),
            }
        )
        (out / f"rank{self.ranks.rank}.json").write_text(json.dumps(steps))

    Trainer.train_step = checked  # type: ignore[method-assign]


ROW = Row(
    name="bad_numbers",
    promise="NaN and infinity in a clip, the loss or a gradient, each in fp32, bf16 and fp16, in "
    "one process and on one of two ranks (in full also of three), change no part of the state but "
    "the loss scale, in which the ranks agree, and are recorded, but for overflows that lower it",
    measure=measure,
    quick=QUICK,
    full=FULL,
)
