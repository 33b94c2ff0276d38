"""Where a run's figures and pictures go besides its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cdb_video.errors import ConfigError
from cdb_video.files import writing

WANDB_PROJECT = "cdb-video"
"""Where the environment's WANDB_PROJECT does not name another."""


class Tracker(Protocol):
    """Takes figures and pictures by name."""

    def add_scalars(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Numbers after a step."""

    def add_images(self, images: Mapping[str, np.ndarray], *, step: int) -> None:
        """Pictures (H, W, 3) uint8 after a step."""

    def close(self) -> None:
        """Write what is held back."""


class TensorBoard:
    """Event files in the run's folder.

    Args:
        folder: the run's.
        from_step: steps done; what an interrupted run wrote after them is hidden.

    Raises:
        RunError: of every method, where the files cannot be written.

    """

    def __init__(self, folder: Path, *, from_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = partial(_leave_to_caller, self._hook)
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=from_step + 1)

    def add_scalars(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Each under its name."""
        with writing(self._folder):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def add_images(self, images: Mapping[str, np.ndarray], *, step: int) -> None:
        """Each under its name."""
        with writing(self._folder):
            for name, image in images.items():
                self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        try:
            with writing(self._folder):
                self._writer.close()
        finally:
            threading.excepthook = self._hook


def _leave_to_caller(
    others: Callable[[threading.ExceptHookArgs], object], told: threading.ExceptHookArgs
) -> None:
    """TensorBoard's thread prints an error that it also raises at the next call; once is enough."""
    of_tensorboard = type(told.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(told.exc_value, OSError)):
        others(told)


class WeightsAndBiases:
    """A run of wandb, whose id stands in `wandb/id` of the run's folder: resuming continues it.

    The environment says the rest, as for any other program: WANDB_PROJECT, WANDB_ENTITY,
    WANDB_MODE=offline.

    Args:
        folder: the run's; wandb's own files go there too.
        name: shown for the run.
        config: shown beside it.

    Raises:
        ConfigError: wandb refuses, as without a key of its server.

    """

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        id_path = folder / "wandb" / "id"
        with writing(id_path):
            id_path.parent.mkdir(exist_ok=True)
            if not id_path.exists():
                id_path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
                id=id_path.read_text(encoding="utf-8").strip(),
                resume="allow",
                name=name,
                config=dict(config),
                dir=str(folder),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"run.trackers: wandb: {reason}; or set WANDB_MODE=offline, or leave wandb out"
            ) from None
        # Of its own steps, wandb drops one that was there before: those that a resumed run repeats.
        self._run.define_metric("*", step_metric="step")

    def add_scalars(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Each under its name, over `step`."""
        if scalars:
            self._run.log({"step": step, **scalars})

    def add_images(self, images: Mapping[str, np.ndarray], *, step: int) -> None:
        """Each under its name, over `step`."""
        import wandb

        self._run.log({"step": step} | {name: wandb.Image(image) for name, image in images.items()})

    def close(self) -> None:
        """Send the rest; a run that ends by an error is marked so."""
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))


def check_trackers(names: Sequence[str]) -> None:
    """See that what `run.trackers` names is installed, without importing it.

    Raises:
        ConfigError: it is not.

    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "run.trackers: wandb is not installed; pip install 'cdb-video[wandb]', or leave it out"
        )
