"""Parameter groups, optimisers and the learning rate as a function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from cdb_video.errors import RunError
from cdb_video.models.positions import CLASS_TOKENS, POSITION_TABLES
from cdb_video.training.layers import layers_to_heads


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw"],
    lr: float,
    head_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """SGD with momentum, or AdamW, over the parameters that require gradients.

    Args:
        model: its parameters under `heads.` get `lr * head_lr_scale`, the others are under
            `backbone.`.
        name: of the optimiser.
        lr: peak rate; `Schedule.apply` sets what is used.
        head_lr_scale: factor for the heads.
        layer_decay: factor on the rate from a layer of the backbone to the one before it, and from
            the heads to the last block; what follows the blocks is as the heads, without
            `head_lr_scale` (Bao et al., BEiT, arXiv 2106.08254; `layers_to_heads`).
        momentum: SGD's, or AdamW's beta 1.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: on weights of two or more dimensions, but for position tables and class
            tokens, as in BEiT and VideoMAE; biases and norms are left alone.

    """
    groups = _parameter_groups(
        model, _lr_scales(model, head_lr_scale, layer_decay), lr=lr, weight_decay=weight_decay
    )
    # fused: one kernel for all parameters in place of several a tensor.
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=True)
    nesterov = nesterov and momentum > 0
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        # Left to itself the fused optimiser starts with memory as it finds it, which a first step
        # that is not applied does not fill: the next one would take it for momentum.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer


def _lr_scales(model: nn.Module, head_lr_scale: float, layer_decay: float) -> dict[str, float]:
    """Parameter name -> factor on the rate."""
    away = layers_to_heads(model.get_submodule("backbone"))
    scales = {f"backbone.{name}": layer_decay**layers for name, layers in away.items()}
    return {name: scales.get(name, head_lr_scale) for name, _ in model.named_parameters()}


def _parameter_groups(
    model: nn.Module, scales: Mapping[str, float], *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(POSITION_TABLES + CLASS_TOKENS)
            key = name.startswith("heads."), scales[name], decays
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": lr * scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (_, scale, decays), parameters in groups.items()
    ]


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict, with every moment laid out in memory as its parameter is.

    A file holds contiguous tensors, the parameters are channels last, and the fused kernels walk
    both by address: without this a resumed run takes the moments of other weights, in silence.

    Raises:
        RunError: it is of other groups of parameters.
    """
    try:
        optimizer.load_state_dict(dict(state))
    except ValueError as error:
        raise RunError(
            f"the checkpoint's optimizer is another version's ({error}); start another run, with "
            "model.weights to begin from this one's"
        ) from None
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak: a function of epochs done, so nothing to resume."""

    epochs: int
    shape: Literal["cosine", "steps", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    """Epochs of linear rise from a hundredth of the peak."""
    step_at: Sequence[float] = (0.6,)
    """Shares of all epochs at which `steps` falls."""
    step_factor: float = 0.1

    def factor(self, epochs_done: float) -> float:
        """The share of the peak rate after this many epochs, fractions included."""
        if epochs_done < self.warmup_epochs:
            return 0.01 + 0.99 * epochs_done / self.warmup_epochs
        if self.shape == "constant":
            return 1.0
        if self.shape == "steps":
            passed = sum(epochs_done >= share * self.epochs for share in self.step_at)
            return self.step_factor**passed
        rest = max(self.epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(1, (epochs_done - self.warmup_epochs) / rest)))

    def apply(self, optimizer: Optimizer, epochs_done: float) -> float:
        """Set every group's rate; the factor is returned."""
        factor = self.factor(epochs_done)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor
