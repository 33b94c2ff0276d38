"""Activations computed again in the backward pass instead of kept: less memory, a third more work.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cdb_video.errors import ConfigError
from cdb_video.training.layers import is_chain


def recompute_blocks(backbone: nn.Module) -> list[str]:
    """Let every block of the backbone keep its input alone; the names of the blocks.

    A block is a member of a chain of blocks that has no such chain inside, such as a residual block
    or a transformer layer. Names of parameters do not change, and gradients stay the same.

    Raises:
        ConfigError: it has no such chain, so nothing would be saved.
    """
    blocks = {
        f"{name}.{child_name}".lstrip("."): child
        for name, chain in backbone.named_modules()
        if is_chain(chain)
        for child_name, child in chain.named_children()
        if not any(is_chain(inner) for inner in child.modules())
    }
    if not blocks:
        raise ConfigError(
            "model.grad_checkpointing=true: the backbone has no chain of blocks to compute again; "
            "use model.grad_checkpointing=false"
        )
    for block in blocks.values():
        # Shadows the class's method on this object alone.
        block.forward = partial(_recomputed, block, block.forward)
    return list(blocks)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass, and for its repetition."""
    return nullcontext(), _statistics_as_they_are(block)


@contextmanager
def _statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """Within it batch norm uses the batch's statistics, and does not count them once more."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Without running statistics it would save other tensors than the first pass did.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
