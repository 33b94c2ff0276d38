"""Files in every layout, made by the layouts' documented names, load where they fit."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cdb_video.errors import WeightsError
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.weights import load_weights


def recognizer(name="slowfast_tiny", *, classes=3, num_frames=8, crop_size=64):
    backbone = BACKBONES[name](num_frames=num_frames, crop_size=crop_size)
    return Recognizer(backbone, num_classes={"verb": classes})


def random_state(model):
    """Another value in every place, so that no two tensors can be exchanged unseen."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator).to(value.dtype)
        for name, value in model.state_dict().items()
    }


def library_names(state):
    """A library has no heads of ours, and knows nothing of the wrapper."""
    prefix = "backbone.net."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def assert_backbone_is(model, state):
    wrong = [
        name
        for name, value in model.state_dict().items()
        if name.startswith("backbone.") and not torch.equal(value, state[name])
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", [False, True])
def test_our_own_checkpoint_loads_with_its_heads(tmp_path, folder):
    model = recognizer()
    state = random_state(model)
    save_file(state, tmp_path / "model.safetensors")

    report = load_weights(model, tmp_path if folder else tmp_path / "model.safetensors")

    assert_backbone_is(model, state)
    assert torch.equal(model.heads["verb"].weight, state["heads.verb.weight"])
    assert (report.layout, report.share) == ("cdb_video", 1.0)
    assert (report.fresh, report.unused, dict(report.mismatched)) == ((), (), {})


def test_a_head_of_another_class_count_stays_fresh_and_is_named(tmp_path):
    model = recognizer(classes=5)
    before = model.heads["verb"].weight.clone()
    save_file(random_state(recognizer(classes=3)), tmp_path / "model.safetensors")

    report = load_weights(model, tmp_path)

    assert torch.equal(model.heads["verb"].weight, before)
    assert report.fresh == ("heads.verb.weight", "heads.verb.bias")
    assert report.mismatched["heads.verb.weight"] == ((3, 120), (5, 120))
    assert "heads.verb.weight (3, 120) -> (5, 120)" in "\n".join(report.summary())


def test_pytorchvideo_files_load_without_their_classifier(tmp_path):
    model = recognizer("x3d_s")
    state = random_state(model)
    theirs = library_names(state)
    theirs |= {
        "blocks.5.proj.weight": torch.zeros(400, 2048),
        "blocks.5.proj.bias": torch.zeros(400),
    }
    torch.save({"model_state": theirs}, tmp_path / "X3D_S.pyth")

    report = load_weights(model, tmp_path / "X3D_S.pyth")

    assert_backbone_is(model, state)
    assert report.unused == ("blocks.5.proj.weight", "blocks.5.proj.bias")
    assert report.fresh == ("heads.verb.weight", "heads.verb.bias")


@pytest.mark.parametrize(("name", "classifier"), [("mc3_18", "fc"), ("s3d", "classifier.1")])
def test_torchvision_files_load_without_their_classifier(tmp_path, name, classifier):
    model = recognizer(name)
    state = random_state(model)
    theirs = library_names(state) | {f"{classifier}.bias": torch.zeros(400)}
    torch.save(theirs, tmp_path / "weights.pth")

    report = load_weights(model, tmp_path / "weights.pth")

    assert_backbone_is(model, state)
    assert (report.share, report.unused) == (1.0, (f"{classifier}.bias",))


def test_hara_files_load_although_they_know_no_batch_counts(tmp_path):
    model = recognizer("resnext3d_101")
    state = random_state(model)
    theirs = {
        f"module.{name}": value
        for name, value in library_names(state).items()
        if not name.endswith("num_batches_tracked")
    }
    theirs |= {"module.fc.weight": torch.zeros(400, 2048), "module.fc.bias": torch.zeros(400)}
    # Names as in the release: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, ..., fc.
    assert "module.layer3.22.conv2.weight" in theirs
    assert "module.layer1.0.downsample.1.running_mean" in theirs
    content = {"epoch": 200, "arch": "resnext-101", "state_dict": theirs}
    # The release is older than PyTorch's zip format.
    torch.save(content, tmp_path / "hara.pth", _use_new_zipfile_serialization=False)

    report = load_weights(model, tmp_path / "hara.pth")

    state |= {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert_backbone_is(model, state)
    assert report.unused == ("fc.weight", "fc.bias")
    assert report.fresh == ("heads.verb.weight", "heads.verb.bias")


def pyslowfast_name(name, *, pooled=False, x3d=False):
    """PySlowFast's name of a pytorchvideo tensor, after its resnet_helper and stem_helper."""
    if x3d:
        for ours, theirs in (
            ("blocks.5.pool.pre_conv", "head.conv_5"),
            ("blocks.5.pool.pre_norm", "head.conv_5_bn"),
            ("blocks.5.pool.post_conv", "head.lin_5"),
            ("blocks.0.conv.conv_t", "s1.pathway0_stem.conv_xy"),  # 1x3x3, in space
            ("blocks.0.conv.conv_xy", "s1.pathway0_stem.conv"),  # 5x1x1, in time
            ("norm_b.0.", "b_bn."),
            ("norm_b.1.block.0.", "se.fc1."),
            ("norm_b.1.block.2.", "se.fc2."),
        ):
            name = name.replace(ours, theirs)
    block = re.match(r"blocks\.(\d)", name)
    if block:
        number = int(block[1])
        stage = number if pooled and number > 2 else number + 1
        name = re.sub(r"^blocks\.\d", f"s{stage}", name)
    name = re.sub(r"(s\d)\.multipathway_fusion\.conv_fast_to_slow", r"\1_fuse.conv_f2s", name)
    name = re.sub(r"(s\d)\.multipathway_fusion\.norm", r"\1_fuse.bn", name)
    name = re.sub(r"(s\d)\.multipathway_blocks\.(\d)\.", r"\1.pathway\2_", name)
    name = re.sub(r"(s\d)\.(?=(res_blocks|conv|norm)\b)", r"\1.pathway0_", name)
    name = re.sub(r"res_blocks\.(\d+)", r"res\1", name)
    name = re.sub(r"(s1\.pathway\d)_(conv|norm)\.", r"\1_stem.\2.", name)
    name = name.replace("_stem.norm.", "_stem.bn.")
    name = name.replace("branch1_conv", "branch1").replace("branch1_norm", "branch1_bn")
    return re.sub(
        r"(conv|norm)_([abc])\b", lambda m: m[2] + ("_bn" if m[1] == "norm" else ""), name
    )


def save_pyslowfast(path, state, **options):
    theirs = {pyslowfast_name(k, **options): v for k, v in library_names(state).items()}
    theirs["head.projection.weight"] = torch.zeros(400, 8)
    torch.save({"epoch": 1, "model_state": theirs, "cfg": "TRAIN: ..."}, path)
    return theirs


def test_pyslowfast_slowfast_files_load(tmp_path):
    model = recognizer("slowfast_r50")
    state = random_state(model)
    theirs = save_pyslowfast(tmp_path / "slowfast.pyth", state)
    # Names that PySlowFast's own logs print.
    assert theirs.keys() >= {
        "s1.pathway0_stem.conv.weight",
        "s1.pathway1_stem.bn.running_var",
        "s1_fuse.conv_f2s.weight",
        "s1_fuse.bn.bias",
        "s2.pathway0_res0.branch1_bn.weight",
        "s4.pathway1_res5.branch2.a_bn.bias",
        "s5.pathway0_res2.branch2.c.weight",
    }

    report = load_weights(model, tmp_path / "slowfast.pyth")

    assert_backbone_is(model, state)
    assert (report.layout, report.share) == ("PySlowFast", 1.0)
    assert report.unused == ("head.projection.weight",)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [("i3d_r50", True), *(pytest.param(*n, marks=pytest.mark.slow) for n in
                          (("c2d_r50", True), ("slow_r50", False)))],
)  # fmt: skip
def test_pyslowfast_single_pathway_files_load(tmp_path, name, pooled):
    model = recognizer(name)
    state = random_state(model)
    theirs = save_pyslowfast(tmp_path / "weights.pyth", state, pooled=pooled)
    assert {"s1.pathway0_stem.bn.weight", "s5.pathway0_res2.branch2.b.weight"} <= theirs.keys()

    report = load_weights(model, tmp_path / "weights.pyth")

    assert_backbone_is(model, state)
    assert (report.layout, report.share) == ("PySlowFast", 1.0)


def test_pyslowfast_x3d_files_load_and_the_extra_shortcut_norm_is_kept(tmp_path):
    model = recognizer("x3d_xs").eval()
    state = random_state(model)
    theirs = save_pyslowfast(tmp_path / "x3d.pyth", state, x3d=True)
    assert {
        "s1.pathway0_stem.conv_xy.weight",
        "s2.pathway0_res0.branch2.se.fc1.weight",
        "head.conv_5_bn.running_mean",
        "head.lin_5.weight",
    } <= theirs.keys()
    generator = torch.Generator().manual_seed(1)
    leaves = ("weight", "bias", "running_mean", "running_var")
    norm = {leaf: torch.rand(24, generator=generator) + 0.5 for leaf in leaves}
    theirs |= {f"s2.pathway0_res0.branch1_bn.{leaf}": value for leaf, value in norm.items()}
    torch.save({"model_state": theirs}, tmp_path / "x3d.pyth")

    report = load_weights(model, tmp_path / "x3d.pyth")

    # The block as PySlowFast computes it: batch norm on the shortcut, then the sum.
    first = "backbone.net.blocks.1.res_blocks.0."
    assert report.unused == ("head.projection.weight",)
    changed = {f"{first}branch1_conv.weight", f"{first}branch2.norm_c.bias"}
    assert_backbone_is(model, state | {name: model.state_dict()[name] for name in changed})
    block = model.backbone.net.blocks[1].res_blocks[0]
    maps = torch.randn(1, 24, 2, 8, 8, generator=generator)
    with torch.no_grad():
        block_output = block(maps)
        block.branch2.norm_c.bias.copy_(state[f"{first}branch2.norm_c.bias"])
        shortcut = F.conv3d(maps, state[f"{first}branch1_conv.weight"], stride=(1, 2, 2))
        shortcut = F.batch_norm(
            shortcut, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
        )
        expected = F.relu(shortcut + block.branch2(maps))
    # Two orders of one sum in fp32, on values of about 10.
    torch.testing.assert_close(block_output, expected, rtol=1e-4, atol=1e-4)


def test_a_file_for_another_network_is_refused_and_the_model_is_as_it_was(tmp_path):
    model = recognizer("r3d_10")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(library_names(random_state(recognizer())), tmp_path / "slowfast.pth")

    with pytest.raises(WeightsError, match=r"slowfast\.pth: 0% of the backbone's parameters fit"):
        load_weights(model, tmp_path / "slowfast.pth")

    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_less_than_half_loads_only_when_asked(tmp_path):
    model = recognizer("r3d_10")
    # layer4 is 672,512 of 903,984 parameters: 27 * (64 + 128) * 128, 64 * 128 and 6 * 128.
    state = library_names(random_state(model))
    layer4 = {name: value for name, value in state.items() if name.startswith("layer4.")}
    rest = {name: value for name, value in state.items() if name not in layer4}
    torch.save(layer4, tmp_path / "layer4.pth")
    torch.save(rest, tmp_path / "rest.pth")

    above = load_weights(model, tmp_path / "layer4.pth")
    with pytest.raises(WeightsError, match=r"26% of the backbone"):
        load_weights(model, tmp_path / "rest.pth")
    below = load_weights(model, tmp_path / "rest.pth", allow_partial=True)

    assert above.share == pytest.approx(672_512 / 903_984)
    assert below.share == pytest.approx(1 - above.share)
    assert torch.equal(model.backbone.net.stem[0].weight, state["stem.0.weight"])


def test_position_tables_of_another_clip_are_interpolated(tmp_path):
    tables = "backbone.net.cls_positional_encoding."
    state = {  # of 16 frames and 64 pixels: 8 patches in time, 16 x 16 in space
        f"{tables}pos_embed_temporal": torch.arange(8.0).view(1, 8, 1).repeat(1, 1, 96),
        f"{tables}pos_embed_spatial": torch.full((1, 16 * 16, 96), 3.0),
    }
    save_file(state, tmp_path / "model.safetensors")
    model = recognizer("mvit_b", num_frames=8, crop_size=96)

    report = load_weights(model, tmp_path, allow_partial=True)

    positions = model.backbone.net.cls_positional_encoding
    # Half as many steps over the same span: the means of neighbouring pairs.
    assert positions.pos_embed_temporal[0, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    torch.testing.assert_close(positions.pos_embed_spatial, torch.full((1, 24 * 24, 96), 3.0))
    assert set(report.resized) == set(report.loaded) == set(state)
    assert dict(report.mismatched) == {}


def test_a_position_table_that_cannot_be_interpolated_is_refused_by_name(tmp_path):
    model = recognizer("swin3d_t")
    table = "features.0.0.attn.relative_position_bias_table"
    torch.save({table: torch.zeros(100, 3)}, tmp_path / "swin.pth")

    with pytest.raises(WeightsError, match=rf"swin\.pth: .*{re.escape(table)} is \(100, 3\)"):
        load_weights(model, tmp_path / "swin.pth", allow_partial=True)
