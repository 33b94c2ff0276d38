"""`hf:` models: the library's own numbers, any clip of whole patches, and nothing run as code."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdb_video.errors import ConfigError, WeightsError
from cdb_video.models import hub_files
from cdb_video.models.backbones import Backbone, build_backbone
from cdb_video.models.base import Normalization
from cdb_video.models.hub_families import read_architecture
from cdb_video.models.hub_weights import pretrained_state
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.tokens import TokenBackbone, set_drop_path
from cdb_video.models.weights import load_pretrained, load_weights
from cdb_video.training.layers import layers_to_heads
from cdb_video.training.optim import build_optimizer
from cdb_video.training.recompute import recompute_blocks
from tests.host_sync import NoHostSync
from tests.hub_models import KINDS, PIXELS, library_model, library_tokens, save_hub_model

Folders = dict[str, tuple[Path, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Kind -> folder, and the library's model that is in it."""
    root = tmp_path_factory.mktemp("hub")
    return {kind: (root / kind, save_hub_model(root / kind, kind)) for kind in KINDS}


def recognizer(folder: Path, *, num_frames: int = 4, crop_size: int = 16) -> Recognizer:
    clip = {"num_frames": num_frames, "crop_size": crop_size}
    model = Recognizer(build_backbone(f"hf:{folder}", **clip), num_classes={"verb": 3})
    load_pretrained(model, str(folder), **clip)
    return model.eval()


def clips(num_frames: int = 4, crop_size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, num_frames, crop_size, crop_size, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_and_features_are_the_librarys_own(folders: Folders, kind: str) -> None:
    folder, theirs = folders[kind]
    model = recognizer(folder)

    tokens, features = model.tokens(clips()), model.features(clips())

    expected = library_tokens(kind, theirs, clips())
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    pooled = expected[:, 0] if kind in ("timesformer", "vivit") else expected.mean(1)
    if kind == "videomae":
        pooled = theirs.fc_norm(pooled)  # as its own classifier does
    torch.testing.assert_close(features, pooled, rtol=0, atol=1e-5)
    assert isinstance(model.backbone, Backbone)
    assert model.backbone.num_features == features.shape[1] == 24


@torch.no_grad()
def test_a_videomae_as_pretrained_has_a_norm_on_its_tokens_and_their_mean(tmp_path: Path) -> None:
    theirs = save_hub_model(tmp_path / "pretrained", "videomae", use_mean_pooling=False)
    model = recognizer(tmp_path / "pretrained")

    expected = library_tokens("videomae", theirs, clips())

    torch.testing.assert_close(model.tokens(clips()), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.features(clips()), expected.mean(1), rtol=0, atol=1e-5)
    assert "backbone.net.layernorm.weight" in model.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_every_weight_comes_from_the_file(
    folders: Folders, kind: str
) -> None:
    backbone = build_backbone(f"hf:{folders[kind][0]}", num_frames=4, crop_size=16)
    assert isinstance(backbone, TokenBackbone)
    state, resized = pretrained_state(str(folders[kind][0]), num_frames=4, crop_size=16)

    backbone(clips()).square().sum().backward()

    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert set(backbone.state_dict()) <= set(state)
    assert resized == ()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_another_clip_has_the_positions_of_its_places(folders: Folders, kind: str) -> None:
    folder, theirs = folders[kind]
    model = recognizer(folder, num_frames=8, crop_size=32)

    tokens = model.tokens(clips(8, 32))

    positions = "rotary .*" if kind == "vjepa2" else "positions interpolated"
    note = rf"made for clips of 4 x 16, used at 8 x 32: {positions}$"
    assert re.search(note, str(model.backbone.clip_note))  # type: ignore[attr-defined]
    assert recognizer(folder).backbone.clip_note is None  # type: ignore[attr-defined]
    prefix = kind in ("timesformer", "vivit")
    length = (8 if kind == "timesformer" else 4) * 16
    assert tokens.shape == (2, prefix + length, 24)
    if kind == "vjepa2":
        # Rotary positions have no table: the library's own model of that size says the same.
        other = library_model(kind, frames_per_clip=8, crop_size=32)
        other.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(
            tokens, library_tokens(kind, other, clips(8, 32)), rtol=0, atol=1e-5
        )


BETWEEN = (-0.10546875, 0.2265625, 0.7734375, 1.10546875)
"""Bicubic, of 0 and 1 at four places: a kernel's (A = -0.75) weights of 1, which goes on outside.

At -0.25 that of distance 1.25; at 0.25 those of 0.75 and 1.75; the others by symmetry.
"""


def ramps(frames: int, side: int) -> torch.Tensor:
    """A table (1, T H W, 24) whose first channels are the place in time, in height and in width."""
    table = torch.zeros(frames, side, side, 24)
    table[..., 0] = torch.arange(frames)[:, None, None]
    table[..., 1] = torch.arange(side)[None, :, None]
    table[..., 2] = torch.arange(side)[None, None, :]
    return table.reshape(1, -1, 24)


def save_ramps(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 4 times and 2 x 2 places, with ramps for positions and 7 at the class token."""
    model = save_hub_model(folder, kind, num_frames=4 if kind == "timesformer" else 8)
    first = torch.full((1, 1, 24), 7.0)
    if kind == "videomae":  # whose table is no weight
        module = hub_files.transformers().models.videomae.modeling_videomae
        monkeypatch.setattr(module, "get_sinusoid_encoding_table", lambda *_: ramps(4, 2))
        return
    embeddings = getattr(model, kind, model).embeddings
    if kind == "timesformer":
        embeddings.time_embeddings.data = ramps(4, 1)
        embeddings.position_embeddings.data = torch.cat([first, ramps(1, 2)], dim=1)
    else:
        embeddings.position_embeddings.data = torch.cat([first, ramps(4, 2)], dim=1)
    model.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["videomae", "timesformer", "vivit"])
def test_interpolated_positions_are_of_their_time_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    save_ramps(tmp_path, kind, monkeypatch)
    own_frames = 2 if kind == "timesformer" else 4

    model = recognizer(tmp_path, num_frames=own_frames, crop_size=32)  # 2 times, 4 x 4 places

    embeddings: Any = model.backbone.net.embeddings  # type: ignore[attr-defined]
    table = embeddings.position_embeddings.detach()
    if kind != "videomae":
        assert torch.equal(table[0, 0], torch.full((24,), 7.0))
        table = table[:, 1:]
    if kind == "timesformer":
        table = embeddings.time_embeddings.detach()[0, :, None] + table
    grid = table.reshape(2, 4, 4, 24)
    places = torch.tensor(BETWEEN)
    # Linear, of 0 to 3: the middles of the first two and of the last two.
    times = torch.tensor([0.5, 2.5])[:, None, None].expand(2, 4, 4)
    torch.testing.assert_close(grid[..., 0], times, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        grid[..., 1], places[:, None].expand(2, 4, 4), atol=1e-6, rtol=0, msg="rows"
    )
    torch.testing.assert_close(
        grid[..., 2], places.expand(2, 4, 4), atol=1e-6, rtol=0, msg="columns"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_that_is_not_made_of_whole_patches_is_refused_with_what_it_takes(
    folders: Folders, kind: str
) -> None:
    name = f"hf:{folders[kind][0]}"

    with pytest.raises(
        ConfigError, match=r"^clip\.crop_size: 20; .* 8 or more and a multiple of 8$"
    ):
        build_backbone(name, num_frames=4, crop_size=20)
    if kind != "timesformer":
        with pytest.raises(ConfigError, match=r"^clip\.num_frames: 5; .* a multiple of 2$"):
            build_backbone(name, num_frames=5, crop_size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_built_again_from_what_a_checkpoint_keeps(folders: Folders, kind: str) -> None:
    model = recognizer(folders[kind][0], num_frames=8, crop_size=32)
    known = json.loads(json.dumps(model.backbone.architecture))  # type: ignore[attr-defined]

    again = build_backbone("hf:no longer/there", num_frames=8, crop_size=32, architecture=known)

    assert isinstance(again, TokenBackbone)
    again.load_state_dict(model.backbone.state_dict())  # type: ignore[attr-defined]
    assert torch.equal(again.eval()(clips(8, 32)), model.features(clips(8, 32)))
    assert again.normalization == Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.2))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_patches_blocks_and_what_follows(folders: Folders, kind: str) -> None:
    away = layers_to_heads(build_backbone(f"hf:{folders[kind][0]}", num_frames=4, crop_size=16))  # type: ignore[arg-type]

    def away_of(word: str) -> set[int]:
        return {layers for name, layers in away.items() if word in name}

    layer = "layers." if kind == "vivit" else "layer."
    assert away_of("embeddings.") == {3}
    assert (away_of(f".{layer}0."), away_of(f".{layer}1.")) == ({2}, {1})
    # In the heads' layer, as VideoMAE's authors have it.
    assert away_of("pool.norm" if kind == "videomae" else "net.layernorm.") == {0}


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        ("timesformer", {"cls_token", "position_embeddings", "time_embeddings"}),
        ("vivit", {"cls_token", "position_embeddings"}),
        ("videomae", set()),  # its table is no parameter
        ("vjepa2", set()),
    ],
)
def test_positions_and_class_tokens_do_not_decay(
    folders: Folders, kind: str, tables: set[str]
) -> None:
    model = Recognizer(
        build_backbone(f"hf:{folders[kind][0]}", num_frames=4, crop_size=16),
        num_classes={"verb": 3},
    )

    optimizer = build_optimizer(model, name="adamw", lr=0.1, weight_decay=0.5)

    groups = [group for group in optimizer.param_groups if not group["weight_decay"]]
    spared = {id(parameter) for group in groups for parameter in group["params"]}
    names = {n.rpartition(".")[2] for n, p in model.named_parameters() if id(p) in spared}
    # VideoMAE's q_bias and v_bias are called so by older versions of the library.
    assert {name for name in names if "bias" not in name} - {"weight"} == tables


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_computed_again_give_the_same_gradients(folders: Folders, kind: str) -> None:
    kept, again = (
        build_backbone(f"hf:{folders[kind][0]}", num_frames=4, crop_size=16) for _ in range(2)
    )
    assert isinstance(kept, TokenBackbone)
    assert isinstance(again, TokenBackbone)
    again.load_state_dict(kept.state_dict())

    blocks = recompute_blocks(again)
    for backbone in (kept, again):
        backbone.train()(clips()).square().sum().backward()

    layers = "net.layers" if kind == "vivit" else "layer"
    assert [name.split(layers)[-1] for name in blocks] == [".0", ".1"]
    for (name, mine), theirs in zip(again.named_parameters(), kept.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_leaves_out_the_branches_of_some_clips(folders: Folders, kind: str) -> None:
    backbone = build_backbone(f"hf:{folders[kind][0]}", num_frames=4, crop_size=16)
    assert isinstance(backbone, TokenBackbone)
    kept = backbone.eval()(clips())
    set_drop_path(backbone, 0.5, name=kind)

    assert torch.equal(backbone(clips()), kept)  # in evaluation nothing is left out
    backbone.train()
    torch.manual_seed(0)
    drawn = torch.stack([backbone(clips()) for _ in range(8)])
    # The first block never is, the last every second time: some draws leave it out, some do not.
    assert len(drawn[:, 0].detach().round(decimals=4).unique(dim=0)) > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bf16_gives_nearly_the_same(folders: Folders, kind: str) -> None:
    model = recognizer(folders[kind][0])
    exact = model.features(clips())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.features(clips()).float()

    # bf16 has eight bits: a few per cent after two blocks, of features that spread like this.
    assert float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_pass_reads_nothing_on_the_host(folders: Folders, kind: str) -> None:
    clip = {"num_frames": 4, "crop_size": 16}
    model = Recognizer(
        build_backbone(f"hf:{folders[kind][0]}", **clip),
        num_classes={"verb": 3},
        head_type="attentive",
    )
    set_drop_path(model.backbone, 0.3, name=kind)  # type: ignore[arg-type]
    model.train()

    with NoHostSync():
        model(clips())["verb"].sum().backward()

    assert all(head.query.grad is not None for head in model.heads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_builds_on_meta(folders: Folders, kind: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(f"hf:{folders[kind][0]}", num_frames=8, crop_size=32)

    assert isinstance(backbone, TokenBackbone)
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model's folder whose config.json is changed; None takes a key away."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def test_code_of_a_repository_is_refused_by_name_and_never_run(
    folders: Folders, tmp_path: Path
) -> None:
    folder = changed(
        folders["videomae"][0],
        tmp_path / "remote",
        model_type="VideoMAEv2_Base",
        auto_map={"AutoModel": "modeling.Model"},
    )
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    with pytest.raises(ConfigError, match="'VideoMAEv2_Base' is code in its repository") as caught:
        read_architecture(str(folder))

    assert "\n" not in str(caught.value)
    assert "videomae, vjepa2, timesformer, vivit" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_another_kind_of_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = changed(folders["vivit"][0], tmp_path / "bert", model_type="bert")

    with pytest.raises(ConfigError, match="model_type 'bert'; allowed are videomae"):
        read_architecture(str(folder))


def test_a_config_that_the_library_does_not_take_is_one_line(
    folders: Folders, tmp_path: Path
) -> None:
    folder = changed(folders["vivit"][0], tmp_path / "odd", hidden_size="wide")

    with pytest.raises(ConfigError, match=r"config\.json is no VivitConfig") as caught:
        build_backbone(f"hf:{folder}", num_frames=4, crop_size=16)

    assert "\n" not in str(caught.value)


def test_pixels_that_nobody_describes_are_refused(folders: Folders, tmp_path: Path) -> None:
    folder = changed(folders["vivit"][0], tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()

    with pytest.raises(ConfigError, match="mean and deviation of the pixels"):
        read_architecture(str(folder))


@pytest.mark.parametrize(
    ("about", "white", "black"),
    [
        # (255 / 255 - 0.5) / 0.25 = 2; (0 - 0.5) / 0.25 = -2, in the first channel.
        (PIXELS, 2.0, -2.0),
        # ViViT: 255 / 127.5 - 1 = 1, (1 - 0.5) / 0.25 = 2; 0 - 1 = -1, (-1 - 0.5) / 0.25 = -6.
        ({**PIXELS, "rescale_factor": 1 / 127.5, "offset": True}, 2.0, -6.0),
        ({"do_normalize": False}, 1.0, 0.0),
        ({"do_normalize": False, "do_rescale": False}, 255.0, 0.0),
    ],
)
def test_pixels_are_what_the_preprocessor_makes(
    tmp_path: Path, about: dict[str, Any], white: float, black: float
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))

    mean, std, value_range = hub_files.read_normalization(tmp_path)

    assert (value_range - mean[0]) / std[0] == pytest.approx(white)
    assert (0 - mean[0]) / std[0] == pytest.approx(black)


def test_a_folder_without_weights_is_refused_before_anything_is_built(
    folders: Folders, tmp_path: Path
) -> None:
    folder = changed(folders["vivit"][0], tmp_path / "empty")
    (folder / "model.safetensors").unlink()

    with pytest.raises(ConfigError, match=r"no weights in .*; allowed are model\.safetensors, or"):
        hub_files.model_folder(str(folder), weights=True)


def test_a_pickle_of_tensors_is_read_and_one_of_code_is_not(
    folders: Folders, tmp_path: Path
) -> None:
    folder = changed(folders["videomae"][0], tmp_path / "bin")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    expected, _ = pretrained_state(str(folders["videomae"][0]), num_frames=4, crop_size=16)

    found, _ = pretrained_state(str(folder), num_frames=4, crop_size=16)

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    class Code:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Code()}))
    with pytest.raises(WeightsError, match="weights_only=True"):
        pretrained_state(str(folder), num_frames=4, crop_size=16)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_are_refused(folders: Folders, tmp_path: Path) -> None:
    folder = changed(folders["timesformer"][0], tmp_path / "swapped")
    shutil.copy(folders["vivit"][0] / "model.safetensors", folder)
    model = Recognizer(
        build_backbone(f"hf:{folder}", num_frames=4, crop_size=16), num_classes={"verb": 2}
    )

    with pytest.raises(WeightsError, match="of the backbone's parameters fit"):
        load_pretrained(model, str(folder), num_frames=4, crop_size=16)


def test_a_checkpoint_for_another_clip_is_refused_where_its_positions_do_not_fit(
    folders: Folders, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    small = recognizer(folders["vivit"][0])
    save_file(small.state_dict(), tmp_path / "model.safetensors")
    large = recognizer(folders["vivit"][0], num_frames=8)

    with pytest.raises(WeightsError, match=r"position_embeddings .* use the clip\.num_frames"):
        load_weights(large, tmp_path)
