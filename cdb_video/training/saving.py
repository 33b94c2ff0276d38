"""When a checkpoint is written, and when a run leaves after it."""

from __future__ import annotations

import time

from cdb_video import distributed
from cdb_video.distributed import Ranks
from cdb_video.errors import StoppedError
from cdb_video.training.checkpoint import CheckpointFolder, NoCheckpoints
from cdb_video.training.run_log import RunLog
from cdb_video.training.signals import StopRequest
from cdb_video.training.state import TrainState, split_state
from cdb_video.training.step_log import StepLog


class Saving:
    """Saves between two steps, where any rank asks for it, on all ranks at the same step.

    Args:
        state: of the training.
        checkpoints: where it is written.
        step_log: is brought up to date before a save.
        log: is told of saves.
        ranks: which process this is.
        every_steps: steps between saves in the middle of an epoch; None: none by number.
        every_minutes: minutes between them, by rank 0's clock; None: none by time.
        stop: whether this process was asked to stop.

    """

    def __init__(
        self,
        state: TrainState,
        checkpoints: CheckpointFolder | NoCheckpoints,
        step_log: StepLog,
        log: RunLog,
        *,
        ranks: Ranks,
        every_steps: int | None,
        every_minutes: float | None,
        stop: StopRequest,
    ) -> None:
        self.state = state
        self.checkpoints = checkpoints
        self.step_log = step_log
        self.log = log
        self.ranks = ranks
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.stop = stop
        self._agreement = distributed.Agreement()
        self._saved_at = time.monotonic()
        self._has_saved = False

    def between_steps(self) -> None:
        """Save where it is due, and leave where a rank was asked to.

        Raises:
            StoppedError: the state is saved.

        """
        position = self.state.position
        self._note()
        stop, is_time = self._agreement.exchange(self.stop.received, self._is_time())
        if stop:
            self.save_and_stop()
        # On several ranks the answer is of the step before, which may have ended with a save.
        is_time = is_time and not self._has_saved
        self._has_saved = False
        is_step = self.every_steps is not None and position.step % self.every_steps == 0
        # The end of an epoch has a save of its own, after its evaluation.
        if (is_step or is_time) and position.steps < position.steps_per_epoch:
            self.save()

    def after_epoch(self) -> None:
        """Leave where a rank was asked to at the last step: an evaluation may be long.

        Raises:
            StoppedError: the state is saved.

        """
        if any(self._agreement.settle()[:1]):
            self.save_and_stop()

    def keeps_going(self) -> bool:
        """Whether no rank was asked to stop, in an evaluation; every rank asks as often."""
        return not self._agreement.exchange(self.stop.received, False)[0]

    def save(self) -> None:
        """Write a checkpoint; every rank takes part."""
        self.step_log.settle()
        state = self.state
        model, training = split_state(state.state_dict())
        self.checkpoints.save(state.position.step, model=model, training=training, best=state.best)
        self._saved_at = time.monotonic()
        self._has_saved = distributed.world_size() > 1
        self._note()

    def save_and_stop(self) -> None:
        """Write a checkpoint, wait until it is on the disk, and leave."""
        self._agreement.settle()
        self.save()
        self.finish()
        position = self.state.position
        by = self.stop.by
        self.log.write("stop", epoch=position.epochs_done, step=position.step, signal=by)
        reason = (
            f"stopped by {by} in epoch {position.epoch + 1}, and saved step-{position.step}: "
            "--resume goes on from there"
        )
        # Before any rank leaves: that is a failure to torchrun, which then ends the others.
        self.checkpoints.mark_stopped(reason)
        distributed.barrier()
        raise StoppedError(reason)

    def finish(self) -> None:
        """Wait until every checkpoint is on the disk."""
        self.checkpoints.close()
        self._note()

    def _is_time(self) -> bool:
        passed = time.monotonic() - self._saved_at
        is_time = self.every_minutes is not None and passed >= 60 * self.every_minutes
        return is_time and self.ranks.is_main

    def _note(self) -> None:
        for saved in self.checkpoints.take_finished():
            self.log.write(
                "save",
                epoch=saved.step / self.state.position.steps_per_epoch,
                step=saved.step,
                checkpoint=saved.path.name,
                bytes=saved.num_bytes,
                seconds=saved.seconds,
                waited_s=saved.waited_s,
            )
