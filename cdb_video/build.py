"""A configuration becomes objects: this file and `build_data` alone know both sides."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cdb_video import distributed
from cdb_video.build_clips import build_training_loader, cache_dir, choose_device, decode_policy
from cdb_video.build_data import (
    Data,
    features_architecture,
    load_into_memory,
    read_data,
    refuse_other_features,
)
from cdb_video.build_evaluation import build_crossfit, build_difficulty_pass, build_validation
from cdb_video.build_losses import build_class_sampling, build_criterion
from cdb_video.build_weights import (
    holds_heads_alone,
    load_own_weights,
    print_loaded,
    put_heads_back,
    read_architecture,
    read_normalization,
)
from cdb_video.config import Config, ModelConfig
from cdb_video.config_file import dump_config
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.models.backbones import build_backbone
from cdb_video.models.base import place
from cdb_video.models.from_transformers import PREFIX as HUB
from cdb_video.models.hub_files import model_folder
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.saved_names import require_names
from cdb_video.models.tokens import set_drop_path
from cdb_video.models.weights import load_weights, resolve_weights
from cdb_video.precision import Precision, use_fast_kernels
from cdb_video.prepare.precision_probe import probed_precision
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    NoCheckpoints,
    best_first,
    load_model,
    load_training,
    set_aside_if_damaged,
)
from cdb_video.training.crossfit import check_folds
from cdb_video.training.mixing import make_mixing
from cdb_video.training.optim import Schedule, build_optimizer
from cdb_video.training.options import TrainerOptions
from cdb_video.training.precise_bn import moving_batch_norms
from cdb_video.training.recompute import recompute_blocks
from cdb_video.training.run_folder import RunFolder
from cdb_video.training.run_log import NOTHING_DONE, Done, FileLog, RunLog, SilentLog
from cdb_video.training.signals import StopRequest
from cdb_video.training.skipping import SkippedClips
from cdb_video.training.state import check_state, join_state
from cdb_video.training.trackers import TensorBoard, Tracker, WeightsAndBiases, check_trackers
from cdb_video.training.trainer import Trainer


def build_model(
    config: ModelConfig,
    *,
    num_classes: Mapping[str, int],
    num_frames: int,
    crop_size: int,
    architecture: Mapping[str, Any] | None = None,
) -> Recognizer:
    """A recogniser with random weights; those of `model` are loaded by `build_trainer`.

    Args:
        config: the `model` section.
        num_classes: head -> K.
        num_frames: T of the clips.
        crop_size: their side in pixels.
        architecture: what a checkpoint knows of the backbone (`build_weights.read_architecture`);
            None: `hf:` models are looked up.

    Raises:
        ConfigError: an unknown backbone, or a clip that it cannot take.

    """
    backbone = build_backbone(
        config.backbone, num_frames=num_frames, crop_size=crop_size, architecture=architecture
    )
    if config.drop_path is not None:
        set_drop_path(cast(nn.Module, backbone), config.drop_path, name=config.backbone)
    return Recognizer(
        backbone, num_classes=num_classes, dropout=config.dropout, head_type=config.head_type
    )


def check(config: Config, data: Data, *, ranks: Ranks, resume_from: Path | None = None) -> None:
    """Build everything once without memory, so that no mistake costs more than a second.

    Args:
        config: what is to be trained.
        data: its splits.
        ranks: which process this is.
        resume_from: a checkpoint that has the weights; None: those of `model` are looked at.

    Raises:
        UserError: what `build_trainer` would refuse.

    """
    device = choose_device(config, ranks)
    with torch.device("meta"):
        model = _build_untrained_model(config, data, resume_from)
    if config.model.freeze_backbone:
        model.freeze_backbone()
    if config.train.precise_bn is not None and not moving_batch_norms(model):
        raise ConfigError(
            f"train.precise_bn={config.train.precise_bn}: {config.model.backbone} has no batch "
            "norm that is trained; leave it null"
        )
    if config.train.sync_batch_norm and device.type != "cuda":
        raise ConfigError("train.sync_batch_norm=true works on GPUs only")
    if config.train.sync_batch_norm and config.data.on_error == "skip":
        # It meets in every layer: a rank whose clips are all left out would not come.
        raise ConfigError("train.sync_batch_norm=true does not work with data.on_error=skip")
    if ranks.is_main and resume_from is None:
        _check_weights(config, data)
    if resume_from is not None and config.data.format == "features":
        known = read_architecture(resume_from) or {}
        key = f"data.root={config.data.root}"
        refuse_other_features(data.train, known, key=key, whose="the run's")
    check_trackers(config.run.trackers)
    build_criterion(config.loss, data.classes)
    build_class_sampling(config, data.classes)
    order = build_training_loader(config, data.train, ranks=ranks, memory=data.memory).order
    if not config.train.sync_batch_norm and 1 in order.forward_sizes(config.train.micro_batch_size):
        _check_lone_clip(config, model)
    if config.uses_difficulty and config.loss.difficulty.source == "crossfit":
        for head in data.train.heads:
            recordings = [record.recording for record in data.train.records]
            check_folds(data.train.labels(head), recordings)


def build_trainer(
    config: Config,
    *,
    data: Data | None = None,
    ranks: Ranks | None = None,
    run: RunFolder | None = None,
    stop: StopRequest | None = None,
    quiet: bool = False,
) -> Trainer:
    """A trainer, ready for `fit`.

    Args:
        config: what to train.
        data: its splits; None: they are read.
        ranks: which process this is; None: by torchrun's variables. Of several, the process group
            must be running.
        run: where rank 0 writes, and continues if there is a checkpoint; None: nothing is written.
        stop: whether this process was asked to stop; None: `fit` listens by itself.
        quiet: show no progress and print no figures.

    Raises:
        UserError: anything in the configuration, the data or the weights that cannot be used.

    """
    ranks = ranks or Ranks.from_environment()
    data = data or read_data(config)
    found = distributed.broadcast_object(run.resume_from if run else None)
    resume_from = Path(found) if found else None
    check(config, data, ranks=ranks, resume_from=resume_from)
    device = choose_device(config, ranks)
    load_into_memory(config, data, ["train", "val"], ranks=ranks)
    torch.manual_seed(config.run.seed)
    model = build_initial_model(
        config, data, device, quiet=not ranks.is_main, resume_from=resume_from
    )
    classes = data.classes
    criterion = build_criterion(config.loss, classes, eval_every=config.train.eval_every)
    criterion.to(device)
    optimizer = build_optimizer(
        model,
        name=config.optim.name,
        lr=config.optim.lr,
        head_lr_scale=config.optim.head_lr_scale,
        layer_decay=config.optim.layer_decay,
        momentum=config.optim.momentum,
        nesterov=config.optim.nesterov,
        weight_decay=config.optim.weight_decay,
    )
    loader = build_training_loader(config, data.train, ranks=ranks, memory=data.memory)
    use_fast_kernels(device)
    precision = probed_precision(
        config.train.precision,
        model,
        clips=max(loader.order.forward_sizes(config.train.micro_batch_size)),
        num_frames=config.clip.num_frames,
        crop_size=config.clip.crop_size,
        backward=not config.model.freeze_backbone,
        quiet=quiet or not ranks.is_main,
    )
    # Before the log and the configuration of the run are touched: it may be refused.
    state = None
    if resume_from is not None:
        state = _read_state(resume_from, run, model=model, clips=loader.fingerprint)
    log = _build_log(config, run, state)
    trainer = Trainer(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        schedule=_build_schedule(config),
        loader=loader,
        validate=build_validation(config, data, device, precision, ranks, run, log, quiet=quiet),
        crossfit=build_crossfit(config, data, device, precision, ranks),
        difficulty_pass=build_difficulty_pass(config, data, device, precision, ranks),
        sampling=build_class_sampling(config, classes),
        classes=classes,
        options=_trainer_options(config, precision, quiet=quiet),
        jitter=config.augment.color_jitter > 0,
        mixing=make_mixing(mixup=config.augment.mixup, cutmix=config.augment.cutmix),
        skipped=_build_skipped(config, data),
        ranks=ranks,
        log=log,
        checkpoints=_build_checkpoints(config, run, model, classes),
        stop=stop,
    )
    if state:
        trainer.state.load_state_dict(state)
    return trainer


def _check_weights(config: Config, data: Data) -> None:
    """Refuse weights that training could not start from."""
    if config.model.weights is not None:
        _load_weights(_build_untrained_model(config, data), config, quiet=True)
    elif config.model.backbone.startswith(HUB):
        model_folder(config.model.backbone.removeprefix(HUB), weights=True)


def _check_lone_clip(config: Config, model: Recognizer) -> None:
    """Refuse to train by single clips that batch norm has one number a channel of."""
    clip, train = config.clip, config.train
    reason = model.refuses_one_clip(num_frames=clip.num_frames, crop_size=clip.crop_size)
    if reason:
        raise ConfigError(
            f"train.micro_batch_size={train.micro_batch_size} of "
            f"train.global_batch_size={train.global_batch_size} makes a forward of a single clip, "
            f"which {config.model.backbone} cannot train on at clip.num_frames={clip.num_frames} "
            f"and clip.crop_size={clip.crop_size}: {reason}; choose sizes that give two clips or "
            "more a forward, or a larger clip"
        )


def _read_state(
    checkpoint: Path, run: RunFolder | None, *, model: Recognizer, clips: str
) -> dict[str, Any]:
    """The state to go on from; without its best epoch, where that one's checkpoint is no good."""
    state = join_state(load_model(checkpoint), load_training(checkpoint))
    check_state(state, clips=clips)
    # Moments are kept in the order of the parameters: nothing is renamed here.
    known = read_architecture(checkpoint)
    require_names(model, state["model"], checkpoint=checkpoint, architecture=known)
    best = state["progress"]["best"]
    line = set_aside_if_damaged(checkpoint.parent / best["checkpoint"]) if run and best else None
    if run and line:
        print(f"{line}; it was the best one", file=sys.stderr)
        run.set_aside = (*run.set_aside, line)
    if distributed.broadcast_object(line):
        state["progress"]["best"] = None
    return state


def build_initial_model(
    config: Config,
    data: Data,
    device: torch.device,
    *,
    quiet: bool,
    resume_from: Path | None = None,
) -> Recognizer:
    """The model as it is before the first step, on its device: `build_model` with its weights.

    With `resume_from`, a checkpoint whose state will be loaded, those of `model` are not looked
    for: a machine that goes on with a run may not have them.

    Raises:
        ConfigError: a model that cannot be built.
        WeightsError: weights that do not fit.

    """
    model = _build_untrained_model(config, data, resume_from)
    if resume_from is not None:
        model.normalization = read_normalization(resume_from)
    elif config.model.weights is not None or config.model.backbone.startswith(HUB):
        _load_weights(model, config, quiet=quiet)
    if config.model.freeze_backbone:
        model.freeze_backbone()
    if config.model.grad_checkpointing:
        recompute_blocks(cast(nn.Module, model.backbone))
    if config.train.sync_batch_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    place(model, device)
    return model


def _build_untrained_model(
    config: Config, data: Data, resume_from: Path | None = None
) -> Recognizer:
    architecture = features_architecture(config, data)
    if resume_from is not None:
        architecture = read_architecture(resume_from)
    return build_model(
        config.model,
        num_classes=data.train.num_classes,
        num_frames=config.clip.num_frames,
        crop_size=config.clip.crop_size,
        architecture=architecture,
    )


def _load_weights(model: Recognizer, config: Config, *, quiet: bool) -> None:
    if config.model.weights is None:  # of an hf: model: its own
        load_own_weights(model, config, quiet=quiet)
        return
    path = resolve_weights(
        str(config.model.weights), backbone=config.model.backbone, cache_dir=cache_dir(config)
    )
    if (path / "checkpoints").is_dir():  # a run's folder
        path = next(iter(best_first(path / "checkpoints")[0]), path)
    if holds_heads_alone(path):
        put_heads_back(model, config, path, quiet=quiet)
        return
    loaded = load_weights(model, path, allow_partial=config.model.allow_partial_weights)
    if (path / "model.json").exists():  # a checkpoint of ours
        model.normalization = read_normalization(path)
    if not quiet:
        print_loaded(model, loaded)


def _build_schedule(config: Config) -> Schedule:
    optim = config.optim
    return Schedule(
        epochs=config.train.epochs,
        shape=optim.schedule,
        warmup_epochs=optim.warmup_epochs,
        step_at=optim.step_at,
        step_factor=optim.step_factor,
    )


def _trainer_options(config: Config, precision: Precision, *, quiet: bool) -> TrainerOptions:
    train = config.train
    return TrainerOptions(
        epochs=train.epochs,
        micro_batch_size=train.micro_batch_size,
        precision=precision,
        compile=train.compile,
        compress_gradients=train.compress_gradients,
        clip_grad_norm=train.clip_grad_norm,
        ema=train.ema,
        precise_bn=train.precise_bn,
        max_bad_steps=train.max_bad_steps,
        save_every_steps=train.save_every_steps,
        save_every_minutes=train.save_every_minutes,
        eval_every=train.eval_every,
        log_every=train.log_every,
        difficulty_source=config.loss.difficulty.source,
        crossfit_from=max(1, config.loss.difficulty.warmup_epochs),
        crossfit_every=config.loss.difficulty.update_every,
        select_by=train.select_by,
        seed=config.run.seed,
        padding=config.augment.padding if config.augment.crop == "pad" else 0,
        quiet=quiet,
    )


def _build_skipped(config: Config, data: Data) -> SkippedClips:
    splits = [split for split in (data.train, data.val) if split]
    paths = {record.id: record.path for split in splits for record in split.records}
    return SkippedClips(paths, policy=decode_policy(config))


def _build_log(config: Config, run: RunFolder | None, state: Mapping[str, Any] | None) -> RunLog:
    if run is None:
        return SilentLog()
    progress = state["progress"] if state else {}
    done = Done(progress["epoch"], progress["step"]) if progress else NOTHING_DONE
    trackers = _build_trackers(config, run, from_step=max(done.step, 0))
    log = FileLog(run.path, done=done, trackers=trackers)
    for line in run.set_aside:
        at, step = max(done.epoch, 0), max(done.step, 0)
        log.write("damaged_checkpoint", epoch=at, step=step, reason=line)
    if run.resume_from is not None:
        name, ranks = Path(run.resume_from).name, distributed.world_size()
        log.write("resume", epoch=done.epoch, step=done.step, checkpoint=name, ranks=ranks)
    return log


def _build_trackers(config: Config, run: RunFolder, *, from_step: int) -> list[Tracker]:
    trackers: list[Tracker] = []
    if "tensorboard" in config.run.trackers:
        trackers.append(TensorBoard(run.path, from_step=from_step))
    if "wandb" in config.run.trackers:
        settings = config.model_dump(mode="json")
        trackers.append(WeightsAndBiases(run.path, name=str(config.run.name), config=settings))
    return trackers


def _build_checkpoints(
    config: Config,
    run: RunFolder | None,
    model: Recognizer,
    classes: Mapping[str, HeadClasses],
) -> CheckpointFolder | NoCheckpoints:
    if run is None:
        return NoCheckpoints()
    config_yaml = dump_config(config)
    known = {head: part.to_dict() for head, part in classes.items()}
    about = {"classes": known, "normalization": model.normalization._asdict()}
    architecture = getattr(model.backbone, "architecture", {})
    if architecture:
        about["architecture"] = architecture
    if run.resume_from is None:
        run.write_about(classes=known)
    run.write_config(config_yaml)
    return CheckpointFolder(
        run.checkpoints,
        texts={"config.yaml": config_yaml, "model.json": json.dumps(about, ensure_ascii=False)},
        keep_last=config.train.keep_last,
        background=True,
    )
