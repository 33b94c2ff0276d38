"""What a run tells while an epoch runs: the loop waits for the device here, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from cdb_video import distributed
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import RunError
from cdb_video.losses import MultiHeadLoss
from cdb_video.training.bad_steps import BadStep, StepGate
from cdb_video.training.run_log import RunLog
from cdb_video.training.state import TrainState


class StepLog:
    """Reads what the steps left on the device, and writes it down.

    Args:
        state: of the training.
        gate: knows the steps that were not applied.
        criterion: weighs the heads.
        records: the training clips, for their names.
        max_bad_steps: steps in a row that may have bad numbers; a whole epoch of them at most.
        log: where it is written.

    """

    def __init__(
        self,
        state: TrainState,
        gate: StepGate,
        criterion: MultiHeadLoss,
        records: Sequence[VideoRecord],
        *,
        max_bad_steps: int,
        log: RunLog,
    ) -> None:
        self.state = state
        self.gate = gate
        self.criterion = criterion
        self.records = records
        self.max_bad_steps = max_bad_steps
        self.log = log
        self.start()

    def start(self) -> None:
        """Seconds a step count from here."""
        self._last = self.state.position.step, time.perf_counter()

    def write(self, *, lr_factor: float, clips_per_s: float) -> dict[str, float]:
        """A line with the mean losses since the last one; its loss and learning rate, to show.

        Raises:
            RunError: bad numbers, see `note_bad_steps`.
            DecodeError: more clips were left out than may be.

        """
        state = self.state
        self.settle()
        sums = distributed.all_reduce(state.loss_sums.cpu().clone())
        state.loss_sums.zero_()
        if not sums[-1]:
            return {}  # every clip was left out, or of a step that was not applied
        losses = self._mean_losses(sums)
        lr = max(group["peak_lr"] for group in state.optimizer.param_groups) * lr_factor
        self.log.write(
            "train",
            epoch=state.position.epochs_done,
            step=state.position.step,
            lr=lr,
            clips_per_s=clips_per_s,
            step_s=self._step_s(),
            loss_scale=state.scaler.get_scale(),
            **losses,
        )
        return {"loss": losses["loss"], "lr": lr}

    def settle(self) -> None:
        """Write down the bad steps and the clips left out since the last reading."""
        self.note_bad_steps()
        skipped = self.state.skipped
        if distributed.any_rank(skipped.num_noted > 0):
            found = skipped.gather()
            skipped.add(found, epoch=self.state.position.epochs_done, log=self.log)

    def note_bad_steps(self) -> None:
        """Log the steps that were not applied.

        Raises:
            RunError: there were too many in a row.

        """
        state = self.state
        most = min(self.max_bad_steps, state.position.steps_per_epoch)
        for bad in self.gate.read():
            state.bad_streak = state.bad_streak + 1 if bad else 0
            if bad is None:
                continue
            names = [self.records[index].id for index in bad.clips]
            epoch = state.position.epochs_done
            self.log.write("bad_step", epoch=epoch, step=bad.step, reason=bad.reason, clips=names)
            if state.bad_streak >= most:
                raise RunError(self._too_many(bad, names))

    def _too_many(self, bad: BadStep, names: Sequence[str]) -> str:
        in_a_row = self.state.bad_streak
        more = ", ..." if len(names) > 4 else ""
        return (
            f"train.max_bad_steps={self.max_bad_steps}: the {bad.reason} is no finite number in "
            f"{in_a_row} steps in a row, the last of them step {bad.step} (clips "
            f"{', '.join(names[:4])}{more}); start a run with a lower optim.lr, with "
            "train.clip_grad_norm, or with train.precision=fp32"
        )

    def _step_s(self) -> float:
        """Seconds a step since the last line, with all that was waited for and saved between."""
        step, before = self._last
        now = self.state.position.step, time.perf_counter()
        self._last = now
        return (now[1] - before) / max(now[0] - step, 1)

    def _mean_losses(self, sums: Tensor) -> dict[str, float]:
        heads = list(self.state.train_counts)
        means = dict(zip(heads, (sums[:-1] / sums[-1]).tolist(), strict=True))
        weights = self.criterion.head_weights
        total = sum(weights[head] * mean for head, mean in means.items())
        return {"loss": total, **{f"loss_{head}": mean for head, mean in means.items()}}
