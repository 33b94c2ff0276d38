"""The loop: `fit` speaks of epochs, `train_one_epoch` of batches, `train_step` of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any

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
from cdb_video.evaluation.evaluate import EvalReport, EvaluationStoppedError
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.losses import MultiHeadLoss
from cdb_video.models.compiling import CompiledModule
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import autocast, input_type
from cdb_video.progress import Progress
from cdb_video.training.averaging import AveragedWeights, NoAverage
from cdb_video.training.bad_steps import StepGate, running_statistics
from cdb_video.training.checkpoint import CheckpointFolder, NoCheckpoints
from cdb_video.training.class_sampling import ClassSampling
from cdb_video.training.epoch_log import EpochLog
from cdb_video.training.mixing import NOT_MIXED, Mixed, Mixing, NoMixing
from cdb_video.training.optim import Schedule
from cdb_video.training.options import TrainerOptions
from cdb_video.training.precise_bn import measure_batch_norms
from cdb_video.training.run_log import RunLog, SilentLog
from cdb_video.training.saving import Saving
from cdb_video.training.selection import better_of
from cdb_video.training.signals import StopRequest
from cdb_video.training.skipping import SkippedClip, SkippedClips, blank_batch
from cdb_video.training.state import Position, TrainState
from cdb_video.training.step_log import StepLog

Validate = Callable[[Recognizer, bool, Callable[[int], bool]], EvalReport]
"""Model, whether it is training's last, `keep_going` of `evaluate` -> the report, the same on every
rank."""
DifficultyPass = Callable[[Recognizer, Callable[[int], bool]], dict[str, ClassCounts]]
"""Model, `keep_going` of `evaluate` -> the counts, the same on every rank."""


class Trainer:
    """Trains a recognizer; one object a rank.

    Args:
        model: on its device, not wrapped.
        criterion: on the same device; its losses have `reduction="sum"`.
        optimizer: over the model's parameters.
        schedule: of the learning rate.
        loader: this rank's part of every step.
        validate: measures the model after an epoch; None: no validation.
        crossfit: model -> counts of the training clips, the same on every rank, for that source of
            difficulty.
        difficulty_pass: counts a few validation clips of each class, for epochs without validation;
            None: difficulty waits for the next.
        sampling: the classes that are drawn; None: every clip once an epoch.
        classes: head -> names and training counts, for difficulty.csv.
        options: see `TrainerOptions`.
        jitter: whether batches carry colour factors.
        mixing: mixes the clips of a micro batch; None: they stay as they are.
        skipped: the clips that are left out.
        ranks: which process this is.
        log: where figures go.
        checkpoints: where checkpoints go.
        stop: whether this process was asked to stop; None: `fit` listens by itself.

    """

    def __init__(
        self,
        *,
        model: Recognizer,
        criterion: MultiHeadLoss,
        optimizer: Optimizer,
        schedule: Schedule,
        loader: TrainingLoader,
        validate: Validate | None,
        crossfit: Callable[[Recognizer], dict[str, ClassCounts]] | None = None,
        difficulty_pass: DifficultyPass | None = None,
        sampling: ClassSampling | None = None,
        classes: Mapping[str, HeadClasses],
        options: TrainerOptions,
        jitter: bool = False,
        mixing: Mixing | NoMixing | None = None,
        skipped: SkippedClips | None = None,
        ranks: Ranks = ONE_PROCESS,
        log: RunLog | None = None,
        checkpoints: CheckpointFolder | NoCheckpoints | None = None,
        stop: StopRequest | None = None,
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
        self.options = options
        self.mixing = mixing or NoMixing()
        self.skipped = skipped or SkippedClips()
        self.ranks = ranks
        self.log = log or SilentLog()
        self.device = next(model.parameters()).device
        self.autocast = autocast(self.device, options.precision)
        # Also in fp32 and bf16, with scale 1: it lets the fused optimisers leave out, on the
        # device, a step whose gradient is not finite.
        scale = 2.0**16 if options.precision == "fp16" else 1.0
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale)
        self.averaged = (
            NoAverage() if options.ema is None else AveragedWeights(model, decay=options.ema)
        )
        dtype = input_type(options.precision)
        to_input = ToModelInput(
            *model.normalization, jitter=jitter, padding=options.padding, dtype=dtype
        ).to(self.device)
        compiled = CompiledModule if options.compile else _as_it_is
        self.to_input = compiled(to_input)
        self.train_counts = {
            head: ClassCounts(classes, device=self.device)
            for head, classes in model.num_classes.items()
        }
        # Loss of every head, and clips: summed on the device, read every `log_every` steps.
        self.loss_sums = torch.zeros(len(self.train_counts) + 1, device=self.device)
        self.state = TrainState(
            model=model,
            averaged=self.averaged,
            optimizer=optimizer,
            scaler=self.scaler,
            criterion=criterion,
            sampling=sampling,
            train_counts=self.train_counts,
            loss_sums=self.loss_sums,
            skipped=self.skipped,
            clips=loader.fingerprint,
            position=Position(steps_per_epoch=loader.steps_per_epoch),
        )
        self.gate = StepGate(
            [
                *model.buffers(),
                *criterion.buffers(),
                *(counts.to_dict()["table"] for counts in self.train_counts.values()),
                self.loss_sums,
            ],
            running_statistics(model),
            self.device,
        )
        self.step_log = StepLog(
            self.state,
            self.gate,
            criterion,
            loader.clips.records,
            max_bad_steps=options.max_bad_steps,
            log=self.log,
        )
        self.epoch_log = EpochLog(
            self.state,
            criterion,
            classes,
            select_by=options.select_by,
            epochs=options.epochs,
            quiet=self.quiet,
            log=self.log,
        )
        self.saving = Saving(
            self.state,
            checkpoints or NoCheckpoints(),
            self.step_log,
            self.log,
            ranks=ranks,
            every_steps=options.save_every_steps,
            every_minutes=options.save_every_minutes,
            stop=stop or StopRequest(),
        )
        self.network = distributed.wrap(
            compiled(model), self.device, compress_gradients=options.compress_gradients
        )
        self.settle_buckets()

    def fit(self) -> None:
        """Train from where the state stands to the last epoch.

        Raises:
            StoppedError: this rank or another one was asked to stop; the state is saved.

        """
        position = self.state.position
        checkpoints = self.saving.checkpoints
        with closing(self.log), closing(checkpoints), self.saving.stop.listening():
            if position.steps == 0:
                self.criterion.start_epoch(position.epoch, self.options.epochs)
            if position.step == 0:
                self.epoch_log.write_difficulty({})
            while position.epoch < self.options.epochs:
                self.train_one_epoch()
                report = self.evaluate()
                counts = report.counts if report else self.count_some()
                position.end_epoch()
                measured = self.difficulty_counts(counts)
                self.criterion.update(measured)
                if self.sampling and self.sampling.head in measured:
                    self.sampling.update(measured[self.sampling.head])
                self.epoch_log.write_coverage(measured)
                self.epoch_log.write_accuracy(report)
                # Before the file is written: it has the weights of the next epoch.
                if position.epoch < self.options.epochs:
                    self.criterion.start_epoch(position.epoch, self.options.epochs)
                self.epoch_log.write_difficulty(measured)
                self.state.best = better_of(
                    self.state.best,
                    report,
                    epoch=position.epoch,
                    step=position.step,
                    select_by=self.options.select_by,
                )
                self.saving.save()
            self.saving.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, see `TrainState`; every rank has to call it."""
        return self.state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.state.load_state_dict(state)

    @property
    def evaluated(self) -> Recognizer:
        """The model that evaluation sees: the averaged one, where there is one."""
        return self.averaged.model or self.model

    @property
    def quiet(self) -> bool:
        """Whether this process says nothing."""
        return self.options.quiet or not self.ranks.is_main

    def train_one_epoch(self) -> None:
        """One pass over the training clips, or what is left of it."""
        position, order = self.state.position, self.loader.order
        self.step_log.start()
        self.model.train()
        self.draw_classes()
        if position.steps == 0:
            for counts in self.train_counts.values():
                counts.reset()
        steps, size = position.steps_per_epoch, order.batch_size
        title = f"epoch {position.epoch + 1}/{self.options.epochs}"
        total, done = steps * size, position.steps * size
        with Progress(title, total=total, done=done, unit="clips", quiet=self.quiet) as progress:
            figures: dict[str, float] = {}
            for batch in self.loader.epoch(position.epoch, first_step=position.steps):
                lr_factor = self.schedule.apply(self.optimizer, position.epochs_done)
                self.train_step(batch)
                position.steps += 1
                progress.advance(size, **figures)
                self.log.beat("training", epoch=position.epochs_done, step=position.step)
                if position.step % self.options.log_every == 0 or position.steps == steps:
                    figures = self.step_log.write(lr_factor=lr_factor, clips_per_s=progress.speed)
                self.saving.between_steps()
        self.saving.after_epoch()

    def draw_classes(self) -> None:
        """With sampling by class, set the epoch's probabilities."""
        if self.sampling is None:
            return
        head = self.sampling.head
        records = self.loader.clips.records
        labels = torch.tensor([record.labels.get(head, UNLABELLED) for record in records])
        probabilities = self.sampling.probabilities(self.state.position.epoch, self.options.epochs)
        self.loader.order.draw_classes(labels, probabilities)

    def train_step(self, batch: Batch) -> None:
        """One optimiser step on this rank's part of a global batch."""
        position = self.state.position
        # Dropout is a function of (seed, step, rank) too: nothing random is to be remembered.
        key = self.options.seed, position.step, self.ranks.rank
        torch.manual_seed(sample_generator(*key).initial_seed())
        self.gate.open()
        # Without a clip the other ranks wait for this one's gradients, of nothing.
        parts = batch.split(self.options.micro_batch_size) or [
            blank_batch(batch, list(self.train_counts))
        ]
        for part in parts:
            # Of one clip, where others are left out, batch norm may have a single value a channel,
            # which has no variance; and the statistics are not to move for a blank one.
            self.model.train(not batch.skipped or len(part) > 1)
            self.backward(part, reduce=part is parts[-1])
        self.model.train()
        self.update()
        position.step += 1
        if batch.skipped:
            self.skipped.note(batch.skipped, self.loader.clips.records, step=position.step)

    def backward(self, part: Batch, *, reduce: bool) -> None:
        """Add a micro batch's gradients; with `reduce`, sum them over the ranks."""
        indices = part.indices.tolist()
        part = part.to(self.device)
        ddp = self.network if isinstance(self.network, DistributedDataParallel) else None
        with nullcontext() if ddp is None or reduce else ddp.no_sync():
            clips = self.to_input(part.clips.flatten(0, 1), part.appearance, part.clips_to_rgb)
            clips, mixed = self.mixing(clips)
            with self.autocast:
                logits = self.network(clips)
            losses = mixed.losses(self.criterion, logits, part.labels)
            # A sum over the global batch: parts count by their clips, and DDP's mean over the
            # ranks is undone.
            share = self.ranks.world_size / self.loader.order.global_batch_size
            sound = self.gate.factor(torch.stack(list(losses.values())), indices)
            self.scaler.scale(self.criterion.total(losses) * share * sound).backward()
        self.count(part, logits, losses, mixed)

    def update(self) -> None:
        """Apply the gradients, unless they are not finite: then nothing of the step stays."""
        scale = self.scaler.scale(torch.ones((), device=self.device))
        weights = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in weights if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # The optimiser leaves a step out where a gradient is not finite; the norm of finite ones
        # may not be finite either.
        torch._foreach_mul_(gradients, torch.where(norm.isfinite(), 1.0, torch.nan))
        self.scaler.unscale_(self.optimizer)
        norm = norm / scale
        if self.options.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(weights, self.options.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        # In fp16 the scale falls when gradients overflowed.
        self.scaler.update(None if self.options.precision == "fp16" else 1.0)
        self.optimizer.zero_grad()
        applied = self.gate.close(norm, scale, step=self.state.position.step + 1)
        self.averaged.update(applied)

    def count(
        self,
        part: Batch,
        logits: Mapping[str, Tensor],
        losses: Mapping[str, Tensor],
        mixed: Mixed = NOT_MIXED,
    ) -> None:
        """Keep the figures of a micro batch, on the device."""
        if not mixed.is_mixed:  # a mixed clip has no one class that would be right
            for head, counts in self.train_counts.items():
                counts.update(logits[head].detach(), part.labels[head])
        self.loss_sums[:-1] += torch.stack([loss.detach() for loss in losses.values()])
        # Not the clip of `blank_batch`.
        self.loss_sums[-1] += (part.indices >= 0).sum()

    def evaluate(self) -> EvalReport | None:
        """The validation split on every rank; None in an epoch without validation."""
        position = self.state.position
        # Also before a save: the checkpoint then holds what was evaluated.
        for module in dict.fromkeys([self.model, self.evaluated]):  # in one order on every rank
            distributed.average_buffers(module)
        epoch = position.epoch + 1
        last = epoch == self.options.epochs
        try:
            if self.options.precise_bn is not None:
                batches = self.unchanged_clips(self.options.precise_bn)
                measure_batch_norms(self.evaluated, batches, autocast=self.autocast)
            if self.validate is None or not (last or epoch % self.options.eval_every == 0):
                return None
            report = self.validate(self.evaluated, last, self.keep_going)
        except EvaluationStoppedError:
            self.saving.save_and_stop()
            raise
        found = [SkippedClip(name, reason, position.step) for name, reason in report.skipped]
        self.skipped.add(found, epoch=epoch, log=self.log, split="val")
        return report

    def count_some(self) -> dict[str, ClassCounts]:
        """Counts of a few validation clips, for difficulty; empty where it does not need them."""
        if self.difficulty_pass is None:
            return {}
        try:
            return self.difficulty_pass(self.evaluated, self.keep_going)
        except EvaluationStoppedError:
            self.saving.save_and_stop()
            raise

    def unchanged_clips(self, num_steps: int) -> Iterator[Tensor]:
        """This rank's clips of the epoch's first steps, as the model takes them, and not mixed.

        Raises:
            EvaluationStoppedError: a rank was asked to stop.

        """
        epoch, size = self.state.position.epoch, self.options.micro_batch_size
        total = min(num_steps, self.state.position.steps_per_epoch)
        with Progress("batch norm", total=total, unit="steps", quiet=self.quiet) as progress:
            for step, batch in enumerate(self.loader.epoch(epoch, num_steps=num_steps)):
                if not self.keep_going(step):
                    raise EvaluationStoppedError
                for part in batch.split(size):
                    # See `train_step`: a clip left alone may have no variance.
                    if not batch.skipped or len(part) > 1:
                        part = part.to(self.device)
                        clips = part.clips.flatten(0, 1)
                        yield self.to_input(clips, part.appearance, part.clips_to_rgb)
                progress.advance(1)

    def keep_going(self, videos_done: int) -> bool:
        """Between two batches of an evaluation: a sign of life; False ends it."""
        position = self.state.position
        self.log.beat("evaluating", epoch=position.epoch + 1, step=position.step, done=videos_done)
        return self.saving.keeps_going()

    def difficulty_counts(self, counts: dict[str, ClassCounts]) -> dict[str, ClassCounts]:
        """The counts that difficulty is measured by; empty where there are none this epoch.

        Args:
            counts: of the validation split, or a part of it; empty: of none.

        """
        all_reduce_counts(list(self.train_counts.values()))
        if self.options.difficulty_source == "train":
            return self.train_counts
        if self.crossfit is not None:
            since = self.state.position.epoch - self.options.crossfit_from
            is_due = since >= 0 and since % self.options.crossfit_every == 0
            return self.crossfit(self.evaluated) if is_due else {}
        return counts

    def settle_buckets(self) -> None:
        """Before the first step, and before a state is taken up: see `distributed`."""
        if isinstance(self.network, DistributedDataParallel):
            size = max(self.loader.order.forward_sizes(self.options.micro_batch_size))
            clips = self.to_input(self.loader.blank_clips(size).to(self.device))
            distributed.settle_buckets(self.network, clips, self.autocast)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module
