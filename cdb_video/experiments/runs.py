"""Runs as a whole: open one, load what it learned, score one of its splits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.build import build_model
from cdb_video.build_clips import (
    build_evaluation_loader,
    clip_sampler,
    evaluation_crops,
    record_opener,
)
from cdb_video.build_data import read_role, refuse_other_features
from cdb_video.build_weights import read_architecture, read_normalization
from cdb_video.clips.transforms import ToModelInput, crop, view_windows
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.datasets.annotations import Split, Vocabulary
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import ConfigError, RunError, StoppedError
from cdb_video.evaluation.evaluate import EvalReport, evaluate, to_the_end
from cdb_video.evaluation.predict import Ranking, Scorer
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.evaluation.timeline import Timeline
from cdb_video.evaluation.windows import ReportProgress, no_progress, predict_windows
from cdb_video.experiments.features import source_of
from cdb_video.models.base import place
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.saved_names import by_todays_names, require_names
from cdb_video.precision import Precision, use_fast_kernels
from cdb_video.prepare.precision_probe import probed_precision
from cdb_video.training import checkpoint
from cdb_video.training.run_folder import RunFolder, choose_run_folder

MAY_DIFFER_ON_RESUME = {
    "run.name",
    "run.output_dir",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "data.decode_timeout_s",
    "data.max_skipped",
    "data.on_error",
    "train.epochs",
    "train.keep_last",
    "train.micro_batch_size",
    "train.rank_timeout_s",
    "train.save_every_minutes",
    "train.save_every_steps",
}


@dataclass(frozen=True)
class LoadedRun:
    """A finished run: what it takes to use its model."""

    model: Recognizer
    """In evaluation mode, on its device."""
    classes: Mapping[str, HeadClasses]
    """Head -> names and training counts."""
    config: Config
    checkpoint: Path
    folder: Path
    """Where reports go: the run's folder."""

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Head -> names, in the order of the logits."""
        return {head: part.names for head, part in self.classes.items()}

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Head -> class list, for `read_split`."""
        return {head: Vocabulary(part.names) for head, part in self.classes.items()}

    def read_split(self, role: str, *, check_files: bool = True) -> Split:
        """The split of a role, train, val or test, by the run's classes.

        Raises:
            ConfigError: the run has no such split, or saved features that its heads do not know.
            DataError: annotations or files that cannot be used.

        """
        config = self.config
        split = read_role(config, role, vocabularies=self.vocabularies, check_files=check_files)
        if config.data.format == "features":
            known = getattr(self.model.backbone, "architecture", {})
            key = f"data.root={config.data.root}"
            refuse_other_features(split, known, key=key, whose="the run's")
        return split

    def transform(self, frames: Tensor) -> Tensor:
        """Frames (T, C, H, W) uint8 -> the model's input (1, C, T, crop, crop): the centre crop."""
        clip = self.config.clip
        sizes = {"crop_size": clip.crop_size, "short_side": clip.short_side}
        [window] = view_windows(*frames.shape[-2:], num_crops=1, **sizes)
        clips = crop(frames, window, crop_size=clip.crop_size).transpose(0, 1)[None]
        device = next(self.model.parameters()).device
        to_input = ToModelInput(*self.model.normalization).to(device)
        result: Tensor = to_input(clips.to(device))
        return result

    @cached_property
    def precision(self) -> Precision:
        """Of forward passes: train.precision, where it is sound on the model's device."""
        return probed_precision(
            self.config.train.precision,
            self.model,
            clips=self.config.train.micro_batch_size,
            num_frames=self.config.clip.num_frames,
            crop_size=self.config.clip.crop_size,
            backward=False,
        )

    @property
    def scorer(self) -> Scorer:
        """Scores segments of videos with the run's clips, views and precision.

        Raises:
            RunError: the run's model sees saved features, and no videos.

        """
        if self.config.data.format == "features":
            raise RunError(
                f"{self.folder}: its heads were trained on saved features and see no videos; "
                "evaluate it on features of the same backbone (data.root)"
            )
        return Scorer(
            self.model,
            sampler=clip_sampler(self.config),
            crops=evaluation_crops(self.config),
            num_clips=self.config.views.num_clips,
            # In this process, no time limit would interrupt a library that hangs.
            opener=record_opener(self.config, in_child=True),
            pixels=self.config.data.pixels,
            precision=self.precision,
            micro_batch_size=self.config.train.micro_batch_size,
            timeout_s=self.config.data.decode_timeout_s,
        )

    def predict(
        self, path: str | Path, *, top: int = 5, fps: float | None = None
    ) -> dict[str, Ranking]:
        """The top classes of each head for a video file, as evaluation scores it.

        With `fps`, frames a second, `path` is a folder of frames.
        """
        return self.scorer.predict(path, class_names=self.class_names, fps=fps, top=top)

    def predict_windows(
        self,
        path: str | Path,
        *,
        window_s: float,
        hop_s: float | None = None,
        fps: float | None = None,
        progress: ReportProgress = no_progress,
    ) -> Timeline:
        """What happens when in a long video: each window is scored as evaluation scores a segment.

        Windows are `window_s` seconds long, one every `hop_s` seconds, by default half a window.
        """
        return predict_windows(
            self.scorer,
            path,
            class_names=self.class_names,
            window_s=window_s,
            hop_s=hop_s,
            fps=fps,
            # What is kept in memory is a segment each.
            together=not self.config.data.in_memory,
            progress=progress,
        )


def load_run(
    run: str | Path, *, overrides: Sequence[str] = (), device: torch.device | str = "cpu"
) -> LoadedRun:
    """A run's best model, by mean class accuracy of the validation split; the last without one.

    Args:
        run: a run's folder, or one checkpoint in it.
        overrides: `section.key=value` on top of the run's configuration, such as data.root.
        device: where the model is to be.

    Raises:
        RunError: no such run, no checkpoint in it, a damaged one, or one whose tensors the
            installed transformers names otherwise.
        ConfigError: an override that cannot be used.

    """
    path, state = _load_first_whole(_candidates(Path(run)))
    config = load_config(path / "config.yaml", overrides)
    _refuse_another_draw(path, config)
    _refuse_views_of_features(config, overrides)
    classes = read_classes(path)
    architecture = read_architecture(path)
    model = build_model(
        config.model,
        num_classes={head: len(known.names) for head, known in classes.items()},
        num_frames=config.clip.num_frames,
        crop_size=config.clip.crop_size,
        architecture=architecture,
    )
    state = by_todays_names(model, state)
    require_names(model, state, checkpoint=path, architecture=architecture)
    model.load_state_dict(state)
    model.normalization = read_normalization(path)
    use_fast_kernels(torch.device(device))
    place(model, device)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return LoadedRun(model.eval(), classes, config, checkpoint=path, folder=folder)


def _refuse_another_draw(path: Path, config: Config) -> None:
    """Images that were held out must not be drawn again: the model has been trained on others."""
    before = load_config(path / "config.yaml")
    drawn_by = {"data.val_per_class", *(["run.seed"] if before.draws_images else [])}
    for key, (old, new) in differences(before, config).items():
        if key in drawn_by or key == "data.long_tail":
            raise RunError(
                f"{key}={new}: the run was trained with {old}, which says what was held out"
            )


def _refuse_views_of_features(config: Config, overrides: Sequence[str]) -> None:
    for given in overrides:
        if config.data.format == "features" and given.startswith("views."):
            raise ConfigError(
                f"{given}: the run is on saved features, and scores the views that are in their "
                "files; `tools/evaluate.py ... --features OUT --views` chooses them"
            )


def load_selected(run: str | Path, *, device: torch.device | str = "cpu") -> LoadedRun:
    """`load_run`, of the checkpoint that rank 0 finds: every rank has to call it.

    Ranks that each looked for themselves might see another file on a shared disk.
    """
    loaded = load_run(run, device=device) if distributed.rank() == 0 else None
    path = distributed.broadcast_object(loaded.checkpoint if loaded else None)
    return loaded or load_run(str(path), device=device)


def refuse_different_checkpoints(loaded: Sequence[LoadedRun]) -> None:
    """Ranks that each looked for themselves may have found others; every rank has to call it.

    Raises:
        RunError: they did, as in a run that is being trained, or on a disk that not all see alike.

    """
    mine = [str(run.checkpoint) for run in loaded]
    for rank, theirs in enumerate(distributed.gather_objects(mine)):
        for here, there in zip(mine, theirs, strict=True):
            if Path(here).name != Path(there).name:
                raise RunError(
                    f"{here}: rank {rank} found {there} in its place; give one checkpoint folder"
                )


def read_classes(path: Path) -> dict[str, HeadClasses]:
    """Head -> what a checkpoint knows of its classes."""
    about = json.loads((path / "model.json").read_text(encoding="utf-8"))
    return {head: HeadClasses.from_dict(known) for head, known in about["classes"].items()}


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that a RUN argument means.

    Raises:
        RunError: there is none.

    """
    return _candidates(run)[0]


def _candidates(run: Path) -> list[Path]:
    """The checkpoint that a RUN argument means, and those to fall back on if it is damaged."""
    if (run / checkpoint.MANIFEST).exists():
        return [run]
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise RunError(f"{run}: neither a run's folder nor a checkpoint")
    found, lines = checkpoint.best_first(folder)
    for line in lines:
        print(line, file=sys.stderr)
    if not found:
        raise RunError(f"{run}: no checkpoint in it yet")
    return found


def _load_first_whole(paths: Sequence[Path]) -> tuple[Path, dict[str, Tensor]]:
    """The first checkpoint that is whole, and its model's state; damaged ones are named."""
    *others, last = paths
    for path, following in zip(others, paths[1:], strict=True):
        try:
            return path, checkpoint.load_model(path)
        except RunError as error:
            print(f"{error}; {following.name} is used in its place", file=sys.stderr)
    return last, checkpoint.load_model(last)


def score(
    run: LoadedRun,
    split: Split,
    *,
    description: str = "evaluating",
    ranks: Ranks = ONE_PROCESS,
    keep_going: Callable[[int], bool] = to_the_end,
) -> EvalReport:
    """Score a split with the run's model and views; every rank scores its part."""
    loader = build_evaluation_loader(run.config, split, ranks=ranks)
    device = next(run.model.parameters()).device
    report = evaluate(
        run.model,
        loader,
        device=device,
        precision=run.precision,
        micro_batch_size=run.config.train.micro_batch_size,
        description=description,
        quiet=not ranks.is_main,
        keep_going=keep_going,
    )
    named = replace(report.predictions, source=source_of(run))
    return replace(report, predictions=named)


def open_run(
    config: Config,
    *,
    config_name: str,
    resume: bool,
    launch: str | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    quiet: bool = False,
) -> tuple[RunFolder, Config]:
    """The folder of a new or continued run, locked, and the configuration with its name in it.

    `vocabularies` are the data's classes, which must be the run's when it is continued. `launch` is
    given where torchrun has restarted its ranks: the run that this launch began is continued.

    Raises:
        RunIsHeldError: another process is writing to the run.
        RunError: the run exists and is not to be resumed, or was made with another configuration.
        StoppedError: torchrun has restarted ranks that were asked to stop.

    """
    path = choose_run_folder(
        Path(config.run.output_dir),
        config.run.name,
        config_name=config_name,
        resume=resume,
        launch=launch,
    )
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": path.name})})
    run = RunFolder(path)
    if launch is not None and run.is_stopped:
        run.close()
        raise StoppedError(f"{path}: was asked to stop; --resume goes on with it")
    if resume or launch is not None:
        try:
            run.resume_from = _find_resumable(run, config, vocabularies, quiet=quiet)
        except RunError:
            run.close()
            raise
    return run, named


def _find_resumable(
    run: RunFolder,
    config: Config,
    vocabularies: Mapping[str, Vocabulary] | None,
    *,
    quiet: bool,
) -> str | None:
    found, damaged = checkpoint.newest_valid(run.checkpoints)
    run.set_aside = tuple(damaged)
    for line in damaged:
        print(line, file=sys.stderr)
    if found is None and (damaged or any(run.checkpoints.glob("damaged-*"))):
        raise RunError(
            f"{run.path}: every checkpoint is damaged, there is nothing to resume; move the folder "
            "away, or choose another run.name, to start again"
        )
    if found is None:
        if not quiet:
            print(f"{run.path}: nothing to resume, starting the run")
        return None
    _refuse_changes(found, config)
    for head, names in (vocabularies or {}).items():
        known = tuple(read_classes(found)[head].names)
        if names.names != known:
            raise RunError(
                f"{run.path}: the data's {head} classes are {', '.join(names.names[:5])}, ...; the "
                f"run was started with {', '.join(known[:5])}, ... ({len(known)} in all)"
            )
    print(f"{run.path}: resuming from {found.name}")
    return str(found)


def _refuse_changes(found: Path, config: Config) -> None:
    before = load_config(found / "config.yaml")
    for key, (old, new) in differences(before, config).items():
        if key not in MAY_DIFFER_ON_RESUME:
            raise RunError(
                f"{key}={new}: the run was started with {old}; on --resume only "
                f"{', '.join(sorted(MAY_DIFFER_ON_RESUME - {'run.name'}))} may differ"
            )


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Key -> its two values, for the keys of two configurations that differ."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {
        f"{section}.{key}": (value, new[section][key])
        for section, keys in old.items()
        for key, value in keys.items()
        if value != new[section][key]
    }
