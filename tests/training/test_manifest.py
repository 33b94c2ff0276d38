"""What a manifest finds before a checkpoint is loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    load_model,
    load_training,
    save_checkpoint,
    verify,
)


def save(folder: Path, step: int, **training: Any) -> Path:
    model = {"weight": torch.full((2, 2), float(step))}
    return save_checkpoint(folder, step, model=model, training=training, texts={"a.txt": "text"})


@pytest.mark.parametrize("name", ["model.safetensors", "training.json", "a.txt"])
def test_one_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1, value=1)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)

    with pytest.raises(RunError, match=f"{name}: damaged"):
        verify(path)


def test_without_its_manifest_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").unlink()

    with pytest.raises(RunError, match="not a whole checkpoint"):
        load_model(path)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{",
        "{}",
        '{"model.safetensors": 1}',
        '{"../step-1/model.safetensors": "0"}',
        '{"/etc/hostname": "0"}',
        '{"training.safetensors": "0"}',
        "[" * 100_000,
        f'{{"{"x" * (1 << 20)}": "0"}}',
    ],
    ids=range(9),
)
def test_a_manifest_that_is_none_is_refused_in_a_line(tmp_path: Path, manifest: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)

    for load in (verify, load_model, load_training):
        with pytest.raises(RunError, match="step-1") as caught:
            load(path)
        assert len(str(caught.value)) < 400


def test_files_that_are_not_in_the_manifest_are_refused_but_hidden_ones(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / ".nfs0001").touch()
    verify(path)
    (path / "notes.txt").touch()

    with pytest.raises(RunError, match=r"notes\.txt: not in manifest\.json"):
        load_model(path)


def test_the_model_of_a_checkpoint_with_a_damaged_training_state_still_loads(
    tmp_path: Path,
) -> None:
    path = save(tmp_path, 1, m=torch.zeros(3))
    (path / "training.safetensors").write_bytes(b"")

    assert load_model(path).keys() == {"weight"}
    with pytest.raises(RunError, match=r"training\.safetensors: damaged"):
        load_training(path)


def test_what_is_whole_but_no_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for name, text in {"model.safetensors": "text", "training.json": '{"items": 3}'}.items():
        (path / name).write_text(text)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest[name] = hashlib.sha256(text.encode()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(RunError, match=r"model\.safetensors: cannot be read"):
        load_model(path)
    with pytest.raises(RunError, match=r"training\.json: not a training state"):
        load_training(path)
