"""Checkpoints of `hf:` models that another version of transformers wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.models.backbones import build_backbone
from cdb_video.models.recognizer import Recognizer
from cdb_video.models.saved_names import by_todays_names, require_names
from cdb_video.models.weights import load_weights
from tests.hub_models import NAMES_OF_5_0, by_names_of_5_0, save_hub_model


def saved_model(tmp_path: Path, kind: str) -> tuple[Recognizer, dict[str, Tensor]]:
    """A model for another clip than its own, and its state by the names of version 5.0.0."""
    save_hub_model(tmp_path / kind, kind)
    backbone = build_backbone(f"hf:{tmp_path / kind}", num_frames=8, crop_size=32)
    model = Recognizer(backbone, num_classes={"verb": 3})
    older = by_names_of_5_0(model.state_dict(), kind)
    assert older.keys() != model.state_dict().keys()
    return model, older


@pytest.mark.parametrize("kind", NAMES_OF_5_0)
def test_older_names_are_read_as_the_library_reads_them(tmp_path: Path, kind: str) -> None:
    model, older = saved_model(tmp_path, kind)

    named = by_todays_names(model, older)

    require_names(model, named, checkpoint=tmp_path, architecture=None)
    for name, value in model.state_dict().items():
        assert torch.equal(named[name], value), name


def test_an_older_checkpoint_is_where_training_can_start_from(tmp_path: Path) -> None:
    model, older = saved_model(tmp_path, "vivit")
    save_file(older, tmp_path / "model.safetensors")

    report = load_weights(model, tmp_path)

    assert report.share == 1
    assert report.fresh == report.unused == ()


def test_names_that_nobody_knows_are_refused_with_both_versions(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, _ = saved_model(tmp_path, "vivit")
    newer = {
        name.replace("layernorm_before", "norm_before"): value
        for name, value in model.state_dict().items()
    }
    known = {"config": {}, "transformers": "9.9.9"}

    with pytest.raises(RunError) as error:
        require_names(
            model,
            by_todays_names(model, newer),
            checkpoint=tmp_path / "step-2",
            architecture=known,
        )

    assert str(error.value) == (
        f"{tmp_path / 'step-2'}: saved with transformers 9.9.9, and {transformers.__version__}, "
        "which is here, names tensors otherwise (only the model has "
        "backbone.net.layers.0.layernorm_before.bias); install the version that it was saved with"
    )


def test_a_checkpoint_of_another_network_is_refused_in_a_line(tmp_path: Path) -> None:
    model, other = (
        Recognizer(build_backbone(name, num_frames=4, crop_size=16), num_classes={"verb": 2})
        for name in ("r3d_10", "slowfast_tiny")
    )
    state = by_todays_names(model, other.state_dict())

    with pytest.raises(RunError, match=r"another version's: only the \w+ has backbone\.net\.") as e:
        require_names(model, state, checkpoint=tmp_path, architecture=None)

    assert "\n" not in str(e.value)
