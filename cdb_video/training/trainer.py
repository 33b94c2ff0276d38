"""The loop: `fit` speaks of epochs, `train_one_epoch` of batches, `train_step` of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cdb_video import distributed
from cdb_video.clips.batch import Batch
from cdb_video.clips.dataset import sample_generator
from cdb_video.clips.loader import TrainingLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.counts import ClassCounts, all_reduce_counts
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import RunError
from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.losses import ClassDifficulty, MultiHeadLoss
from cdb_video.models.compiling import CompiledModule
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast, input_type
from cdb_video.progress import Progress
from cdb_video.training.checkpoint import CheckpointFolder, NoCheckpoints
from cdb_video.training.class_sampling import ClassSampling
from cdb_video.training.epoch_log import log_accuracy, log_difficulty, missed_classes
from cdb_video.training.optim import Schedule, load_optimizer
from cdb_video.training.run_log import RunLog, SilentLog
from cdb_video.training.selection import better_of
from cdb_video.training.skipping import SkippedClip, SkippedClips, blank_batch


@dataclass(frozen=True)
class TrainerOptions:
    """Numbers of the loop; `config.TrainConfig` says what each one means."""

    epochs: int
    micro_batch_size: int
    precision: Precision = "fp32"
    compile: bool = False
    compress_gradients: bool = False
    clip_grad_norm: float | None = None
    eval_every: int = 1
    log_every: int = 10
    difficulty_source: Literal["val", "train", "crossfit"] = "val"
    crossfit_from: int = 1
    crossfit_every: int = 1
    select_by: str | None = None
    seed: int = 0
    quiet: bool = False
    """Show no progress and print no figures."""


class Trainer:
    """Trains a recognizer; one object a rank.

    Args:
        model: on its device, not wrapped.
        criterion: on the same device; its losses have `reduction="sum"`.
        optimizer: over the model's parameters.
        schedule: of the learning rate.
        loader: this rank's part of every step.
        validate: model, whether it is training's last -> report, the same on every rank; None: no
            validation.
        crossfit: model -> counts of the training clips, the same on every rank, for that source of
            difficulty.
        difficulty_pass: model -> counts of a few validation clips of each class, the same on every
            rank, for epochs without validation; None: difficulty waits for the next.
        sampling: the classes that are drawn; None: every clip once an epoch.
        classes: head -> names and training counts, for difficulty.csv.
        options: see `TrainerOptions`.
        jitter: whether batches carry colour factors.
        skipped: the clips that are left out.
        ranks: which process this is.
        log: where figures go.
        checkpoints: where checkpoints go.

    """

    def __init__(
        self,
        *,
        model: Recognizer,
        criterion: MultiHeadLoss,
        optimizer: Optimizer,
        schedule: Schedule,
        loader: TrainingLoader,
        validate: Callable[[Recognizer, bool], EvalReport] | None,
        crossfit: Callable[[Recognizer], dict[str, ClassCounts]] | None = None,
        difficulty_pass: Callable[[Recognizer], dict[str, ClassCounts]] | None = None,
        sampling: ClassSampling | None = None,
        classes: Mapping[str, HeadClasses],
        options: TrainerOptions,
        jitter: bool = False,
        skipped: SkippedClips | None = None,
        ranks: Ranks = ONE_PROCESS,
        log: RunLog | None = None,
        checkpoints: CheckpointFolder | NoCheckpoints | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.validate = validate
        self.crossfit = crossfit
        self.difficulty_pass = difficulty_pass
        self.sampling = sampling
        self.classes = classes
        self.options = options
        self.skipped = skipped or SkippedClips()
        self.ranks = ranks
        self.log = log or SilentLog()
        self.checkpoints = checkpoints or NoCheckpoints()
        self.device = next(model.parameters()).device
        self.autocast = autocast(self.device, options.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        dtype = input_type(options.precision)
        to_input = ToModelInput(*model.normalization, jitter=jitter, dtype=dtype).to(self.device)
        compiled = CompiledModule if options.compile else _as_it_is
        self.to_input = compiled(to_input)
        self.network = distributed.wrap(
            compiled(model), self.device, compress_gradients=options.compress_gradients
        )
        self.epoch = 0
        self.step = 0
        self.best: Mapping[str, Any] | None = None
        self.train_counts = {
            head: ClassCounts(classes, device=self.device)
            for head, classes in model.num_classes.items()
        }
        # Loss of every head, and clips: summed on the device, read every `log_every` steps.
        self.loss_sums = torch.zeros(len(self.train_counts) + 1, device=self.device)

    def fit(self) -> None:
        """Train from where the state stands to the last epoch."""
        with closing(self.log):
            self.criterion.start_epoch(self.epoch, self.options.epochs)
            if self.epoch == 0:
                self.log_difficulty()
            while self.epoch < self.options.epochs:
                self.train_one_epoch()
                self.epoch += 1
                report = self.evaluate()
                measured = self.difficulty_counts(report)
                self.criterion.update(measured)
                if self.sampling and self.sampling.head in measured:
                    self.sampling.update(measured[self.sampling.head])
                self.say_coverage(measured)
                self.log_epoch(report)
                # Before the file is written: it has the weights of the next epoch.
                if self.epoch < self.options.epochs:
                    self.criterion.start_epoch(self.epoch, self.options.epochs)
                self.log_difficulty(measured)
                self.save(report)

    @property
    def quiet(self) -> bool:
        """Whether this process says nothing."""
        return self.options.quiet or not self.ranks.is_main

    def train_one_epoch(self) -> None:
        """One pass over the training clips."""
        self.model.train()
        self.draw_classes()
        for counts in self.train_counts.values():
            counts.reset()
        steps = self.loader.steps_per_epoch
        title = f"epoch {self.epoch + 1}/{self.options.epochs}"
        total = steps * self.loader.order.batch_size
        with Progress(title, total=total, unit="clips", quiet=self.quiet) as progress:
            figures: dict[str, float] = {}
            for i, batch in enumerate(self.loader.epoch(self.epoch)):
                lr = self.schedule.apply(self.optimizer, self.epoch + i / steps)
                self.train_step(batch)
                progress.advance(self.loader.order.batch_size, **figures)
                if self.step % self.options.log_every == 0 or i + 1 == steps:
                    figures = self.log_step(self.epoch + (i + 1) / steps, lr, progress.speed)

    def draw_classes(self) -> None:
        """With sampling by class, set the epoch's probabilities."""
        if self.sampling is None:
            return
        head = self.sampling.head
        records = self.loader.clips.records
        labels = torch.tensor([record.labels.get(head, UNLABELLED) for record in records])
        probabilities = self.sampling.probabilities(self.epoch, self.options.epochs)
        self.loader.order.draw_classes(labels, probabilities)

    def train_step(self, batch: Batch) -> None:
        """One optimiser step on this rank's part of a global batch."""
        # Dropout is a function of (seed, step, rank) too: nothing random is to be remembered.
        key = self.options.seed, self.step, self.ranks.rank
        torch.manual_seed(sample_generator(*key).initial_seed())
        parts = batch.split(self.options.micro_batch_size)
        if not parts:
            # The other ranks wait for this one's gradients, of nothing.
            parts = [blank_batch(batch, list(self.train_counts))]
            self.model.eval()
        for part in parts:
            self.backward(part.to(self.device), reduce=part is parts[-1])
        if self.options.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_grad_norm)
        # In fp16 a step whose gradients overflowed is skipped, and the scale lowered.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if not len(batch):
            self.model.train()
        self.step += 1
        if batch.skipped:
            self.skipped.note(batch.skipped, self.loader.clips.records, step=self.step)

    def backward(self, part: Batch, *, reduce: bool) -> None:
        """Add a micro batch's gradients; with `reduce`, sum them over the ranks."""
        ddp = self.network if isinstance(self.network, DistributedDataParallel) else None
        with nullcontext() if ddp is None or reduce else ddp.no_sync():
            clips = self.to_input(part.clips.flatten(0, 1), part.appearance, part.clips_to_rgb)
            with self.autocast:
                logits = self.network(clips)
            losses = self.criterion(logits, part.labels)
            # A sum over the global batch: parts count by their clips, and DDP's mean over the
            # ranks is undone.
            share = self.ranks.world_size / self.loader.order.global_batch_size
            self.scaler.scale(self.criterion.total(losses) * share).backward()
        self.count(part, logits, losses)

    def count(
        self, part: Batch, logits: Mapping[str, Tensor], losses: Mapping[str, Tensor]
    ) -> None:
        """Keep the figures of a micro batch, on the device."""
        for head, counts in self.train_counts.items():
            counts.update(logits[head].detach(), part.labels[head])
        self.loss_sums[:-1] += torch.stack([loss.detach() for loss in losses.values()])
        # Not the clip of `blank_batch`.
        self.loss_sums[-1] += (part.indices >= 0).sum()

    def evaluate(self) -> EvalReport | None:
        """The validation split on every rank; None in an epoch without validation."""
        # Also before a save: the checkpoint then holds what was evaluated.
        distributed.average_buffers(self.model)
        last = self.epoch == self.options.epochs
        if self.validate is None or not (last or self.epoch % self.options.eval_every == 0):
            return None
        report = self.validate(self.model, last)
        found = [SkippedClip(name, reason, self.step) for name, reason in report.skipped]
        self.skipped.add(found, epoch=self.epoch, log=self.log)
        return report

    def difficulty_counts(self, report: EvalReport | None) -> dict[str, ClassCounts]:
        """The counts that difficulty is measured by; empty where there are none this epoch."""
        all_reduce_counts(list(self.train_counts.values()))
        if self.options.difficulty_source == "train":
            return self.train_counts
        if self.crossfit is not None:
            since = self.epoch - self.options.crossfit_from
            is_due = since >= 0 and since % self.options.crossfit_every == 0
            return self.crossfit(self.model) if is_due else {}
        if report is None and self.difficulty_pass is not None:
            return self.difficulty_pass(self.model)
        return report.counts if report else {}

    def say_coverage(self, measured: Mapping[str, ClassCounts]) -> None:
        """After the first measurement, name the classes it missed: their weight stays 1."""
        difficulties = self.difficulties
        never = missed_classes(measured, self.classes, difficulties)
        for head in never:
            if not self.quiet:
                print(f"{head}: {difficulties[head].report(self.classes[head].names)}")
        if never:
            self.log.write("coverage", epoch=self.epoch, step=self.step, never_measured=never)

    @property
    def difficulties(self) -> dict[str, ClassDifficulty]:
        """Head -> the difficulty that its loss, or the sampling of its classes, follows."""
        found = self.criterion.difficulties
        if self.sampling is not None and self.sampling.cdb is not None:
            found[self.sampling.head] = self.sampling.cdb.class_difficulty
        return found

    def log_step(self, epoch: float, lr_factor: float, speed: float) -> dict[str, float]:
        """Read the mean losses since the last reading: the loop waits for the device here only."""
        noted = torch.tensor([float(self.skipped.num_noted)])
        read = distributed.all_reduce(torch.cat([self.loss_sums.cpu(), noted]))
        self.loss_sums.zero_()
        if read[-1]:
            self.skipped.add(self.skipped.gather(), epoch=epoch, log=self.log)
        sums = read[:-1]
        if not sums[-1]:
            return {}  # every clip was left out
        means = (sums[:-1] / sums[-1]).tolist()
        figures = {
            f"loss_{head}": mean for head, mean in zip(self.train_counts, means, strict=True)
        }
        weights = self.criterion.head_weights
        loss = sum(weights[head] * m for head, m in zip(self.train_counts, means, strict=True))
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} in epoch {self.epoch + 1}, step {self.step}: lower optim.lr, "
                "set train.clip_grad_norm, or use train.precision=fp32"
            )
        figures = {"loss": loss, **figures}
        lr = max(group["peak_lr"] for group in self.optimizer.param_groups) * lr_factor
        self.log.write("train", epoch=epoch, step=self.step, lr=lr, clips_per_s=speed, **figures)
        return {"loss": loss, "lr": lr}

    def log_epoch(self, report: EvalReport | None) -> None:
        """Write what the epoch gave, and say it."""
        accuracy = log_accuracy(
            self.log,
            self.train_counts,
            report,
            epoch=self.epoch,
            step=self.step,
            select_by=self.options.select_by,
        )
        if not self.quiet:
            shown = "  ".join(f"{head} {100 * value:.1f}" for head, value in accuracy.items())
            print(f"epoch {self.epoch}/{self.options.epochs} mean class accuracy: {shown}")

    def log_difficulty(self, counts: Mapping[str, ClassCounts] | None = None) -> None:
        """Write each class's accuracy after this epoch and its weight from now on."""
        log_difficulty(
            self.log,
            self.criterion,
            self.classes,
            counts or {},
            self.difficulties,
            epoch=self.epoch,
        )

    def save(self, report: EvalReport | None) -> None:
        """Save a checkpoint, and note when it is the best so far."""
        self.best = better_of(
            self.best,
            report,
            epoch=self.epoch,
            step=self.step,
            select_by=self.options.select_by,
        )
        self.checkpoints.save(
            self.step, model=self.model.state_dict(), training=self.state_dict(), best=self.best
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model that the next step depends on."""
        return {
            "criterion": self.criterion.state_dict(),
            "sampling": self.sampling.state_dict() if self.sampling else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "best": self.best,
                "skipped": self.skipped.reasons,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; the model's weights are loaded apart."""
        self.criterion.load_state_dict(state["criterion"])
        if self.sampling:
            self.sampling.load_state_dict(state["sampling"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        progress = state["progress"]
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        self.skipped.reasons = dict(progress.get("skipped", {}))


def _as_it_is(module: nn.Module) -> nn.Module:
    return module
