import pytest
import torch
from torch import nn

from cdb_video.models.backbones import BACKBONES
from cdb_video.training.layers import _parts, layers_to_heads
from cdb_video.training.optim import build_optimizer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)


class Chain(nn.Module):
    """A stem, two blocks, a norm, and a token that belongs to none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.stem = nn.Sequential(nn.Conv3d(1, 1, 1, bias=False), nn.ReLU())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(1, bias=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Chain()
        self.heads = nn.ModuleDict({"verb": nn.Linear(1, 2, bias=False)})


def test_a_stem_and_each_block_are_layers_and_a_norm_behind_them_is_in_the_heads() -> None:
    assert layers_to_heads(Chain()) == {
        "token": 3,
        "stem.0.weight": 3,
        "blocks.0.conv.weight": 2,
        "blocks.1.conv.weight": 1,
        "norm.weight": 0,
    }


def test_rates_fall_from_the_heads_to_the_input() -> None:
    model = Model()

    optimizer = build_optimizer(model, name="adamw", lr=0.16, layer_decay=0.5, head_lr_scale=2)

    rates = {
        id(parameter): group["peak_lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == pytest.approx(
        {
            # As get_num_layer_for_vit of BEiT and VideoMAE: of L blocks, the i-th from 1 on has
            # decay^(L + 1 - i), patches and tokens decay^(L + 1), and all else, as the norm, 1.
            "backbone.token": 0.02,
            "backbone.stem.0.weight": 0.02,
            "backbone.blocks.0.conv.weight": 0.04,
            "backbone.blocks.1.conv.weight": 0.08,
            "backbone.norm.weight": 0.16,
            "heads.verb.weight": 0.32,
        }
    )


@pytest.mark.parametrize(
    ("backbone", "layers", "first", "last", "away"),
    [
        # Stems, then three stages in which slow, fast and lateral stand side by side.
        ("slowfast_tiny", 4, "fast_stem.0.weight", "fast.2.conv1.weight", 1),
        ("r3d_10", 5, "stem.0.weight", "layer4.conv2.weight", 1),
        # Its patches with the class token, 16 blocks, and a norm.
        ("mvit_v2_s", 17, "pos_encoding.class_token", "norm.weight", 0),
        ("mvit_v2_s", 17, "conv_proj.weight", "blocks.15.mlp.3.bias", 1),
        # Its patches, 2 + 2 + 6 + 2 blocks and three mergers, and a norm.
        ("swin3d_t", 16, "patch_embed.proj.weight", "norm.weight", 0),
        # Its first convolution with its norm, and fifteen blocks.
        ("resnet32", 16, "bn1.weight", "layer3.4.bn2.bias", 1),
        (
            "slowfast_r50",
            5,
            "blocks.0.multipathway_blocks.1.conv.weight",
            "blocks.4.multipathway_blocks.0.res_blocks.0.branch1_conv.weight",
            1,
        ),
    ],
)
def test_backbones_of_each_kind(
    backbone: str, layers: int, first: str, last: str, away: int
) -> None:
    with torch.device("meta"):
        found = layers_to_heads(BACKBONES[backbone](num_frames=16, crop_size=224))

    assert max(found.values()) == found[f"net.{first}"] == layers
    assert found[f"net.{last}"] == away


@pytest.mark.parametrize("backbone", ["slowfast_tiny", "r3d_10", "resnet32", "lenet"])
def test_every_parameter_of_a_backbone_has_a_layer(backbone: str) -> None:
    with torch.device("meta"):
        module = BACKBONES[backbone](num_frames=16, crop_size=64)

    placed = [id(p) for layer, _ in _parts(module) for part in layer for p in part.parameters()]
    assert sorted(placed) == sorted(map(id, module.parameters()))


def test_a_backbone_without_parameters_has_no_layers() -> None:
    model = nn.ModuleDict({"backbone": nn.Flatten(), "heads": nn.Linear(1, 2, bias=False)})

    [group] = build_optimizer(model, name="sgd", lr=0.1, head_lr_scale=3).param_groups

    assert group["peak_lr"] == pytest.approx(0.3)
