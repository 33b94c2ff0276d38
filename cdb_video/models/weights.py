"""Load weights into a `Recognizer`: published files of four layouts, or our own checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cdb_video.errors import WeightsError
from cdb_video.files import UNPACKED_BYTES, refuse_unpacking
from cdb_video.models.hub_weights import pretrained_state
from cdb_video.models.positions import CLASS_FIRST, POSITION_TABLES, POSITIONS_1D
from cdb_video.models.published_weights import (
    KNOWN_WEIGHTS,
    MAX_WEIGHTS_BYTES,
    resolve_weights,
)
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.saved_names import by_todays_names
from cdb_video.models.weight_layouts import PREFIX, State, to_our_names

__all__ = [
    "KNOWN_WEIGHTS",
    "WeightsReport",
    "load_heads",
    "load_pretrained",
    "load_weights",
    "resolve_weights",
]

MIN_SHARE = 0.5
"""Of the backbone's parameters: a file of which less fits is for another network."""


@dataclass(frozen=True)
class WeightsReport:
    """What a weights file gave to a model, by the model's names; `unused` by the library's."""

    path: Path
    layout: str
    share: float
    """Of the backbone's parameters, by number of elements, that the file filled."""
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    """Among `loaded`: position tables, interpolated to the configured clip."""
    fresh: tuple[str, ...]
    """As initialised: absent from the file, or of another shape there."""
    unused: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Name -> (shape in the file, shape in the model)."""

    def summary(self) -> list[str]:
        """A few lines to print: the share loaded, then what was not, by name."""
        lines = [
            f"{self.path}: {self.share:.1%} of the backbone's parameters loaded "
            f"({len(self.loaded)} tensors, {self.layout} layout)"
        ]
        shapes = [f"{n} {file} -> {model}" for n, (file, model) in self.mismatched.items()]
        for title, names in (
            ("interpolated", self.resized),
            ("fresh", self.fresh),
            ("another shape", shapes),
            ("unused", self.unused),
        ):
            if names:
                lines.append(f"  {title}: {_shorten(names)}")
        return lines


def _shorten(names: Sequence[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def load_weights(
    model: Recognizer, path: str | PathLike[str], *, allow_partial: bool = False
) -> WeightsReport:
    """Fill a model from a file: every tensor whose name and shape fit; the rest stays fresh.

    Known layouts: our checkpoints (a `.safetensors` file or a folder with `model.safetensors`),
    pytorchvideo and PySlowFast `.pyth`, torchvision `.pth`, Hara's 3D-ResNets. Heads load where
    the file has one of the same name and class count. Pickles are read with `weights_only=True`.

    Raises:
        WeightsError: the file is missing or unreadable, less than half of the backbone fits (and
            not `allow_partial`), or a position table cannot be interpolated. The model is then
            as it was.
    """
    path = Path(path)
    expected = model.state_dict()
    layout, state = to_our_names(read_state(path), expected=expected.keys())
    state = by_todays_names(model, state)
    fitted, resized = _fit(state, expected, path=path)
    return _load(
        model, state, fitted, resized, path=path, layout=layout, allow_partial=allow_partial
    )


def load_pretrained(
    model: Recognizer, source: str, *, num_frames: int, crop_size: int
) -> WeightsReport:
    """Fill the backbone of a model that was built from `hf:source` with that model's own weights.

    Raises:
        ConfigError: no such model.
        WeightsError: weights that do not load, or are less than half of the backbone's.
    """
    own, resized = pretrained_state(source, num_frames=num_frames, crop_size=crop_size)
    state = {f"backbone.{name}": value for name, value in own.items()}
    fitted, _ = _fit(state, model.state_dict(), path=Path(source))
    return _load(
        model,
        state,
        fitted,
        tuple(f"backbone.{name}" for name in resized),
        path=Path(source),
        layout="transformers",
        allow_partial=False,
    )


def load_heads(model: Recognizer, path: Path) -> list[str]:
    """Fill heads of a model from a checkpoint of ours, and leave the rest; the heads' names.

    Raises:
        WeightsError: a head of another type or of other classes, or none of the model's.
    """
    state, expected = read_state(path), model.state_dict()
    fitted: State = {}
    for head in model.heads:
        ours, theirs = (_of_head(head, tensors) for tensors in (expected, state))
        if theirs and _shapes(theirs) != _shapes(ours):
            raise WeightsError(
                f"{path}: its head {head!r} has {_shapes(theirs)}, the model's {_shapes(ours)}"
            )
        fitted |= theirs
    if not fitted:
        raise WeightsError(f"{path}: has none of the heads {', '.join(model.heads)}")
    model.load_state_dict(fitted, strict=False)
    return [head for head in model.heads if _of_head(head, fitted)]


def _of_head(head: str, state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if name.startswith(f"heads.{head}.")}


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _load(
    model: Recognizer,
    state: State,
    fitted: State,
    resized: tuple[str, ...],
    *,
    path: Path,
    layout: str,
    allow_partial: bool,
) -> WeightsReport:
    """Put the tensors that fit into the model, and tell of those that did not."""
    expected = model.state_dict()
    share = _backbone_share(model, fitted)
    if share < MIN_SHARE and not allow_partial:
        # First names tell at a glance which network the file is for.
        theirs, ours = (
            min(names, default="nothing").removeprefix(PREFIX) for names in (state, expected)
        )
        raise WeightsError(
            f"{path}: {share:.0%} of the backbone's parameters fit, at least {MIN_SHARE:.0%} is "
            f"needed; the file has {theirs!r}, the model {ours!r}"
        )
    model.load_state_dict(fitted, strict=False)
    return WeightsReport(
        path=path,
        layout=layout,
        share=share,
        loaded=tuple(fitted),
        resized=resized,
        # Files of before PyTorch 0.4.1 have no `num_batches_tracked`, and nothing here uses it.
        fresh=tuple(
            name
            for name in expected
            if name not in fitted and not name.endswith("num_batches_tracked")
        ),
        unused=tuple(name.removeprefix(PREFIX) for name in state if name not in expected),
        mismatched={
            name: (tuple(value.shape), tuple(expected[name].shape))
            for name, value in state.items()
            if name in expected and name not in fitted
        },
    )


def read_state(path: Path) -> State:
    """The tensors of a file, by the file's names.

    Raises:
        WeightsError: the file is missing, cannot be read, or holds no tensors.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise WeightsError(f"{path}: larger than {MAX_WEIGHTS_BYTES} bytes, no weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            refuse_unpacking(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file raises whatever its bytes lead to
        raise WeightsError(
            f"{path}: not readable as weights ({type(error).__name__}); allowed are .safetensors "
            "and PyTorch files that load with weights_only=True"
        ) from error
    for key in ("model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {str(name): value for name, value in tensors if isinstance(value, Tensor)}
    for name, value in state.items():
        # A view can show a few bytes as terabytes, which a copy of it would need.
        stored = UNPACKED_BYTES
        if value.layout == torch.strided:
            stored = max(stored, value.untyped_storage().nbytes())
        if value.numel() * value.element_size() > stored:
            raise WeightsError(f"{path}: {name} is no plain tensor: {tuple(value.shape)}")
    if not state:
        raise WeightsError(f"{path}: holds no named tensors, so no weights")
    return state


def _fit(
    state: State, expected: Mapping[str, Tensor], *, path: Path
) -> tuple[State, tuple[str, ...]]:
    """The tensors that have a place of their shape, and the names of those interpolated to it."""
    fitted: State = {}
    resized: list[str] = []
    for name, value in state.items():
        if name not in expected:
            continue
        shape = expected[name].shape
        if value.shape == shape:
            fitted[name] = value
        elif name.endswith(POSITION_TABLES):
            fitted[name] = _resize_positions(name, value, shape, path=path)
            resized.append(name)
    return fitted, tuple(resized)


def _resize_positions(name: str, table: Tensor, shape: torch.Size, *, path: Path) -> Tensor:
    """A position table (L, D) or (1, L, D) of one clip, interpolated to another.

    Linear over time and over relative offsets, bicubic over the square grid of a frame's patches,
    as ViT does for another image size (Dosovitskiy et al., ICLR 2021, 3.2).
    """
    length, width = shape[-2:]
    if table.shape[-1] == width and table.ndim == len(shape):
        rows = table.reshape(1, -1, width).transpose(1, 2).float()
        first = 1 if name.endswith(CLASS_FIRST) else 0
        side, new_side = math.isqrt(rows.shape[2] - first), math.isqrt(length - first)
        if name.endswith(POSITIONS_1D):
            return F.interpolate(rows, size=length, mode="linear").transpose(1, 2).reshape(shape)
        is_square = name.endswith(("pos_embed_spatial", CLASS_FIRST))
        if is_square and side**2 == rows.shape[2] - first:
            grid = rows[..., first:].reshape(1, width, side, side)
            grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic").flatten(2)
            return torch.cat([rows[..., :first], grid], dim=2).transpose(1, 2).reshape(shape)
    raise WeightsError(
        f"{path}: {name} is {tuple(table.shape)} and cannot be interpolated to {tuple(shape)}; "
        "use the clip.num_frames and clip.crop_size of the weights"
    )


def _backbone_share(model: Recognizer, fitted: Mapping[str, Tensor]) -> float:
    """The fraction of the backbone's parameters, by number of elements, that is in `fitted`."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.")
    }
    return sum(size for name, size in sizes.items() if name in fitted) / max(sum(sizes.values()), 1)
