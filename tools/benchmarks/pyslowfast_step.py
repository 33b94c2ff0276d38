"""Our re-creation of PySlowFast's training step, as it ships and with its mixed precision.

Written from a description of its loop, and none of its code: fp32 clips from the loader's workers,
both pathways packed on the host, contiguous memory, unfused SGD, the norm of the gradient and four
numbers read on the host in every step, a check for NaN there as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.clips.batch import Batch
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.slowfast import slow_indices

from .kernels import stock_kernels

METRICS_HEAD = "action"
"""PySlowFast has one head; here every head learns, and the metrics are this one's."""


class PySlowFastStep:
    """A step on one batch, called again and again.

    Args:
        model: a SlowFast recogniser on its device, in contiguous memory.
        batch: on the host. What PySlowFast's workers do to it is done here, before any timing.
        amp: fp16 autocast and a gradient scaler, as `TRAIN.MIXED_PRECISION`; for a GPU.

    """

    def __init__(self, model: Recognizer, batch: Batch, *, amp: bool) -> None:
        self.model = model.train()
        self.device = next(model.parameters()).device
        self.amp = amp
        clips = _normalised(batch.clips.flatten(0, 1), model)
        slow = clips.index_select(2, slow_indices(clips.shape[2]))
        self.pathways = [slow, clips]
        if self.device.type == "cuda":
            self.pathways = [part.pin_memory() for part in self.pathways]
        self.labels = batch.labels
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4, nesterov=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp)
        self.read: tuple[float, ...] = ()
        """Loss, top-1 and top-5 error and gradient norm of the last step."""

    def __call__(self) -> None:
        """One step."""
        stock_kernels(self.device)
        inputs = [part.to(self.device, non_blocking=True) for part in self.pathways]
        labels = {head: part.to(self.device) for head, part in self.labels.items()}
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.amp):
            logits = self._forward(inputs)
            losses = [F.cross_entropy(logits[head], labels[head]) for head in logits]
            loss = torch.stack(losses).sum()
        if math.isnan(loss.detach()):
            raise RuntimeError("the loss is NaN")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = _gradient_norm(self.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        top1, top5 = _errors(logits[METRICS_HEAD], labels[METRICS_HEAD])
        self.read = (loss.item(), top1.item(), top5.item(), norm.item())

    def _forward(self, pathways: list[Tensor]) -> dict[str, Tensor]:
        backbone = self.model.backbone
        assert isinstance(backbone, nn.Module)  # noqa: S101 - a SlowFast is
        features = self.model.dropout(backbone.get_submodule("net")(pathways))
        return {head: module(features) for head, module in self.model.heads.items()}


def _normalised(clips: Tensor, model: Recognizer) -> Tensor:
    mean, std, value_range = model.normalization
    shape = (1, 3, 1, 1, 1)
    pixels = clips.float() / 255 * value_range
    return (pixels - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)


def _gradient_norm(model: nn.Module) -> Tensor:
    norms = [p.grad.detach().norm(2) for p in model.parameters() if p.grad is not None]
    total: Tensor = torch.stack(norms).norm(2)
    return total


def _errors(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 error in per cent, on the device."""
    order = logits.topk(5, dim=1).indices
    hits = order == labels[:, None]
    shares = [hits[:, :k].any(1).float().mean() for k in (1, 5)]
    return 100 * (1 - shares[0]), 100 * (1 - shares[1])
