"""Imported by each rank, see `signals.in_evaluation`: rank 1 is asked to stop after a batch."""

import os
import signal

from cdb_video.training.trainer import Trainer

_keep_going = Trainer.keep_going


def with_signal(self: Trainer, videos_done: int) -> bool:
    """As ever, and on rank 1 with a signal."""
    if self.ranks.rank == 1 and not self.saving.stop.received:
        os.kill(os.getpid(), signal.SIGTERM)
    return _keep_going(self, videos_done)


Trainer.keep_going = with_signal  # type: ignore[method-assign]
