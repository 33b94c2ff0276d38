"""How clips look. In the loader: a window of the uint8 frames, scaled. On the device: all else.

A window is chosen before anything is converted, cut out, and scaled to the crop in one go: pixels
outside it are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor, nn

from cdb_video.clips.base import Planes, Window
from cdb_video.clips.batch import Appearance
from cdb_video.clips.pixel_changes import change_pixels


def crop(frames: Tensor, window: Window, *, crop_size: int) -> Tensor:
    """The window of frames (T, C, H, W) uint8, scaled to (T, C, crop_size, crop_size) uint8."""
    top, left, height, width = window
    return _scale(frames[..., top : top + height, left : left + width], crop_size)


def crop_planes(planes: Planes, window: Window, *, crop_size: int) -> Tensor:
    """The window of planes, scaled to YUV clips (T, 3, crop_size, crop_size) uint8.

    Chroma is cut at even edges, so up to a pixel outside the window, and widened by the scaling.
    """
    top, left = window.top // 2, window.left // 2
    bottom, right = -(-(window.top + window.height) // 2), -(-(window.left + window.width) // 2)
    chroma = _scale(planes.chroma[..., top:bottom, left:right], crop_size)
    return torch.cat([crop(planes.luma, window, crop_size=crop_size), chroma], 1)


def _scale(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-2:] == (side, side):
        return pixels
    scaled: Tensor = TF.resize(pixels, [side, side], antialias=True)
    return scaled


def bounding_window(windows: Sequence[Window]) -> Window:
    """The least window around all, from an even top and left: there chroma samples start."""
    top = min(window.top for window in windows) // 2 * 2
    left = min(window.left for window in windows) // 2 * 2
    bottom = max(window.top + window.height for window in windows)
    right = max(window.left + window.width for window in windows)
    return Window(top, left, bottom - top, right - left)


def view_windows(
    height: int, width: int, *, crop_size: int, short_side: int, num_crops: int
) -> list[Window]:
    """The evaluation windows: the centre, or three from end to end of the longer side.

    Each is the square that a crop of `crop_size` pixels covers after the shorter side was scaled
    to `short_side`.
    """
    side = _window_side(height, width, crop_size / short_side)
    top, left = (height - side) // 2, (width - side) // 2
    if num_crops == 1:
        return [Window(top, left, side, side)]
    if num_crops != 3:
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
    if width >= height:
        return [Window(top, x, side, side) for x in (0, left, width - side)]
    return [Window(y, left, side, side) for y in (0, top, height - side)]


def jittered_window(
    height: int,
    width: int,
    *,
    crop_size: int,
    short_side: int,
    scale: tuple[float, float],
    generator: torch.Generator,
) -> Window:
    """A square at a random place, as if the shorter side had a random length.

    That length is drawn from short_side * scale (SlowFast, arXiv 1812.03982: 256 to 320 pixels).
    """
    factor = _uniform(*scale, generator)
    side = _window_side(height, width, crop_size / (short_side * factor))
    return Window(_randint(height - side, generator), _randint(width - side, generator), side, side)


def random_resized_window(
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Window:
    """A rectangle of a random share of the area and a random ratio of width to height.

    Inception's (arXiv 1409.4842) way to crop, as torchvision's RandomResizedCrop has it: the share
    is uniform, the ratio log-uniform; one that does not fit into the frame is drawn again, and
    after ten of them it is the largest centred window of an allowed ratio.
    """
    for _ in range(10):
        pixels = height * width * _uniform(*area, generator)
        ratio = math.exp(_uniform(math.log(aspect[0]), math.log(aspect[1]), generator))
        window_width = max(1, round(math.sqrt(pixels * ratio)))
        window_height = max(1, round(math.sqrt(pixels / ratio)))
        if window_width <= width and window_height <= height:
            top = _randint(height - window_height, generator)
            left = _randint(width - window_width, generator)
            return Window(top, left, window_height, window_width)
    window_width = min(width, max(1, round(height * aspect[1])))
    window_height = min(height, max(1, round(width / aspect[0])))
    top, left = (height - window_height) // 2, (width - window_width) // 2
    return Window(top, left, window_height, window_width)


def _window_side(height: int, width: int, share: float) -> int:
    return min(height, width, max(1, round(min(height, width) * share)))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _randint(highest: int, generator: torch.Generator) -> int:
    return int(torch.randint(highest + 1, (), generator=generator))


@dataclass(frozen=True)
class EvaluationCrops:
    """The windows of every view: nothing is random."""

    crop_size: int
    short_side: int
    num_crops: int = 1

    def windows(self, height: int, width: int) -> list[Window]:
        """`num_crops` windows of a frame of this size."""
        return view_windows(
            height,
            width,
            crop_size=self.crop_size,
            short_side=self.short_side,
            num_crops=self.num_crops,
        )


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a training clip: its window, whether it is mirrored, its colours."""

    crop_size: int
    short_side: int
    crop: Literal["random_resized", "jitter", "pad"] = "random_resized"
    area: tuple[float, float] = (0.25, 1.0)
    aspect: tuple[float, float] = (0.75, 1.3333)
    scale: tuple[float, float] = (1.0, 1.25)
    padding: int = 4
    flip: bool = True
    no_flip_labels: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Head -> class indices whose clips are never mirrored."""
    color_jitter: float = 0.0
    rand_augment: tuple[int, int] | None = None
    """(operations, magnitude); see `change_pixels`."""
    erase: float = 0.0

    def window(self, height: int, width: int, *, generator: torch.Generator) -> Window:
        """A random window of a frame of this size."""
        if self.crop == "pad":
            [centre] = view_windows(
                height, width, crop_size=self.crop_size, short_side=self.short_side, num_crops=1
            )
            return centre
        if self.crop == "random_resized":
            return random_resized_window(
                height, width, area=self.area, aspect=self.aspect, generator=generator
            )
        return jittered_window(
            height,
            width,
            crop_size=self.crop_size,
            short_side=self.short_side,
            scale=self.scale,
            generator=generator,
        )

    def pixels(self, frames: Tensor, *, generator: torch.Generator) -> Tensor:
        """The window's frames (T, C, H, W) uint8 RGB with stronger changes, where there are any."""
        return change_pixels(
            frames, rand_augment=self.rand_augment, erase=self.erase, generator=generator
        )

    def appearance(self, labels: Mapping[str, int], *, generator: torch.Generator) -> Appearance:
        """Flip, colour factors and shift of a clip with these labels."""
        # Both are always drawn, so that one setting never shifts the draws of another.
        heads_or_tails = torch.rand((), generator=generator) < 0.5
        spread = 2 * torch.rand(3, generator=generator) - 1
        shift = None
        if self.crop == "pad":
            high = 2 * self.padding + 1
            shift = torch.randint(high, (2,), generator=generator) - self.padding
        kept = any(labels[head] in classes for head, classes in self.no_flip_labels.items())
        return Appearance(
            flip=heads_or_tails & self.flip & (not kept),
            jitter=1 + self.color_jitter * spread,
            shift=shift,
        )


class ToModelInput(nn.Module):
    """uint8 clips to the normalised floats that a backbone takes, on the clips' device.

    Args:
        mean: per channel, in units of `value_range`.
        std: per channel, in units of `value_range`.
        value_range: what the brightest pixel, 255, becomes: 1 or 255.
        jitter: apply the colour factors of an appearance; without, a few passes are saved.
        padding: most pixels that an appearance moves a clip by.
        dtype: of the result: the type in which the network's first layer computes, so that it need
            not be cast again (`precision.input_type`).

    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        value_range: float = 1.0,
        *,
        jitter: bool = True,
        padding: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.jitter = jitter
        self.padding = padding
        self.dtype = dtype
        # (pixel / 255 * value_range - mean) / std as one multiplication and one addition.
        shape = (1, -1, 1, 1, 1)
        means, stds = torch.tensor(mean).reshape(shape), torch.tensor(std).reshape(shape)
        self.register_buffer("scale", value_range / (255 * stds), persistent=False)
        self.register_buffer("shift", -means / stds, persistent=False)

    def forward(
        self, clips: Tensor, appearance: Appearance | None = None, to_rgb: Tensor | None = None
    ) -> Tensor:
        """Normalised clips, with an appearance each.

        Args:
            clips: (N, C, T, H, W) uint8.
            appearance: flip (N,) and jitter (N, 3); None: evaluation, clips as they are.
            to_rgb: (N, 3, 4) of clips of YUV planes, see `Planes`; None: they are RGB.

        Returns:
            (N, C, T, H, W) of `dtype`, channels last in memory, as 3D convolutions are fastest.

        """
        pixels = clips
        if appearance is not None:
            # While a pixel is still one byte.
            flip = appearance.flip.reshape(-1, 1, 1, 1, 1)
            pixels = torch.where(flip, pixels.flip(-1), pixels)
            if appearance.shift is not None:
                pixels = move(pixels, appearance.shift, most=self.padding)
        if to_rgb is not None:
            pixels = convert_to_rgb(_channels_last(pixels), to_rgb)
        if appearance is not None and self.jitter:
            pixels = color_jitter(_channels_last(pixels), appearance.jitter)
        # Normalise, cast and lay out in one pass; the arithmetic is fp32's in every `dtype`.
        made = torch.empty(
            pixels.shape,
            dtype=self.dtype,
            device=pixels.device,
            memory_format=torch.channels_last_3d,
        )
        return torch.addcmul(self.shift, pixels, self.scale, out=made)


def move(pixels: Tensor, shift: Tensor, *, most: int) -> Tensor:
    """Pixels (N, C, T, H, W) moved up and left by shift (N, 2), black coming in from outside.

    What is cut out of an image with `most` black pixels around it, at a place of its own: the
    augmentation of He et al. (CVPR 2016, section 4.2) for small images.
    """
    padded = F.pad(pixels, (most,) * 4).permute(0, 3, 4, 1, 2)
    height, width = pixels.shape[-2:]
    rows = torch.arange(height, device=pixels.device) + most + shift[:, :1]
    columns = torch.arange(width, device=pixels.device) + most + shift[:, 1:]
    clips = torch.arange(len(pixels), device=pixels.device)
    moved = padded[clips[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 4, 1, 2)


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32, memory_format=torch.channels_last_3d)


def convert_to_rgb(pixels: Tensor, to_rgb: Tensor) -> Tensor:
    """YUV pixels (N, 3, T, H, W) as RGB in [0, 255], by a matrix (N, 3, 4) each."""
    flat = pixels.permute(0, 2, 3, 4, 1).flatten(1, 3)
    rgb = torch.baddbmm(to_rgb[:, None, :, 3], flat, to_rgb[:, :, :3].mT)
    # In memory this still is channels last.
    return rgb.clamp(0, 255).reshape(-1, *pixels.shape[2:], 3).permute(0, 4, 1, 2, 3)


def color_jitter(pixels: Tensor, factors: Tensor) -> Tensor:
    """Pixels (N, 3, T, H, W) in [0, 255] with changed brightness, contrast and saturation.

    Args:
        pixels: as floats.
        factors: (N, 3); one triple a clip, so that its frames change alike. Ones change nothing.

    As torchvision's ColorJitter in its first order: brightness, then contrast towards the clip's
    mean grey, then saturation towards each pixel's grey (ITU-R BT.601 weights).

    """
    brightness, contrast, saturation = factors.reshape(-1, 3, 1, 1, 1, 1).unbind(1)
    pixels = (pixels * brightness).clamp(0, 255)
    mean_grey = _grey(pixels).mean((2, 3, 4), keepdim=True)
    pixels = (mean_grey + contrast * (pixels - mean_grey)).clamp(0, 255)
    grey = _grey(pixels)
    return (grey + saturation * (pixels - grey)).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    # Scalars and not a tensor of weights, which would be a copy to the device at every step.
    red, green, blue = pixels.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
