"""Our backbones against the libraries' own published models: same names, same numbers."""

import importlib
import warnings

import pytest
import torch

from cdb_video.models.backbones import BACKBONES

PYTORCHVIDEO = {
    name: name
    for name in (
        "slowfast_r50",
        "slowfast_r101",
        "slow_r50",
        "c2d_r50",
        "i3d_r50",
        "r2plus1d_r50",
        "csn_r101",
        "x3d_xs",
        "x3d_s",
        "x3d_m",
        "x3d_l",
    )
} | {"mvit_b": "mvit_base_16x4"}
TORCHVISION = (
    "r3d_18",
    "mc3_18",
    "r2plus1d_18",
    "s3d",
    "mvit_v2_s",
    "swin3d_t",
    "swin3d_s",
    "swin3d_b",
)
# The clips that the libraries' fixed pools are made for, at batch 1.
CLIPS = {
    "x3d_xs": (4, 160),
    "mc3_18": (8, 112),
    "slowfast_r50": (32, 224),
    "slow_r50": (8, 224),
    "i3d_r50": (8, 224),
    "c2d_r50": (8, 224),
    "r2plus1d_r50": (16, 224),
    "csn_r101": (32, 224),
    "mvit_b": (16, 224),
    "s3d": (16, 224),
    "mvit_v2_s": (16, 224),
    "swin3d_t": (16, 224),
}
QUICK = ("x3d_xs", "mc3_18")
# Built by the same code as a neighbour that is compared by default.
LIKE_ANOTHER = ("slowfast_r101", "c2d_r50", "x3d_s", "x3d_m", "r2plus1d_18", "swin3d_s", "swin3d_b")


def library_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in PYTORCHVIDEO:
            hub = importlib.import_module("pytorchvideo.models.hub")
            return getattr(hub, PYTORCHVIDEO[name])(pretrained=False)
        return getattr(importlib.import_module("torchvision.models.video"), name)(weights=None)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name
        for name in (*PYTORCHVIDEO, *TORCHVISION)
    ],
)
def test_names_and_shapes_are_the_librarys_but_for_its_classifier(name):
    # MViT's builder in pytorchvideo reads numbers out of tensors, which "meta" cannot give.
    with torch.device("cpu" if name == "mvit_b" else "meta"):
        theirs = library_model(name).state_dict()
        ours = BACKBONES[name](num_frames=16, crop_size=224).state_dict()

    ours = {key.removeprefix("net."): value.shape for key, value in ours.items()}
    classifier = {
        key: tuple(value.shape)
        for key, value in theirs.items()
        if key not in ours and not key.endswith("relative_position_index")
    }
    assert {key: shape for key, shape in ours.items() if theirs[key].shape != shape} == {}
    assert [shape[0] for shape in classifier.values()] == [400, 400]


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLIPS]
)
def test_the_librarys_classifier_on_our_features_gives_its_scores(name):
    num_frames, size = CLIPS[name]
    torch.manual_seed(0)
    library = library_model(name).eval()
    backbone = BACKBONES[name](num_frames=num_frames, crop_size=size).eval()
    backbone.net.load_state_dict(library.state_dict(), strict=False)
    weight, bias = [v for k, v in library.state_dict().items() if k not in backbone.net.state_dict()
                    and not k.endswith("relative_position_index")]  # fmt: skip
    clip = torch.randn(1, 3, num_frames, size, size)
    # pytorchvideo's PackPathway: linspace(0, 31, 8), written out.
    slow = clip[:, :, [0, 4, 8, 13, 17, 22, 26, 31]] if name.startswith("slowfast") else None

    with torch.no_grad():
        expected = library([slow, clip.clone()] if slow is not None else clip)
        logits = backbone(clip) @ weight.flatten(1).T + bias

    if name.startswith(("x3d", "r2plus1d")):  # these end in a softmax
        logits = logits.softmax(1)
    # The mean and the linear layer exchange places: fp32 rounding.
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=tolerance)
