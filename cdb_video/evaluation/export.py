"""A model as one file for those without this package: ONNX, or PyTorch's own .pt2."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cdb_video.clips.transforms import ToModelInput
from cdb_video.errors import ConfigError, RunError
from cdb_video.models.recognizer import Recognizer

SUFFIXES = (".onnx", ".pt2")
METADATA = "cdb_video"
"""Key of an ONNX file's metadata; with `.json`, a .pt2's extra file. The value is JSON."""
TOLERANCE = 1e-4
"""Largest difference of a score between the file and the model that is put up with."""
CHECKED_BATCHES = (1, 3)
"""Neither is the batch that the model is traced with."""

Scores = dict[str, Tensor]
"""Head -> scores (N, K) fp32."""
Writer = Callable[[ExportedProgram, Path, list[str], Mapping[str, Any]], None]
Reader = Callable[[Path], Callable[[Tensor], Scores]]


class ExportedRecognizer(nn.Module):
    """Clips (N, 3, T, crop, crop) uint8 RGB to {head: scores (N, K) fp32}.

    Normalisation and softmax are inside: there is nothing left that a consumer could get wrong but
    the choice of pixels.
    """

    def __init__(self, model: Recognizer) -> None:
        super().__init__()
        self.to_input = ToModelInput(*model.normalization)
        self.recognizer = model

    def forward(self, clips: Tensor) -> Scores:
        """(N, 3, T, crop, crop) uint8 -> {head: (N, K)}."""
        logits: dict[str, Tensor] = self.recognizer(self.to_input(clips))
        return {head: values.float().softmax(1) for head, values in logits.items()}


def check_target(path: Path) -> None:
    """Refuse a file that `export_model` could not write, before any work is done.

    Raises:
        ConfigError: another suffix, or packages that are not installed.
        RunError: its folder is missing.

    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: the file's suffix must be {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent}: no such folder")
    needed = ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ()
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{path}: writing ONNX needs {', '.join(missing)}: pip install 'cdb-video[export]'"
        )


def export_model(
    model: Recognizer, path: Path, *, num_frames: int, crop_size: int, about: Mapping[str, Any]
) -> float:
    """Write the model to `path`, for any number of clips, and return the largest difference.

    The file is read again and its scores of random clips compared with the model's, in batches of
    1 and of 3. A file of that name is replaced in one move, and only by one that passed.

    Args:
        model: on any device; it is copied.
        path: its suffix chooses the format.
        num_frames: T.
        crop_size: in pixels.
        about: what the file says of itself; anything that JSON takes.

    Raises:
        ConfigError: another suffix, or packages that are not installed.
        RunError: the file cannot be written, or differs from the model by more than `TOLERANCE`.

    """
    check_target(path)
    exported = ExportedRecognizer(copy.deepcopy(model).cpu()).eval().requires_grad_(False)
    beside = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    write, read = _FORMATS[path.suffix]
    try:
        with warnings.catch_warnings():
            # Of the libraries' own code, which a user cannot mend.
            warnings.simplefilter("ignore")
            write(_trace(exported, num_frames, crop_size), beside, list(model.num_classes), about)
            difference = _largest_difference(exported, read(beside), num_frames, crop_size)
        # Written so that NaN is refused as well.
        if not difference <= TOLERANCE:
            raise RunError(
                f"{path}: not written, for its scores differ from the model's by {difference:.1e}; "
                f"{TOLERANCE:.0e} is allowed"
            )
        beside.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error})") from error
    finally:
        beside.unlink(missing_ok=True)
    return difference


def _trace(exported: nn.Module, num_frames: int, crop_size: int) -> ExportedProgram:
    # Not a batch of 1, which tracing would take for a constant.
    clips = _random_clips(2, num_frames, crop_size)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        exported, (clips,), dynamic_shapes={"clips": {0: batch}}, strict=False
    )


def _write_pt2(
    program: ExportedProgram, path: Path, heads: list[str], about: Mapping[str, Any]
) -> None:
    # The program returns a dict, so it knows its heads.
    torch.export.save(program, path, extra_files={f"{METADATA}.json": json.dumps(about)})


def _read_pt2(path: Path) -> Callable[[Tensor], Scores]:
    module: Callable[[Tensor], Scores] = torch.export.load(path).module()
    return module


def _write_onnx(
    program: ExportedProgram, path: Path, heads: list[str], about: Mapping[str, Any]
) -> None:
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["clips"],
        output_names=heads,
        dynamic_shapes={"clips": {0: "batch"}},  # its name alone: the program is traced
        verbose=False,
    )
    assert onnx is not None  # noqa: S101 - None is for exports straight to a file
    onnx.model.metadata_props[METADATA] = json.dumps(about)
    # One file: every backbone is far below the 2 GB that a file of this format can hold.
    onnx.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], Scores]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    heads = [output.name for output in session.get_outputs()]

    def run(clips: Tensor) -> Scores:
        scores = session.run(heads, {"clips": clips.numpy()})
        return {head: torch.from_numpy(part) for head, part in zip(heads, scores, strict=True)}

    return run


@torch.no_grad()
def _largest_difference(
    exported: nn.Module, read: Callable[[Tensor], Scores], num_frames: int, crop_size: int
) -> float:
    differences = []
    for batch in CHECKED_BATCHES:
        clips = _random_clips(batch, num_frames, crop_size)
        expected, found = exported(clips), read(clips)
        differences += [(found[head] - expected[head]).abs().max() for head in expected]
    return float(torch.stack(differences).max())


def _random_clips(batch: int, num_frames: int, crop_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, 3, num_frames, crop_size, crop_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


_FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
}
