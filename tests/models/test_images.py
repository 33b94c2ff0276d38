"""Image networks as backbones: their sizes, their frames, their layout, and torchvision's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from cdb_video.errors import ConfigError, WeightsError
from cdb_video.models import compiling
from cdb_video.models.backbones import BACKBONES, Backbone, build_backbone
from cdb_video.models.base import place
from cdb_video.models.compiling import CompiledModule
from cdb_video.models.image_nets import option_a
from cdb_video.models.images import REFUSED, ImageBackbone, image_networks
from cdb_video.models.published_weights import KnownWeights, known_weights
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.weights import load_weights, resolve_weights
from cdb_video.training.layers import layers_to_heads
from tests.layouts import LayoutConversions

OURS = ("lenet", "resnet32", "resnet10")
SOME = (
    "resnet18",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "efficientnet_v2_s",
    "densenet121",
    "regnet_y_400mf",  # its builder reads numbers, which "meta" cannot give
)


def build(name: str, *, num_frames: int = 1, crop_size: int = 32) -> ImageBackbone:
    torch.manual_seed(0)
    backbone = build_backbone(name, num_frames=num_frames, crop_size=crop_size)
    assert isinstance(backbone, ImageBackbone)
    return backbone


def build_on_meta(name: str, crop_size: int = 224) -> ImageBackbone:
    with torch.device("meta"):
        return build(name, crop_size=crop_size)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_lenet_has_the_61706_parameters_of_lenet_5_and_two_more_input_channels() -> None:
    # Of one grey channel, with ten classes; 6 kernels of 5x5 see the two others.
    assert count(build("lenet")) + 84 * 10 + 10 == 61_706 + 2 * 6 * 25


def test_resnet32_has_the_published_number_of_parameters() -> None:
    # He et al., CVPR 2016, table 6: 0.46 M, with ten classes. 9 in out a convolution, 2 a norm.
    convolutions = 9 * (3 * 16 + 10 * 16**2 + 16 * 32 + 9 * 32**2 + 32 * 64 + 9 * 64**2)
    norms = 2 * (11 * 16 + 10 * 32 + 10 * 64)

    size = count(build("resnet32")) + 64 * 10 + 10

    assert size == convolutions + norms + 650
    assert round(size / 1e6, 2) == 0.46


def test_resnet10_has_the_parameters_of_resnet18_but_for_its_second_blocks() -> None:
    # Each has two convolutions of 3x3 and two norms.
    second = sum(2 * 9 * width**2 + 4 * width for width in (64, 128, 256, 512))

    assert count(build("resnet10")) == count(models.resnet18()) - (512 * 1000 + 1000) - second


def test_lenet_sees_a_28_pixel_image_as_one_place() -> None:
    backbone = build("lenet", crop_size=28)
    inside: list[Tensor] = []
    backbone.net.get_submodule("conv5").register_forward_hook(lambda *args: inside.append(args[2]))

    features = backbone(torch.randn(2, 3, 1, 28, 28))

    assert [tuple(maps.shape) for maps in inside] == [(2, 120, 1, 1)]
    assert features.shape == (2, 84)


def test_option_a_takes_every_second_pixel_between_channels_of_zeros() -> None:
    maps = torch.arange(18.0).reshape(1, 2, 3, 3)

    found = option_a(maps, 4)

    zeros = [[0, 0], [0, 0]]
    assert found.tolist() == [[zeros, [[0, 2], [6, 8]], [[9, 11], [15, 17]], zeros]]


@pytest.mark.parametrize("name", [*OURS, "resnet18"])
def test_features_of_a_video_are_the_mean_over_its_frames(name: str) -> None:
    backbone = build(name, num_frames=3).eval()
    clips = torch.randn(2, 3, 3, 32, 32)

    with torch.no_grad():
        features = backbone(clips)
        frames = [backbone(clips[:, :, [t]]) for t in range(3)]

    assert features.shape == (2, backbone.num_features)
    torch.testing.assert_close(features, torch.stack(frames).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(frames[0], frames[1], rtol=1e-3)


@pytest.mark.parametrize("num_frames", [1, 4])
def test_channels_last_clips_reach_the_network_as_they_lie(num_frames: int) -> None:
    seen: list[Tensor] = []

    class Looks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3))

    about = build("lenet").normalization
    backbone = ImageBackbone(Looks(), num_features=3, normalization=about)
    clips = torch.randn(2, 3, num_frames, 8, 8).contiguous(memory_format=torch.channels_last_3d)

    backbone(clips)

    [images] = seen
    assert images.data_ptr() == clips.data_ptr()
    assert images.shape == (2 * num_frames, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[num_frames], clips[1, :, 0])  # clips by turns, not frames


@pytest.mark.parametrize("name", ["lenet", "resnet32"])
def test_no_layer_of_a_step_converts_layouts(name: str) -> None:
    backbone = build(name)
    place(backbone, "cpu")
    images = torch.randn(2, 3, 1, 32, 32).contiguous(memory_format=torch.channels_last_3d)

    with LayoutConversions() as conversions:
        backbone(images).square().sum().backward()

    assert conversions.found == []


@pytest.mark.parametrize("name", ["lenet", "resnet32"])
def test_a_step_of_images_is_one_compiled_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    backbone = build(name).eval()
    images = torch.randn(2, 3, 1, 32, 32)

    compiled = CompiledModule(backbone)(images)  # which refuses breaks
    compiled.square().sum().backward()

    torch.testing.assert_close(compiled, backbone(images))
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "crop_size"),
    [
        ("resnet18", 64),
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
        pytest.param("swin_t", 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_s", 64, marks=pytest.mark.slow),
    ],
)
def test_torchvisions_classifier_on_our_features_gives_its_scores(
    name: str, crop_size: int
) -> None:
    library = models.get_model(name, weights=None).eval()
    backbone = build(name, crop_size=crop_size).eval()
    missing = backbone.net.load_state_dict(library.state_dict(), strict=False)
    weight, bias = [library.state_dict()[key] for key in missing.unexpected_keys]
    images = torch.randn(2, 3, crop_size, crop_size)

    with torch.no_grad():
        logits = backbone(images[:, :, None]) @ weight.T + bias
        expected = library(images)

    assert missing.missing_keys == []
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize(
    "name",
    [
        *SOME,
        *(pytest.param(n, marks=pytest.mark.slow) for n in image_networks() if n not in SOME),
    ],
)
def test_an_image_network_of_torchvision_is_a_backbone(name: str) -> None:
    backbone = build_on_meta(name)

    features = backbone.eval()(torch.zeros(2, 3, 3, 224, 224, device="meta"))

    assert isinstance(backbone, Backbone)
    assert features.shape == (2, backbone.num_features)
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())


def test_image_networks_are_no_names_of_ours() -> None:
    assert len(image_networks()) > 60
    assert not set(image_networks()) & {*BACKBONES, *REFUSED}


@pytest.mark.parametrize(
    ("name", "crop_size", "message"),
    [
        ("googlenet", 224, r"model\.backbone: 'googlenet' cannot be a backbone: it gives several"),
        ("squeezenet1_1", 224, r"model\.backbone: 'squeezenet1_1' cannot .* is a convolution"),
        ("mnasnet1_0", 224, r"model\.backbone: 'mnasnet1_0' cannot be a backbone: its weights"),
        ("vit_b_16", 100, r"clip\.crop_size: 100; vit_b_16 takes 16 or more and a multiple of 16"),
        ("alexnet", 32, r"clip\.crop_size: 32; alexnet cannot take it \(.+\)$"),
        ("resnet5", 32, r"model\.backbone: 'resnet5' is no backbone; did you mean 'resnet50'\?"),
        ("nothing", 32, r"is no backbone; there are .*resnet32, an image network of torchvision,"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(name: str, crop_size: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message) as error:
        build_backbone(name, num_frames=1, crop_size=crop_size)

    assert "\n" not in str(error.value)


def test_layers_of_a_vit_are_its_patches_its_blocks_and_its_norm() -> None:
    away = layers_to_heads(build_on_meta("vit_b_16"))

    assert away["net.encoder.pos_embedding"] == away["net.conv_proj.weight"] == 13
    assert away["net.encoder.layers.encoder_layer_11.mlp.0.weight"] == 1
    assert away["net.encoder.ln.bias"] == 0


def test_pixels_are_as_the_weights_expect_them() -> None:
    means = {n: build_on_meta(n).normalization.mean for n in ("resnet18", "efficientnet_v2_l")}

    # torchvision's documentation of these weights; one network has another mean than the rest.
    assert means == {"resnet18": (0.485, 0.456, 0.406), "efficientnet_v2_l": (0.5, 0.5, 0.5)}


def test_imagenet1k_is_torchvisions_newest_file() -> None:
    # torchvision's documentation: ResNet50_Weights.IMAGENET1K_V2, acc@1 80.858, 97.8 MB.
    url = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"

    assert known_weights("resnet50") == {
        "imagenet1k": KnownWeights(url, 80.858, 97.79, "BSD-3-Clause")
    }
    assert known_weights("resnet50")["imagenet1k"].sha256 == "11ad3fa6"
    assert known_weights("vit_h_14") == {}  # SWAG's alone
    assert known_weights("resnet32") == {}
    assert set(known_weights("r3d_18")) == {"kinetics400"}


def test_every_published_file_of_images_is_where_torchvision_says() -> None:
    for name in image_networks():
        for known in known_weights(name).values():
            urls = [weights.url for weights in models.get_model_weights(name)]
            assert known.url in urls
            assert known.sha256


def test_an_unknown_name_is_refused_with_imagenet1k(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'kinetics400' does not exist; .* imagenet1k"):
        resolve_weights("kinetics400", backbone="resnet50", cache_dir=tmp_path)


def recognizer(name: str, crop_size: int = 32) -> Recognizer:
    return Recognizer(build(name, crop_size=crop_size), num_classes={"verb": 3})


def test_a_file_of_torchvision_fills_the_backbone_and_its_classifier_is_left_out(
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    library = models.resnet18()
    torch.save(library.state_dict(), tmp_path / "resnet18.pth")
    model = recognizer("resnet18")

    report = load_weights(model, tmp_path / "resnet18.pth")

    assert (report.share, report.unused) == (1.0, ("fc.weight", "fc.bias"))
    assert report.fresh == ("heads.verb.weight", "heads.verb.bias")
    for name, value in model.backbone.net.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, library.state_dict()[name])


def small_vit(side: int) -> models.VisionTransformer:
    return models.VisionTransformer(
        image_size=side, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )


def test_a_vit_file_of_another_size_and_of_old_names_loads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    library = small_vit(32)
    nn.init.normal_(library.encoder.pos_embedding)
    state = dict(library.state_dict())
    old = {re.sub(r"mlp\.0\.", "mlp.linear_1.", name): value for name, value in state.items()}
    old = {re.sub(r"mlp\.3\.", "mlp.linear_2.", name): value for name, value in old.items()}
    small_vit(32).load_state_dict(old)  # by the library's own translation, all of them
    torch.save(old, tmp_path / "vit.pth")
    net = small_vit(16)
    net.heads = nn.Identity()
    about = build("lenet").normalization
    backbone = ImageBackbone(net, num_features=8, normalization=about)
    model = Recognizer(backbone, num_classes={"verb": 3})

    report = load_weights(model, tmp_path / "vit.pth")

    assert report.share == 1.0
    assert report.resized == ("backbone.net.encoder.pos_embedding",)
    assert report.unused == ("heads.head.weight", "heads.head.bias")
    theirs, ours = state["encoder.pos_embedding"][0], net.encoder.pos_embedding[0]
    assert torch.equal(ours[0], theirs[0])  # the class token's
    grid = theirs[1:].T.reshape(1, 8, 4, 4)
    small = torch.nn.functional.interpolate(grid, size=(2, 2), mode="bicubic")
    torch.testing.assert_close(ours[1:].detach(), small.reshape(8, 4).T)


def test_a_densenet_file_of_old_names_loads(tmp_path: Path) -> None:
    state = models.densenet121().state_dict()
    # As torchvision's loader describes its published files: denselayer1.norm.1.weight.
    old = {re.sub(r"(denselayer\d+\.\w+)([12]\.)", r"\1.\2", name): state[name] for name in state}
    torch.save(old, tmp_path / "densenet.pth")

    report = load_weights(recognizer("densenet121"), tmp_path / "densenet.pth")

    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert report.share == 1.0
    assert report.unused == ("classifier.weight", "classifier.bias")
