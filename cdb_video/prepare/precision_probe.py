"""Convolutions of a model in the chosen precision against fp32, once at the start.

Some versions of PyTorch, cuDNN and oneDNN compute wrong weight gradients in reduced precision, for
some shapes, and only where memory is not fresh: training then learns nothing, without an error.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdb_video.errors import ConfigError
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast, choose_precision, input_type

LARGEST_ERROR = 0.02
"""Of a result, as a share of its length; rounding to bf16 is 0.003, a wrong kernel 0.1 and more."""
SLOW = 1.2
"""Times fp32's time, over all layers, from which on a user is told."""
CPU_PIXELS = 2**17
"""Of the probe's clips on a CPU, together, but one clip at least: a single small image would say
nothing of the speed. On a GPU the batch is training's, as cuDNN chooses by it."""
DIRTY_SIZES = [4**n for n in range(4, 11)]
"""Numbers in each of the pieces of memory that are filled with NaN and given back: 1 kB to 4 MB."""
GRADIENT = 1 / 16
"""Size of the gradients that come in, so that fp16's sums over many pixels stay finite."""

ClipShape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of a model, and the first input that it gets."""

    name: str
    module: nn.Conv2d | nn.Conv3d
    """On the meta device: shapes without numbers."""
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Probed:
    """What was found of one layer."""

    layer: ConvLayer
    errors: dict[str, float]
    """Result -> its distance from fp32's, as a share of the latter's length."""
    seconds: tuple[float, float]
    """In the precision, and in fp32."""

    @property
    def wrong(self) -> str | None:
        """The first result that is wrong, such as "weight gradient off by 140 %"."""
        for name, error in self.errors.items():
            if not error < LARGEST_ERROR:  # NaN is wrong
                return f"{name} " + (f"off by {100 * error:.0f} %" if error < 1e3 else "not finite")
        return None


def probed_precision(
    name: Literal["auto", "fp32", "bf16", "fp16"],
    model: Recognizer,
    *,
    clips: int,
    num_frames: int,
    crop_size: int,
    backward: bool,
    quiet: bool = False,
) -> Precision:
    """The precision that a name stands for on the model's device, sound for the model's layers.

    Args:
        name: `train.precision`.
        model: on its device.
        clips: of a forward pass.
        num_frames: T.
        crop_size: side in pixels.
        backward: whether gradients are needed as well.
        quiet: do not say where the precision is slower than fp32.

    Raises:
        ConfigError: a convolution is wrong in it; names layer, versions and the way out.

    """
    device = next(model.parameters()).device
    precision = choose_precision(name, device)
    if precision == "fp32" and device.type != "cuda":  # there TF32
        return precision
    if device.type != "cuda":
        clips = max(1, min(clips, CPU_PIXELS // (num_frames * crop_size**2)))
    shape = (clips, 3, num_frames)
    layers = conv_layers(model, (*shape, crop_size, crop_size))
    found = [probe(layer, device, precision, backward=backward) for layer in layers]
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for one in found:
        if one.wrong:
            raise ConfigError(
                f"train.precision={name}: {_shown(precision, device)} is wrong here: "
                f"{one.wrong} in {one.layer.name} (input {_size(one.layer.input_shape)}) with "
                f"{versions(device)}; {_way_out(precision)}"
            )
    if found and not quiet and (line := slowness(found, precision, device)):
        print(line)
    return precision


def conv_layers(model: Recognizer, clip_shape: ClipShape) -> list[ConvLayer]:
    """Every different convolution of the model, at the shapes that clips (N, C, T, H, W) give."""
    shadow = copy.deepcopy(model).to("meta").eval()
    layers: dict[tuple[Any, ...], ConvLayer] = {}

    def note(module: nn.Conv2d | nn.Conv3d, inputs: tuple[Tensor, ...], name: str) -> None:
        shape = tuple(inputs[0].shape)
        about = (module.stride, module.padding, module.dilation, module.groups)
        layers.setdefault((module.weight.shape, about, shape), ConvLayer(name, module, shape))

    hooks = [
        module.register_forward_pre_hook(partial(note, name=name))
        for name, module in shadow.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d)
    ]
    if hooks:  # a model on saved features, or one of linear layers alone, has none
        with torch.no_grad():
            shadow(torch.empty(clip_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return list(layers.values())


def probe(
    layer: ConvLayer, device: torch.device, precision: Precision, *, backward: bool
) -> Probed:
    """One layer with random numbers, in the precision and in fp32."""
    module = copy.deepcopy(layer.module).to_empty(device=device)
    is_3d = len(layer.input_shape) == 5
    layout = torch.channels_last_3d if is_3d else torch.channels_last
    generator = torch.Generator(device).manual_seed(0)
    dtype = input_type(precision)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=fan_in**-0.5, generator=generator)
    module.to(memory_format=layout)
    made = torch.randn(layer.input_shape, device=device, generator=generator).to(dtype)
    inputs = made.to(memory_format=layout).requires_grad_(backward)
    # In the first run of each the libraries choose and make their kernels.
    runs = range(2)
    low, exact = partial(autocast, device, precision), partial(_exact, device)
    results, seconds = [_run(module, inputs, low, backward=backward) for _ in runs][-1]
    inputs = inputs.detach().float().requires_grad_(backward)
    expected, seconds_fp32 = [_run(module, inputs, exact, backward=backward) for _ in runs][-1]
    return Probed(
        layer,
        {name: _error(results[name], expected[name]) for name in expected},
        (seconds, seconds_fp32),
    )


def _run(
    module: nn.Conv2d | nn.Conv3d,
    inputs: Tensor,
    context: Callable[[], AbstractContextManager[None]],
    *,
    backward: bool,
) -> tuple[dict[str, Tensor], float]:
    """Result and, with `backward`, both gradients, and the seconds that they took."""
    _leave_nans(inputs.device)
    start = _clock(inputs.device)
    with context(), torch.set_grad_enabled(backward):
        results = {"result": module(inputs)}
    seconds = _clock(inputs.device) - start
    if backward:
        generator = torch.Generator(inputs.device).manual_seed(1)
        shape = results["result"].shape
        gradient = GRADIENT * torch.randn(shape, device=inputs.device, generator=generator)
        gradient = torch.empty_like(results["result"]).copy_(gradient)
        _leave_nans(inputs.device)
        start = _clock(inputs.device)
        wanted = (inputs, module.weight)
        with context():
            grads = torch.autograd.grad(results["result"], wanted, gradient)
        seconds += _clock(inputs.device) - start
        results |= dict(zip(("input gradient", "weight gradient"), grads, strict=True))
    return {name: values.detach() for name, values in results.items()}, seconds


def _leave_nans(device: torch.device) -> None:
    """Fill memory with NaN and give it back: who reads what it did not write now shows it."""
    pieces = [torch.full((size,), torch.nan, device=device) for size in DIRTY_SIZES]
    del pieces


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """fp32 as it is written: neither TF32 nor autocast, by cuDNN's own choice of kernel."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def slowness(found: list[Probed], precision: Precision, device: torch.device) -> str | None:
    """A line for the user where the precision is slower than fp32 over all layers."""
    ours, theirs = (sum(seconds) for seconds in zip(*(one.seconds for one in found), strict=True))
    if ours < SLOW * theirs:
        return None
    worst = max(found, key=lambda one: one.seconds[0] - one.seconds[1])
    return (
        f"{_shown(precision, device)} takes {ours / theirs:.1f} times as long as fp32, the most in "
        f"{worst.layer.name}, with {versions(device)}: train.precision=fp32 may be faster"
    )


def versions(device: torch.device) -> str:
    """Of PyTorch and of the library that computes convolutions on the device."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    lines = [line.strip(" -") for line in torch.__config__.show().splitlines() if "MKL-DNN" in line]
    return f"torch {torch.__version__}, {lines[0].split(' (')[0] if lines else 'no oneDNN'}"


def _shown(precision: Precision, device: torch.device) -> str:
    kind = "TF32" if precision == "fp32" else precision
    return f"{kind} on the {'GPU' if device.type == 'cuda' else 'CPU'}"


def _way_out(precision: Precision) -> str:
    if precision == "fp32":
        return "set NVIDIA_TF32_OVERRIDE=0, or install another version of torch"
    return "use train.precision=fp32, or install another version of torch"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
