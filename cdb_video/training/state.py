"""Everything that the next step depends on, part by part: what a checkpoint holds.

Order and randomness are no part of it. Which clips a step takes, and how they are cut, is a
function of (seed, epoch, index); dropout is one of (seed, step, rank); the learning rate is one of
the position. So a position in the data is two numbers, and no generator's state has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdb_video import distributed
from cdb_video.counts import ClassCounts
from cdb_video.errors import RunError
from cdb_video.training.averaging import AveragedWeights, NoAverage
from cdb_video.training.class_sampling import ClassSampling
from cdb_video.training.optim import load_optimizer
from cdb_video.training.skipping import SkippedClips

PARTS = (
    "model",
    "averaged",
    "optimizer",
    "scaler",
    "criterion",
    "sampling",
    "counts",
    "ranks",
    "progress",
    "skipped",
)


@dataclass
class Position:
    """How far the run is."""

    epoch: int = 0
    """Epochs done, their evaluation included."""
    steps: int = 0
    """Steps done of the epoch that is running."""
    step: int = 0
    """Steps done in all."""
    steps_per_epoch: int = 1

    @property
    def epochs_done(self) -> float:
        """With the part of the epoch that is running."""
        return self.epoch + self.steps / self.steps_per_epoch

    def end_epoch(self) -> None:
        """The running epoch is over, its evaluation included."""
        self.epoch, self.steps = self.epoch + 1, 0


@dataclass
class TrainState:
    """The parts of a training, saved and restored together; one object a rank.

    What ranks have in common is saved once. What only one rank knows is either counted (clips seen:
    summed over the ranks, and given to rank 0 again), or kept a rank (batch norm's running
    statistics, which ranks average when an epoch ends).
    """

    model: nn.Module
    averaged: AveragedWeights | NoAverage
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    criterion: nn.Module
    sampling: ClassSampling | None
    train_counts: Mapping[str, ClassCounts]
    loss_sums: Tensor
    """Loss of every head, and clips, since the last line of the log."""
    skipped: SkippedClips
    clips: str
    """What the training clips are told from others by."""
    position: Position
    bad_streak: int = 0
    """Steps in a row up to now that had bad numbers."""
    best: Mapping[str, Any] | None = None
    """The best epoch so far, see `selection.better_of`."""

    def state_dict(self) -> dict[str, Any]:
        """Part -> its state, the same on every rank; every rank has to call it."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": _with_summed_counts(self.criterion.state_dict()),
            "sampling": self.sampling.state_dict() if self.sampling else {},
            "counts": self._summed_counts(),
            "ranks": distributed.gather_objects(self._of_this_rank()),
            "progress": {
                "epoch": self.position.epoch,
                "steps": self.position.steps,
                "step": self.position.step,
                "bad_streak": self.bad_streak,
                "best": self.best,
                "clips": self.clips,
            },
            "skipped": dict(self.skipped.reasons),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, on any number of ranks.

        Raises:
            RunError: a part is missing or unknown, or the training clips are others.

        """
        check_state(state, clips=self.clips)
        progress = state["progress"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.criterion.load_state_dict(_counts_on_rank_0(state["criterion"]))
        if self.sampling:
            self.sampling.load_state_dict(state["sampling"])
        for head, counts in self.train_counts.items():
            counts.to_dict()["table"].copy_(_on_rank_0(state["counts"][head]))
        self._take_up_ranks(state["ranks"])
        position = self.position
        position.epoch, position.steps = progress["epoch"], progress["steps"]
        position.step = progress["step"]
        self.bad_streak, self.best = progress["bad_streak"], progress["best"]
        self.skipped.reasons = dict(state["skipped"])

    def _summed_counts(self) -> dict[str, Tensor]:
        # Between two epochs the counts are those of the one that is over: the next one resets them.
        tables = {
            head: counts.to_dict()["table"] * bool(self.position.steps)
            for head, counts in self.train_counts.items()
        }
        return {head: distributed.all_reduce(table) for head, table in tables.items()}

    def _of_this_rank(self) -> dict[str, Any]:
        modules = {"model": self.model, "averaged": self.averaged.model}
        statistics = {
            name: {key: value.cpu() for key, value in float_buffers(module).items()}
            for name, module in modules.items()
            if module is not None
        }
        return {**statistics, "loss_sums": self.loss_sums.cpu()}

    def _take_up_ranks(self, ranks: list[Mapping[str, Any]]) -> None:
        rank, world_size = distributed.rank(), distributed.world_size()
        own = ranks[rank] if len(ranks) == world_size else None
        for name, module in {"model": self.model, "averaged": self.averaged.model}.items():
            for key, buffer in float_buffers(module).items():
                # On another number of ranks no rank goes on with its own: all have the mean.
                values = [part[name][key] for part in (ranks if own is None else [own])]
                buffer.copy_(torch.stack(values).double().mean(0))
        sums = [part["loss_sums"] for part in ranks]
        self.loss_sums.copy_(_on_rank_0(sum(sums)) if own is None else own["loss_sums"])


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as a checkpoint has it: the weights that are evaluated, and the rest.

    With averaged weights these are the ones; the trained ones are then part of the rest.
    """
    rest = dict(state)
    if not state["averaged"]:
        return rest.pop("model"), rest
    rest["averaged"] = {"updates": state["averaged"]["updates"]}
    return state["averaged"]["model"], rest


def join_state(model: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """What was given to `split_state`."""
    if not rest.get("averaged"):
        return {"model": model, **rest}
    return {**rest, "averaged": {**rest["averaged"], "model": model}}


def check_state(state: Mapping[str, Any], *, clips: str) -> None:
    """Refuse a state that a run cannot go on from.

    Args:
        state: as `join_state` gives it.
        clips: what the training clips are told from others by.

    Raises:
        RunError: a part is missing or unknown, or the training clips are others.

    """
    missing = [part for part in PARTS if part not in state]
    unknown = [part for part in state if part not in PARTS]
    if missing or unknown:
        raise RunError(
            "the checkpoint's training state is another version's: "
            + "; ".join(
                f"{what} {', '.join(parts)}"
                for what, parts in (("it lacks", missing), ("unknown:", unknown))
                if parts
            )
        )
    if state["progress"]["clips"] != clips:
        raise RunError(
            "the training clips, or their labels, are not those that the run was started with; "
            "start another run, with model.weights to begin from this one's"
        )


def float_buffers(module: nn.Module | None) -> dict[str, Tensor]:
    """Name -> buffer, for those of a floating-point type: batch norm's running statistics."""
    buffers = {} if module is None else dict(module.named_buffers())
    return {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}


def _is_count(name: str) -> bool:
    """Whether a buffer is `observed`, a loss's counts of this rank's clips of the epoch."""
    return name.rpartition(".")[2] == "observed"


def _with_summed_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: distributed.all_reduce(value.clone()) if _is_count(name) else value
        for name, value in state.items()
    }


def _counts_on_rank_0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _on_rank_0(value) if _is_count(name) else value for name, value in state.items()}


def _on_rank_0(counted: Tensor) -> Tensor:
    """The sum on rank 0 and nothing on the others, so that their sum is what it was."""
    return counted if distributed.rank() == 0 else torch.zeros_like(counted)
