"""The names that published files give to parameters, turned into the names of our `Recognizer`.

Ours are `backbone.net.<the library's name>` and `heads.<head>.weight|bias`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

PREFIX = "backbone.net."
BATCH_NORM_EPS = 1e-5

State = dict[str, Tensor]

_PARTS = {
    "conv": "conv",
    "bn": "norm",
    "branch1": "branch1_conv",
    "branch1_bn": "branch1_norm",
    "branch2.a": "branch2.conv_a",
    "branch2.a_bn": "branch2.norm_a",
    "branch2.b": "branch2.conv_b",
    "branch2.b_bn": "branch2.norm_b",
    "branch2.c": "branch2.conv_c",
    "branch2.c_bn": "branch2.norm_c",
    "conv_f2s": "conv_fast_to_slow",
}
_X3D_PARTS = _PARTS | {
    # pytorchvideo's `Conv2plus1d` has the two names the wrong way round in X3D's stem.
    "conv_xy": "conv.conv_t",
    "conv": "conv.conv_xy",
    # Batch norm and squeeze-and-excitation share one slot.
    "branch2.b_bn": "branch2.norm_b.0",
    "branch2.se.fc1": "branch2.norm_b.1.block.0",
    "branch2.se.fc2": "branch2.norm_b.1.block.2",
}
_X3D_HEAD = {
    "head.conv_5": "blocks.5.pool.pre_conv",
    "head.conv_5_bn": "blocks.5.pool.pre_norm",
    "head.lin_5": "blocks.5.pool.post_conv",
}
_STEM = re.compile(r"s1\.pathway(\d)_stem\.(\w+)")
_RESIDUAL = re.compile(r"s(\d)\.pathway(\d)_res(\d+)\.(.+)")
_OLD_TORCHVISION = (
    # Names of before torchvision's layers were renamed; its published files still have them.
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_FUSION = re.compile(r"s(\d)_fuse\.(\w+)")


def to_our_names(state: Mapping[str, Tensor], *, expected: Collection[str]) -> tuple[str, State]:
    """The layout's name, and the tensors under our names; `expected` are the model's names.

    Every key is kept: what the model has no place for (the file's classifier) ends as unused.
    """
    renamed = dict(state)
    if all(name.startswith("module.") for name in renamed):  # nn.DataParallel, as Hara's files
        renamed = {name.removeprefix("module."): value for name, value in renamed.items()}
    if any(name.startswith("backbone.") for name in renamed):
        return "cdb_video", renamed
    if any(name.startswith("s1.pathway0_stem.") for name in renamed):
        return "PySlowFast", _from_pyslowfast(renamed, expected=expected)
    return "library", {PREFIX + _of_today(name): value for name, value in renamed.items()}


def _of_today(name: str) -> str:
    """A name of torchvision's files, as its networks have it now."""
    for old, new in _OLD_TORCHVISION:
        name = old.sub(new, name)
    return name


def _from_pyslowfast(state: State, *, expected: Collection[str]) -> State:
    """PySlowFast's names for SlowFast, Slow, I3D, C2D and X3D, to pytorchvideo's."""
    two_pathways = any(name.startswith("s1_fuse.") for name in state)
    x3d = "s1.pathway0_stem.conv_xy.weight" in state
    # C2D and I3D have a pool without parameters as pytorchvideo's block 2.
    pooled = not any(name.startswith(f"{PREFIX}blocks.2.") for name in expected)
    renamed: State = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        ours = _module_name(module, two_pathways=two_pathways, x3d=x3d, pooled=pooled)
        renamed[f"{PREFIX}{ours or module}.{leaf}"] = value
    return _fold_shortcut_norms(renamed, expected=expected)


def _module_name(module: str, *, two_pathways: bool, x3d: bool, pooled: bool) -> str | None:
    """pytorchvideo's name of one of PySlowFast's modules; None for one without a counterpart."""
    parts = _X3D_PARTS if x3d else _PARTS
    if x3d and module in _X3D_HEAD:
        return _X3D_HEAD[module]
    if found := _FUSION.fullmatch(module):
        stage, part = found.groups()
        return f"blocks.{int(stage) - 1}.multipathway_fusion.{parts.get(part, part)}"
    if found := _STEM.fullmatch(module):
        block, (pathway, part) = "blocks.0", found.groups()
    elif found := _RESIDUAL.fullmatch(module):
        stage, pathway, unit, inner = found.groups()
        shift = 1 if pooled and int(stage) > 2 else 0
        block = f"blocks.{int(stage) - 1 + shift}"
        part = inner
    else:
        return None
    if two_pathways:
        block += f".multipathway_blocks.{pathway}"
    if module.startswith("s1."):
        return f"{block}.{parts.get(part, part)}"
    return f"{block}.res_blocks.{unit}.{parts.get(part, part)}"


def _fold_shortcut_norms(state: State, *, expected: Collection[str]) -> State:
    """Put a shortcut's batch norm that the model lacks into its neighbours.

    PySlowFast's X3D has one in the first block, pytorchvideo's does not. In evaluation it is a
    scale, which goes into the shortcut's convolution, and a shift, which goes into the bias of the
    other branch's last batch norm: both branches are added, so the block's output is the same.
    """
    for weight in [name for name in state if name.endswith(".branch1_norm.weight")]:
        block = weight.removesuffix(".branch1_norm.weight")
        conv, bias = f"{block}.branch1_conv.weight", f"{block}.branch2.norm_c.bias"
        if weight in expected or conv not in expected or bias not in expected:
            continue
        norm = {
            leaf: state.pop(f"{block}.branch1_norm.{leaf}")
            for leaf in ("weight", "bias", "running_mean", "running_var")
        }
        state.pop(f"{block}.branch1_norm.num_batches_tracked", None)
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + BATCH_NORM_EPS)
        state[conv] = state[conv] * scale.view(-1, 1, 1, 1, 1)
        state[bias] = state[bias] + norm["bias"] - norm["running_mean"] * scale
    return state
