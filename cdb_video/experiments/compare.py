"""Train one configuration under several arms with paired seeds; a finished cell is not run again.

A cell, one arm at one seed, is an ordinary run folder. Every arm of a seed starts from the same
weights and sees the same clips in the same order, and is scored at its last epoch: choosing an
epoch on the validation split would favour the arms that do not train on it.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdb_video import build, distributed
from cdb_video.build_clips import Memory, build_evaluation_loader, choose_device, file_opener
from cdb_video.build_data import Data, load_into_memory, read_data
from cdb_video.build_evaluation import write_report
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError, RunError, RunIsHeldError
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.evaluation.report_page import finish_report_page
from cdb_video.experiments.cells import Cell, Comparison
from cdb_video.experiments.runs import MAY_DIFFER_ON_RESUME, differences, open_run
from cdb_video.files import write_text_atomically
from cdb_video.training.run_folder import RunFolder, git_state, versions

CELL_FILE = "cell.json"
"""Written last, when a cell is finished: its seconds an epoch."""
CONTROL = "cross_entropy + difficulty set"
REFERENCES = ("balanced_softmax", "cross_entropy", CONTROL)
"""The arms that others are contrasted with, where they are there: what CDB has to beat."""


@dataclass(frozen=True)
class Arm:
    """What one arm changes in the configuration."""

    name: str
    overrides: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """The name, as a folder."""
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name)


@dataclass(frozen=True)
class Plan:
    """A comparison to be run."""

    name: str
    folder: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    configs: Mapping[tuple[str, int], Config]
    """(arm, seed) -> configuration."""
    about: Mapping[str, Any]

    @property
    def references(self) -> tuple[str, ...]:
        """The arms that others are contrasted with; the first where none is a usual one."""
        names = [arm.name for arm in self.arms]
        return tuple(name for name in REFERENCES if name in names) or (names[0],)

    def cell_folder(self, arm: Arm, seed: int) -> Path:
        """The run folder of a cell."""
        return _cell_folder(self.folder, arm, seed)


def make_plan(
    config_path: Path,
    overrides: Sequence[str],
    *,
    losses: Sequence[str],
    arms: Sequence[str] = (),
    num_seeds: int = 5,
    name: str | None = None,
) -> Plan:
    """The cells of a comparison.

    Args:
        config_path: what every arm starts from.
        overrides: `section.key=value`, for every arm.
        losses: arms that differ in `loss.name` alone (ldam also in the head it needs).
        arms: `NAME=section.key=value ...`, for anything else.
        num_seeds: seeds 0, 1, ...
        name: of the comparison's folder in `run.output_dir`; None: `compare-` and the
            configuration's name.

    Raises:
        ConfigError: an arm whose configuration cannot be, or two of one name.
        RunError: a cell of another configuration stands in the folder.

    """
    base = load_config(config_path, overrides)
    planned = [_loss_arm(loss, base) for loss in losses] + [_parse_arm(text) for text in arms]
    _check_names(planned)
    configs = {arm.name: load_config(config_path, [*overrides, *arm.overrides]) for arm in planned}
    control = _control(planned, configs)
    if control is not None:
        planned.insert(_after_cross_entropy(planned), control)
        configs[control.name] = load_config(config_path, [*overrides, *control.overrides])
    for arm_name, config in configs.items():
        if config.data.test_split is None:
            raise ConfigError(f"data.test_split is null for {arm_name}: arms are compared on it")
    name = name or f"compare-{config_path.stem}"
    folder = Path(base.run.output_dir) / name
    seeds = tuple(range(num_seeds))
    cells = {}
    for arm in planned:
        for seed in seeds:
            cell_folder = _cell_folder(folder, arm, seed)
            cells[arm.name, seed] = _cell_config(configs[arm.name], cell_folder, seed)
            _refuse_another(cell_folder, cells[arm.name, seed], config_path)
    about = {
        "config": str(config_path),
        "command": shlex.join(sys.argv),
        "common_overrides": list(overrides),
        "overrides": {arm.name: list(arm.overrides) for arm in planned},
        "versions": versions(),
        "git": git_state(),
        "device": base.train.device,
    }
    return Plan(name, folder, tuple(planned), seeds, configs=cells, about=about)


def run_cells(plan: Plan, *, ranks: Ranks) -> Iterator[str]:
    """Run what is missing, cell by cell; yields a line after each.

    A cell that another process holds is left to it, so that the same command can be started on
    every GPU. One whose training fails, by a loss that is not finite, is finished too, and said so
    in the comparison. Data are read once for all arms that use the same.

    Raises:
        UserError: an arm or data that cannot be used, before any cell is run.

    """
    reader = _DataReader(ranks)
    for arm in plan.arms:
        config = plan.configs[arm.name, plan.seeds[0]]
        build.check(config, reader.read(config), ranks=ranks)
    # Seed by seed: an interrupted comparison has whole pairs.
    cells = [(arm, seed) for seed in plan.seeds for arm in plan.arms]
    for number, (arm, seed) in enumerate(cells, start=1):
        title = f"cell {number}/{len(cells)}: {arm.name}, seed {seed}"
        if distributed.broadcast_object((plan.cell_folder(arm, seed) / CELL_FILE).exists()):
            continue
        began = time.perf_counter()
        config = plan.configs[arm.name, seed]
        outcome = _run_cell(config, reader.read(config), ranks=ranks, title=title)
        if outcome:
            yield f"{title}: {outcome} in {time.perf_counter() - began:.0f} s"


class _DataReader:
    """The data of cells, read once for those that read the same."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._read: dict[str, Data] = {}
        self._memories: dict[str, Memory | None] = {}

    def read(self, config: Config) -> Data:
        data = config.data
        clips = f"{config.clip} {data.decoder} {data.in_memory} {data.untrusted}"
        drawn_by = config.run.seed if config.draws_images else None
        known = f"{config.data} {config.model.heads} {clips} {drawn_by}"
        if known not in self._read:
            found = read_data(config, check_files=self.ranks.is_main)
            memory = self._memories.setdefault(clips, found.memory)
            self._read[known] = replace(found, memory=memory)
        return self._read[known]


def finished(plan: Plan) -> Comparison:
    """The cells that are done so far."""
    cells, failures = [], []
    for arm in plan.arms:
        for seed in plan.seeds:
            folder = plan.cell_folder(arm, seed)
            if (folder / CELL_FILE).exists():
                about = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))
                if "failed" in about:
                    failures.append(f"{arm.name}, seed {seed}: {about['failed']}")
                    continue
                report = json.loads((folder / "report_test.json").read_text(encoding="utf-8"))
                cells.append(Cell(arm.name, seed, report, about["seconds_per_epoch"]))
    return Comparison(plan.name, tuple(cells), references=plan.references, failures=tuple(failures))


def _run_cell(config: Config, data: Data, *, ranks: Ranks, title: str) -> str | None:
    """Train and score a cell; "done", "failed", or None where another process holds it."""
    device = choose_device(config, ranks)
    with ExitStack() as stack:
        run = None
        if ranks.is_main:
            run = _open_cell(config, title)
            if run:
                stack.callback(run.close)
        if not distributed.broadcast_object(run is not None):
            return None
        if ranks.is_main:
            print(title, flush=True)
        load_into_memory(config, data, ["train", "val", "test"], ranks=ranks)
        trainer = build.build_trainer(config, data=data, ranks=ranks, run=run, quiet=True)
        first, began = trainer.state.position.epoch, time.perf_counter()
        try:
            trainer.fit()
        except RunError as error:  # on every rank: the loss is a sum over them
            if run:
                _write_cell(run, {"failed": str(error)})
            return "failed"
        epochs = trainer.state.position.epoch - first
        seconds = (time.perf_counter() - began) / epochs if epochs else None
        split = data.split("test")
        report = evaluate(
            trainer.model,
            build_evaluation_loader(config, split, ranks=ranks, memory=data.memory),
            device=device,
            precision=trainer.options.precision,
            micro_batch_size=config.train.micro_batch_size,
        )
        if run:
            write_report(
                run.path, report, config=config, classes=data.classes, split=split, role="test"
            )
            finish_report_page(
                run.path,
                "val",
                data.val.records if data.val else (),
                opener=file_opener(config, in_child=True),
            )
            _write_cell(run, {"seconds_per_epoch": seconds})
        distributed.barrier()
        return "done"


def _write_cell(run: RunFolder, about: Mapping[str, Any]) -> None:
    write_text_atomically(run.path / CELL_FILE, json.dumps(about) + "\n")


def _open_cell(config: Config, title: str) -> RunFolder | None:
    """The cell's folder, locked; None where another process holds it or has just finished it."""
    try:
        run, _ = open_run(config, config_name=title, resume=True, quiet=True)
    except RunIsHeldError:
        print(f"{title}: another process is at it")
        return None
    if (run.path / CELL_FILE).exists():
        run.close()
        return None
    return run


def _loss_arm(loss: str, base: Config) -> Arm:
    """The loss, with its own options: those of the configuration are of the configuration's."""
    overrides = [f"loss.name={loss}"]
    if loss != base.loss.name and base.loss.options:
        overrides.append("loss.options={}")
    if loss == "ldam":
        overrides.append("model.head_type=cosine")
    if loss == "logit_adjusted":
        overrides.append("loss.tau=dynamic")  # its own is in loss.options
    return Arm(loss, tuple(overrides))


def _parse_arm(text: str) -> Arm:
    name, equals, overrides = text.partition("=")
    words = tuple(shlex.split(overrides))
    if not equals or not name.strip() or not all("=" in word for word in words):
        raise ConfigError(
            f"--arm {text!r}: must be NAME='section.key=value ...', such as "
            "cdb_bs='loss.name=cdb loss.base=balanced_softmax'"
        )
    return Arm(name.strip(), words)


def _check_names(arms: Sequence[Arm]) -> None:
    if not arms:
        raise ConfigError("--losses or --arm: nothing to compare; give at least one")
    folders = [arm.folder_name for arm in arms]
    for arm in arms:
        if folders.count(arm.folder_name) > 1:
            raise ConfigError(f"--arm {arm.name}: two arms are written to {arm.folder_name}")


def _control(arms: Sequence[Arm], configs: dict[str, Config]) -> Arm | None:
    """Cross entropy with the difficulty set in training, where an arm is fed by held-out clips."""
    fed = [c for c in configs.values() if c.uses_difficulty and c.loss.difficulty.source == "val"]
    if not fed or CONTROL in [arm.name for arm in arms]:
        return None
    data = fed[0].data
    if data.val_split == "held_out":
        train = [f"data.hold_out_subjects={json.dumps([])}"]
    else:
        names = [data.train_split, data.val_split]
        flat = [n for name in names for n in ([name] if isinstance(name, str) else name or ())]
        train = [f"data.train_split={json.dumps(flat)}"]
    plain = ["loss.name=cross_entropy", "loss.options={}", "loss.defer=null"]
    return Arm(CONTROL, (*plain, "data.sampler=instance", "data.val_split=null", *train))


def _after_cross_entropy(arms: Sequence[Arm]) -> int:
    names = [arm.name for arm in arms]
    return names.index("cross_entropy") + 1 if "cross_entropy" in names else 0


def _cell_folder(folder: Path, arm: Arm, seed: int) -> Path:
    return folder / arm.folder_name / f"seed-{seed}"


def _cell_config(config: Config, folder: Path, seed: int) -> Config:
    run = config.run.model_copy(
        update={"name": folder.name, "output_dir": str(folder.parent), "seed": seed, "trackers": ()}
    )
    return config.model_copy(update={"run": run})


def _refuse_another(folder: Path, config: Config, config_path: Path) -> None:
    written = folder / "config.yaml"
    if not written.exists():
        return
    # What may differ when a run is resumed does not change its figures, but for data and length.
    may_differ = MAY_DIFFER_ON_RESUME - {"data.root", "train.epochs"}
    for key, (old, new) in differences(load_config(written), config).items():
        if key not in may_differ:
            raise RunError(
                f"{folder}: this cell was run with {key}={old}, and {config_path} with the "
                f"overrides has {new}; give --name for another comparison"
            )
