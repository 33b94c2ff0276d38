"""Batch norm's statistics measured again (`train.precise_bn`).

While training they are running means, over few clips a forward and over weights that have changed
since; with averaged weights (`train.ema`) they are of weights that were never run. Wu and Johnson,
"Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cdb_video import distributed


def moving_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms whose statistics move while the model trains: not those of a frozen part.

    Leaves the model in training mode.
    """
    norms = [module for module in model.train().modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.training and norm.track_running_stats]


@torch.no_grad()
def measure_batch_norms(
    model: nn.Module, batches: Iterable[Tensor], *, autocast: AbstractContextManager[object]
) -> None:
    """Give batch norm the mean and the variance of these clips, over all ranks.

    All else runs as in evaluation: without dropout or drop path. A forward's variance is the
    unbiased one, as in training. A channel whose figures are not finite, as after an overflow,
    keeps those that it had. An error leaves every statistic as it was.

    Args:
        model: a recognizer; left in evaluation mode. Every rank has to come with it.
        batches: clips (N, C, T, H, W) as the model takes them; with ranks, each its own.
        autocast: the precision of the forwards.

    """
    norms = moving_batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        measured = _pooled(model, norms, batches, autocast)
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, kept in zip(buffers, before, strict=True):
            buffer.copy_(kept)
    for statistics, new in zip(_statistics(norms), measured, strict=True):
        parts = new.split([statistic.numel() for statistic in statistics])
        for statistic, part in zip(statistics, parts, strict=True):
            statistic.copy_(torch.where(part.isfinite(), part, statistic))


def _pooled(
    model: nn.Module,
    norms: list[_BatchNorm],
    batches: Iterable[Tensor],
    autocast: AbstractContextManager[object],
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, of all norms in a row, in float64.

    The variance of all clips is the mean of the squares less the square of the mean.
    """
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # so a forward leaves its own statistics
    means, variances = _statistics(norms)
    sums = torch.zeros(
        2, sum(m.numel() for m in means), dtype=torch.float64, device=means[0].device
    )
    num_clips = 0
    for clips in batches:
        with autocast:
            model(clips)
        mean, variance = torch.cat(means).double(), torch.cat(variances).double()
        sums += len(clips) * torch.stack([mean, variance + mean**2])
        num_clips += len(clips)
    distributed.all_reduce(sums)
    mean, square = sums / distributed.all_reduce(torch.tensor(num_clips)).item()
    return mean, square - mean**2


def _statistics(norms: list[_BatchNorm]) -> tuple[list[Tensor], list[Tensor]]:
    """Running means, and running variances."""
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    return means, variances
