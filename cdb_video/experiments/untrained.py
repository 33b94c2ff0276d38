"""A recipe before its first step, as a run: what its backbone sees is worth saving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cdb_video.build import build_initial_model
from cdb_video.build_data import Data, read_data
from cdb_video.config_file import load_config
from cdb_video.experiments.runs import LoadedRun


def untrained_run(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> tuple[LoadedRun, Data]:
    """A recipe's model with the weights it starts from and random heads, and its data.

    Raises:
        UserError: a recipe, weights or data that cannot be used.
    """
    config = load_config(recipe, overrides)
    data = read_data(config, check_files=not quiet)
    torch.manual_seed(config.run.seed)
    model = build_initial_model(config, data, torch.device(device), quiet=quiet)
    folder = Path(config.run.output_dir)
    run = LoadedRun(model.eval(), data.classes, config, checkpoint=recipe, folder=folder)
    return run, data
