"""The attentive head, and what tokens a backbone gives it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdb_video.errors import ConfigError
from cdb_video.models.backbones import BACKBONES, build_backbone
from cdb_video.models.heads import AttentiveHead
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.tokens import TokenBackbone, set_drop_path


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(6, 3).double().requires_grad_()
    tokens = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    names, parameters = zip(*head.named_parameters(), strict=True)

    def call(tokens: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        logits: torch.Tensor = torch.func.functional_call(head, state, (tokens,))
        return logits

    assert torch.autograd.gradcheck(call, (tokens, *parameters))


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 1568])
def test_the_order_of_tokens_changes_nothing_and_any_number_will_do(num_tokens: int) -> None:
    torch.manual_seed(0)
    head = AttentiveHead(128, 4).double().eval()
    nn.init.normal_(head.classifier.weight)
    tokens = torch.randn(3, num_tokens, 128, dtype=torch.double)

    logits = head(tokens)

    assert logits.shape == (3, 4)
    shuffled = head(tokens[:, torch.randperm(num_tokens)])
    torch.testing.assert_close(shuffled, logits, rtol=0, atol=1e-12)


def test_it_looks_at_what_its_query_is_like() -> None:
    """By hand: with identities for weights a query of 20 takes the token that is most like it."""
    head = AttentiveHead(2, 2).eval()
    with torch.no_grad():
        head.attention.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
        head.attention.out_proj.weight.copy_(torch.eye(2))
        head.query.copy_(torch.tensor([20.0, 0.0]))
        head.classifier.weight.copy_(torch.eye(2))
        for part in (head.mlp[1], head.mlp[3]):
            nn.init.zeros_(part.weight)  # type: ignore[arg-type]
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    # Normalised, tokens are (1, -1) and (-1, 1): softmax(20 / sqrt 2 * (1, -1)) is (1, 2e-13), so
    # it sees (1, -1), and 20 + 1 and -1 are normalised to (1, -1).
    tokens = torch.tensor([[[3.0, 1.0], [0.0, 5.0]]])

    torch.testing.assert_close(head(tokens), torch.tensor([[1.0, -1.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [24, 96, 200, 1408])
def test_it_is_made_for_any_width(width: int) -> None:
    with torch.device("meta"):
        head = AttentiveHead(width, 2)

    assert width % head.attention.num_heads == 0
    assert width // head.attention.num_heads >= min(width, 64)


def test_each_label_has_a_query_of_its_own_and_the_pool_waits_for_no_gradient() -> None:
    torch.manual_seed(0)
    backbone = BACKBONES["swin3d_t"](num_frames=2, crop_size=32)
    model = Recognizer(backbone, num_classes={"verb": 3, "noun": 2}, head_type="attentive")

    logits = model(torch.randn(2, 3, 2, 32, 32))
    sum(part.square().sum() for part in logits.values()).backward()

    assert {head: part.shape for head, part in logits.items()} == {"verb": (2, 3), "noun": (2, 2)}
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    queries = [head.query for head in model.heads.values()]
    assert not torch.equal(queries[0], queries[1])


def test_a_backbone_without_tokens_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.backbone: has no tokens, which model\.head_type"
    ):
        Recognizer(
            BACKBONES["r3d_10"](num_frames=4, crop_size=16),
            num_classes={"verb": 2},
            head_type="attentive",
        )


@pytest.mark.parametrize(
    ("name", "num_frames", "crop_size", "num_tokens"),
    [
        ("swin3d_t", 4, 64, 2 * 2 * 2),  # two frames and 32 pixels a token
        pytest.param("mvit_v2_s", 4, 64, 1 + 2 * 2 * 2, marks=pytest.mark.slow),
        pytest.param("mvit_b", 4, 64, 1 + 2 * 2 * 2, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_features_are_the_pool_of_the_tokens(
    name: str, num_frames: int, crop_size: int, num_tokens: int
) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](num_frames=num_frames, crop_size=crop_size)
    assert isinstance(backbone, TokenBackbone)
    backbone.eval()
    clips = torch.randn(2, 3, num_frames, crop_size, crop_size)

    tokens, features = backbone.tokens(clips), backbone(clips)

    assert tokens.shape == (2, num_tokens, backbone.num_features)
    pooled = tokens.mean(1) if name.startswith("swin") else tokens[:, 0]
    torch.testing.assert_close(features, pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("swin3d_t", 12), ("mvit_v2_s", 16), ("mvit_b", 16), ("convnext_tiny", 18)],
)
def test_drop_path_rises_from_the_first_block_to_the_last(name: str, blocks: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, num_frames=4, crop_size=64)
    assert isinstance(backbone, nn.Module)

    set_drop_path(backbone, 0.3, name=name)

    rates = [m.p for m in backbone.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.3 * i / (blocks - 1) for i in range(blocks)])


@pytest.mark.parametrize("name", ["r3d_10", "resnet32"])
def test_drop_path_of_a_convolutional_network_is_refused(name: str) -> None:
    backbone = BACKBONES[name](num_frames=4, crop_size=16)
    assert isinstance(backbone, nn.Module)

    with pytest.raises(
        ConfigError, match=rf"^model\.drop_path: 0\.1; {name} has no residual blocks"
    ):
        set_drop_path(backbone, 0.1, name=name)


def test_saved_features_are_a_backbone_that_changes_nothing() -> None:
    backbone = build_backbone(
        "features", num_frames=1, crop_size=1, architecture={"num_features": 5}
    )
    features = torch.randn(3, 5)

    assert torch.equal(backbone(features[..., None, None, None]), features)
    with pytest.raises(ConfigError, match=r"^model\.backbone: features is for data\.format=feat"):
        build_backbone("features", num_frames=1, crop_size=1)
