"""Video foundation models of `transformers`: VideoMAE, V-JEPA 2, TimeSformer, ViViT.

`hf:facebook/vjepa2-vitl-fpc64-256`, or `hf:` and a folder. The library's classes are used as they
are; ours are the positions of another clip, the patches as a linear layer, drop path, and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cdb_video.errors import ConfigError, WeightsError
from cdb_video.models.base import Normalization, require_clip
from cdb_video.models.hub_files import (
    CONFIG,
    has_safetensors,
    model_folder,
    quiet,
    read_json,
    read_normalization,
    transformers,
)
from cdb_video.models.patches import use_patch_linear
from cdb_video.models.positions import Grid, resize_positions
from cdb_video.models.tokens import FirstToken, TokenBackbone, TokenMean, set_drop_path

PREFIX = "hf:"


@dataclass(frozen=True)
class Family:
    """What differs between the library's video transformers."""

    model: str
    """The class that is built: without classifier, and without what training leaves idle."""
    published: str
    """The class that weights are read as."""
    names: Mapping[str, str]
    """Prefix of a tensor's name there -> prefix of ours; others are not ours."""
    frames: str = "num_frames"
    size: str = "image_size"
    class_token: bool = True
    tables: tuple[str, ...] = ()
    """Learned position tables, by our names."""


FAMILIES = {
    "videomae": Family(
        "VideoMAEModel",
        "VideoMAEForVideoClassification",
        {"videomae.": "net.", "fc_norm.": "pool.norm."},
        class_token=False,
    ),
    "vjepa2": Family(
        "VJEPA2Model",
        "VJEPA2Model",
        {"encoder.": "net."},
        frames="frames_per_clip",
        size="crop_size",
        class_token=False,
    ),
    "timesformer": Family(
        "TimesformerModel",
        "TimesformerModel",
        {"": "net."},
        tables=("net.embeddings.position_embeddings", "net.embeddings.time_embeddings"),
    ),
    "vivit": Family(
        "VivitModel",
        "VivitForVideoClassification",
        {"vivit.": "net."},
        tables=("net.embeddings.position_embeddings",),
    ),
}
"""`model_type` of a model's config.json -> its family."""


def read_architecture(source: str) -> dict[str, Any]:
    """What it takes to build a model without its source: its config and pixels, as JSON has them.

    Raises:
        ConfigError: no such model, of another kind, or one that needs code of its own.
    """
    folder = model_folder(source)
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        if "auto_map" in config:
            raise ConfigError(
                f"model.backbone: hf:{source}: model_type {kind!r} is code in its repository "
                "(auto_map), and code of a repository is never run here; allowed are "
                f"{', '.join(FAMILIES)}"
            )
        raise ConfigError(
            f"model.backbone: hf:{source}: model_type {kind!r}; allowed are {', '.join(FAMILIES)}"
        )
    return {"config": config, "normalization": read_normalization(folder)._asdict()}


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
    family, own = _family(architecture), _config(name, architecture)
    patch = _patch(name, own)
    require_clip(
        name,
        num_frames=num_frames,
        crop_size=crop_size,
        min_frames=patch[0],
        frames_multiple=patch[0],
        min_crop=patch[1],
        crop_multiple=patch[1],
    )
    config = _config(name, architecture)
    setattr(config, family.frames, num_frames)
    setattr(config, family.size, crop_size)
    net = _create(name, family, config)
    use_patch_linear(net)
    _add_drop_path(net)
    set_drop_path(net, getattr(config, "drop_path_rate", 0.0), name=name)
    norm = None
    if config.model_type == "videomae":
        _place_fixed_positions(net, _grid(own, family), _grid(config, family))
        # As its classifier, where features are a mean; with its own norm where that is not so.
        norm = nn.LayerNorm(config.hidden_size) if config.use_mean_pooling else None
    known = architecture["normalization"]
    return _HubBackbone(
        net,
        pool=FirstToken() if family.class_token else TokenMean(norm),
        num_features=config.hidden_size,
        normalization=Normalization(
            tuple(known["mean"]), tuple(known["std"]), known["value_range"]
        ),
        architecture=dict(architecture),
    )


def pretrained_state(
    source: str, *, num_frames: int, crop_size: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A model's weights by the names of `build`'s backbone, and the tables that were interpolated.

    What its files lack is not among them: the library would fill it at random.

    Raises:
        ConfigError: no such model or weights.
        WeightsError: weights that do not load.
    """
    folder = model_folder(source, weights=True)
    architecture = read_architecture(source)
    family, config = _family(architecture), _config(source, architecture)
    reader = getattr(transformers(), family.published)
    try:
        with quiet():
            model, found = reader.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=has_safetensors(folder),
                weights_only=True,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=False,
            )
    except Exception as error:  # a foreign or damaged file raises whatever its bytes lead to
        raise WeightsError(
            f"{folder}: not readable as weights of {family.published} ({type(error).__name__}); "
            "allowed are .safetensors, and a pytorch_model.bin that loads with weights_only=True"
        ) from error
    state = {}
    for name, value in model.state_dict().items():
        for theirs, ours in family.names.items():
            if name.startswith(theirs) and name not in found["missing_keys"]:
                state[ours + name.removeprefix(theirs)] = value
                break
    clip = _config(source, architecture)
    setattr(clip, family.frames, num_frames)
    setattr(clip, family.size, crop_size)
    return state, _fit_tables(state, family, _grid(config, family), _grid(clip, family))


class _HubBackbone(TokenBackbone):
    def tokens(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, L, D); the library has time before channels."""
        found: Any = self.net(clips.transpose(1, 2))
        tokens: Tensor = found.last_hidden_state
        return tokens

    @property
    def layers_from_input(self) -> list[list[nn.Module]]:
        """Patches, each block, and what follows them: for learning rates by layer."""
        net: Any = self.net
        norm = getattr(net, "layernorm", None)
        last = [self.pool] if norm is None else [norm, self.pool]
        return [[net.embeddings], *([layer] for layer in _layers(net)), last]


def _family(architecture: Mapping[str, Any]) -> Family:
    return FAMILIES[architecture["config"]["model_type"]]


def _config(name: str, architecture: Mapping[str, Any]) -> Any:
    """The library's configuration object, a new one each time."""
    family = _family(architecture)
    config_class = getattr(transformers(), family.model).config_class
    try:
        return config_class.from_dict(dict(architecture["config"]))
    except Exception as error:  # its checks raise several kinds
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"model.backbone: {name}: {CONFIG} is no {config_class.__name__} "
            f"({reason[-1] if reason else type(error).__name__})"
        ) from error


def _create(name: str, family: Family, config: Any) -> Any:
    options = {"add_pooling_layer": False} if family.model == "VivitModel" else {}
    try:
        with quiet():
            net = getattr(transformers(), family.model)(config, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.backbone: {name}: {error}") from error
    # Its predictor is for pretraining: DDP would wait for its gradients.
    return net.encoder if family.model == "VJEPA2Model" else net


def _side(name: str, size: Any) -> int:
    """Of a square, that a config gives as a number or as two equal ones."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ConfigError(f"model.backbone: {name}: its frames or patches are {size}, not square")
    return int(sides.pop())


def _patch(name: str, config: Any) -> tuple[int, int]:
    """(frames, side) of a patch."""
    if config.model_type == "vivit":
        return int(config.tubelet_size[0]), _side(name, config.tubelet_size[1:])
    side = _side(name, config.patch_size)
    return (1 if config.model_type == "timesformer" else int(config.tubelet_size)), side


def _grid(config: Any, family: Family) -> Grid:
    frames, side = _patch(config.model_type, config)
    rows = _side(config.model_type, getattr(config, family.size)) // side
    return getattr(config, family.frames) // frames, rows, rows


def _fit_tables(state: dict[str, Tensor], family: Family, grid: Grid, to: Grid) -> tuple[str, ...]:
    """Interpolate learned position tables to the clip; the names of those that changed."""
    resized = []
    for name in family.tables:
        if name not in state:  # e.g. without time, for attention in space alone
            continue
        before = state[name]
        if name.endswith("time_embeddings"):
            state[name] = resize_positions(before, (grid[0], 1, 1), (to[0], 1, 1))
        elif family.model == "TimesformerModel":  # one table for all frames
            state[name] = resize_positions(before, (1, *grid[1:]), (1, *to[1:]), prefix=1)
        else:
            state[name] = resize_positions(before, grid, to, prefix=1)
        if state[name] is not before:
            resized.append(name)
    return tuple(resized)


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
