"""Networks for images as backbones, and those of `torchvision.models` by name."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from cdb_video.errors import ConfigError
from cdb_video.models.base import GlobalMean, Normalization, VideoBackbone, require_clip

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_SEVERAL_OUTPUTS = "it gives several outputs in training"
_VERSIONED = "its weights load from torchvision's own files alone"
REFUSED = {
    "googlenet": _SEVERAL_OUTPUTS,
    "inception_v3": _SEVERAL_OUTPUTS,
    "squeezenet1_0": "its classifier is a convolution",
    "squeezenet1_1": "its classifier is a convolution",
    # They refuse a state dict without torchvision's version mark, and so every checkpoint of ours.
    "mnasnet0_5": _VERSIONED,
    "mnasnet0_75": _VERSIONED,
    "mnasnet1_0": _VERSIONED,
    "mnasnet1_3": _VERSIONED,
}
"""Image networks of torchvision that cannot be a backbone -> why."""


class ImageBackbone(VideoBackbone):
    """A network for images (N, C, H, W) as a `Backbone`: an image is a video of one frame.

    It sees every frame for itself, and features are averaged over the frames: the consensus of
    temporal segment networks (Wang et al., ECCV 2016). Channels-last clips reach it as they lie.
    """

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, num_features)."""
        num_frames = clips.shape[2]
        features: Tensor = self.net(clips.transpose(1, 2).flatten(0, 1))
        if num_frames > 1:
            features = features.unflatten(0, (-1, num_frames)).mean(1)
        return features


class _ViT(ImageBackbone):
    @property
    def layers_from_input(self) -> list[list[nn.Module]]:
        """Its patches, its blocks one by one, and the norm behind them."""
        net: Any = self.net
        blocks = [[block] for block in net.encoder.layers]
        return [[net.conv_proj], *blocks, [net.encoder.ln]]


def image_networks() -> list[str]:
    """Names of the image classifiers of `torchvision.models` that can be a backbone."""
    return [name for name in models.list_models(module=models) if name not in REFUSED]


def image_network(name: str, *, num_frames: int, crop_size: int) -> ImageBackbone:
    """A network of `image_networks()` with random weights, without its classifier.

    ViTs are made for the crop. A frame is run through the network once, without numbers, for what
    a crop must be differs from network to network.

    Raises:
        ConfigError: it is in `REFUSED`, or cannot take the crop.
    """
    if name in REFUSED:
        raise ConfigError(f"model.backbone: {name!r} cannot be a backbone: {REFUSED[name]}")
    require_clip(name, num_frames=num_frames, crop_size=crop_size)
    options, wrapper = {}, ImageBackbone
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        require_clip(
            name, num_frames=num_frames, crop_size=crop_size, min_crop=patch, crop_multiple=patch
        )
        options["image_size"], wrapper = crop_size, _ViT
    net = _create(name, **options)
    classifier, linear = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    net.set_submodule(classifier, nn.Identity())
    use_global_mean(net)
    _require_crop(net, name, crop_size)
    return wrapper(net, num_features=linear.in_features, normalization=image_normalization(name))


def imagenet1k_weights(name: str) -> Any | None:
    """torchvision's newest weights of a network that saw ImageNet-1k alone; None: there are none.

    SWAG's, which saw 3.6 billion images more and forbid commercial use, are left out.
    """
    if name not in image_networks():
        return None
    published = {weights.name: weights for weights in models.get_model_weights(name)}
    return published.get("IMAGENET1K_V2") or published.get("IMAGENET1K_V1")


def image_normalization(name: str) -> Normalization:
    """What those weights expect of pixels; ImageNet's mean and deviation where there are none."""
    weights = imagenet1k_weights(name)
    if weights is None:
        return IMAGENET
    transforms = weights.transforms()
    return Normalization(mean=tuple(transforms.mean), std=tuple(transforms.std))


def use_global_mean(net: nn.Module) -> None:
    """Replace, in place, every pool to one pixel by the mean whose gradient is channels last."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            net.set_submodule(name, GlobalMean(keepdim=True))


def _create(name: str, **options: Any) -> nn.Module:
    """`torchvision.models.<name>` without weights, on the default device."""
    device = torch.get_default_device()
    # RegNet's builder reads numbers out of tensors it makes, which "meta" cannot give.
    with warnings.catch_warnings(), torch.device("cpu" if name.startswith("regnet") else device):
        warnings.simplefilter("ignore")
        net: nn.Module = models.get_model(name, weights=None, **options)
    return net.to(device)


def _require_crop(net: nn.Module, name: str, crop_size: int) -> None:
    shadow = copy.deepcopy(net).to("meta").eval()
    try:
        shadow(torch.zeros(1, 3, crop_size, crop_size, device="meta"))
    except (RuntimeError, ValueError) as error:  # as each of them says it
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"clip.crop_size: {crop_size}; {name} cannot take it ({why})") from error
