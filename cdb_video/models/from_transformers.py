"""Video foundation models of `transformers`: VideoMAE, V-JEPA 2, TimeSformer, ViViT.

`hf:facebook/vjepa2-vitl-fpc64-256`, or `hf:` and a folder. The library's classes are used as they
are; ours are the positions of another clip, the patches as a linear layer, drop path, and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization, require_clip
from cdb_video.models.hub_families import (
    Family,
    config_of,
    family_of,
    grid_of,
    patch_of,
    side_of,
)
from cdb_video.models.hub_files import quiet, transformers
from cdb_video.models.hub_weights import with_todays_names
from cdb_video.models.patches import use_patch_linear
from cdb_video.models.positions import Grid, resize_positions
from cdb_video.models.tokens import FirstToken, TokenBackbone, TokenMean, set_drop_path

PREFIX = "hf:"
VERSION = "transformers"
"""In what a checkpoint keeps of a model: the version of the library that named its tensors."""


def build(
    name: str, architecture: Mapping[str, Any], *, num_frames: int, crop_size: int
) -> TokenBackbone:
    """The backbone with random weights, for a clip.

    Args:
        name: for messages.
        architecture: see `read_architecture`.
        num_frames: T, a multiple of the frames of a patch.
        crop_size: a multiple of the patch's side.

    Raises:
        ConfigError: a clip that is not made of whole patches, or a config that cannot be.
    """
    family, own = family_of(architecture), config_of(name, architecture)
    patch = patch_of(name, own)
    require_clip(
        name,
        num_frames=num_frames,
        crop_size=crop_size,
        min_frames=patch[0],
        frames_multiple=patch[0],
        min_crop=patch[1],
        crop_multiple=patch[1],
    )
    config = config_of(name, architecture)
    setattr(config, family.frames, num_frames)
    setattr(config, family.size, crop_size)
    net = _create(name, family, config)
    use_patch_linear(net)
    _add_drop_path(net)
    set_drop_path(net, getattr(config, "drop_path_rate", 0.0), name=name)
    norm = None
    if config.model_type == "videomae":
        _place_fixed_positions(net, grid_of(own, family), grid_of(config, family))
        # As its classifier, where features are a mean; with its own norm where that is not so.
        norm = nn.LayerNorm(config.hidden_size) if config.use_mean_pooling else None
    known = architecture["normalization"]
    backbone = _HubBackbone(
        net,
        pool=FirstToken() if family.class_token else TokenMean(norm),
        num_features=config.hidden_size,
        normalization=Normalization(
            tuple(known["mean"]), tuple(known["std"]), known["value_range"]
        ),
        # Tensors have the names of this version.
        architecture={**architecture, VERSION: transformers().__version__},
    )
    backbone.clip_note = _clip_note(name, family, own, config)
    return backbone


class _HubBackbone(TokenBackbone):
    def tokens(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, L, D); the library has time before channels."""
        found: Any = self.net(clips.transpose(1, 2))
        tokens: Tensor = found.last_hidden_state
        return tokens

    def with_todays_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this backbone, by today's names where an older version named them."""
        return with_todays_names(state, self.state_dict(), self.net.config)

    @property
    def layers_from_input(self) -> list[list[nn.Module]]:
        """Patches, each block, and what follows them, for learning rates by layer."""
        net: Any = self.net
        norm = getattr(net, "layernorm", None)
        last = [self.pool] if norm is None else [norm, self.pool]
        return [[net.embeddings], *([layer] for layer in _layers(net)), last]


def _create(name: str, family: Family, config: Any) -> Any:
    options = {"add_pooling_layer": False} if family.model == "VivitModel" else {}
    try:
        with quiet():
            net = getattr(transformers(), family.model)(config, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.backbone: {name}: {error}") from error
    # Its predictor is for pretraining: DDP would wait for its gradients.
    return net.encoder if family.model == "VJEPA2Model" else net


def _clip_note(name: str, family: Family, own: Any, config: Any) -> str | None:
    """A line where the clip is another than the weights': what becomes of their positions."""
    before, after = (
        f"{getattr(of, family.frames)} x {side_of(name, getattr(of, family.size))}"
        for of in (own, config)
    )
    if before == after:
        return None
    rotary = config.model_type == "vjepa2"
    positions = "rotary positions, computed for it" if rotary else "positions interpolated"
    return f"{name}: made for clips of {before}, used at {after}: {positions}"


def _place_fixed_positions(net: Any, grid: Grid, to: Grid) -> None:
    """VideoMAE's sine and cosine positions, which are no weights: interpolated, and in a buffer.

    The library makes them anew for the length of another clip, counting patches in one row: there
    another clip's patch has the position of some other place. As a buffer they move with `to`; the
    library keeps them on the CPU and copies them in every forward.
    """
    embeddings = net.embeddings
    module = transformers().models.videomae.modeling_videomae
    with torch.device("cpu"):
        own = module.get_sinusoid_encoding_table(
            grid[0] * grid[1] * grid[2], net.config.hidden_size
        )
        table = resize_positions(own, grid, to)
    device = embeddings.patch_embeddings.projection.weight.device
    del embeddings.position_embeddings
    embeddings.register_buffer("position_embeddings", table.to(device), persistent=False)


def _add_drop_path(net: Any) -> None:
    """A place for stochastic depth in every block, off until `set_drop_path` sets a rate."""
    for layer in _layers(net):
        place = StochasticDepth(0.0, "row")
        if hasattr(layer, "drop_path"):  # V-JEPA 2, TimeSformer
            layer.drop_path = place
        elif hasattr(layer, "dropout"):  # ViViT: after either branch
            layer.dropout = nn.Sequential(layer.dropout, place)
        else:  # VideoMAE: at the end of either branch
            attention, mlp = layer.attention.output, layer.output
            attention.dropout = nn.Sequential(attention.dropout, place)
            mlp.dropout = nn.Sequential(mlp.dropout, place)


def _layers(net: Any) -> Any:
    if hasattr(net, "layers"):  # ViViT
        return net.layers
    return net.layer if hasattr(net, "layer") else net.encoder.layer
