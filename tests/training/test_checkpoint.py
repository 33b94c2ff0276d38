import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    checkpoints,
    load_best,
    load_model,
    load_training,
    newest_valid,
    save_checkpoint,
    verify,
)


def save(folder: Path, step: int, **training: Any) -> Path:
    model = {"weight": torch.full((2, 2), float(step))}
    return save_checkpoint(folder, step, model=model, training=training, texts={"a.txt": "text"})


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "progress": {"epoch": 3, "best": None, "x": 0.1}}

    path = save_checkpoint(tmp_path, 7, model=net.state_dict(), training=state, texts={})

    assert path == tmp_path / "step-7"
    assert all(torch.equal(net.state_dict()[k], v) for k, v in load_model(path).items())
    loaded = load_training(path)
    assert loaded["progress"] == state["progress"]
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    moments = state["optimizer"]["state"]
    assert list(loaded["optimizer"]["state"]) == list(moments)  # integer keys stay integers
    for index, values in moments.items():
        for name, value in values.items():
            assert torch.equal(loaded["optimizer"]["state"][index][name], value)


def test_channels_last_tensors_keep_their_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d)

    path = save_checkpoint(tmp_path, 1, model={"weight": weight}, training={}, texts={})

    assert torch.equal(load_model(path)["weight"], weight)


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


def test_a_damaged_newest_one_is_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    (newest / "model.safetensors").write_bytes(b"")

    found, lines = newest_valid(tmp_path)

    assert found == tmp_path / "step-5"
    assert len(lines) == 1
    assert "damaged-step-10" in lines[0]
    assert (tmp_path / "damaged-step-10").is_dir()
    assert checkpoints(tmp_path) == [tmp_path / "step-5"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)

    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-20", "step-100"]


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2)
    model = {"weight": torch.zeros(1)}

    for step in range(1, 6):
        best = {"checkpoint": "step-2", "mean_class_accuracy": 0.5} if step >= 2 else None
        store.save(step, model=model, training={}, best=best)

    assert [path.name for path in checkpoints(tmp_path)] == ["step-2", "step-4", "step-5"]
    assert load_best(tmp_path) == {"checkpoint": "step-2", "mean_class_accuracy": 0.5}


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".step-3.tmp").mkdir(parents=True)
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2)

    store.save(4, model={"weight": torch.zeros(1)}, training={}, best=None)

    assert not (tmp_path / ".step-3.tmp").exists()


def test_a_failed_save_leaves_the_earlier_checkpoint_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = save(tmp_path, 1)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cdb_video.training.checkpoint.save_file", full_disk)

    with pytest.raises(RunError, match=r"step-2.*No space left.*untouched"):
        save(tmp_path, 2)
    verify(earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_checkpoint_that_was_copied_elsewhere_still_loads(tmp_path: Path) -> None:
    path = save(tmp_path / "a", 1)
    shutil.copytree(path, tmp_path / "b")

    assert load_model(tmp_path / "b").keys() == {"weight"}


def test_state_that_json_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"training\.part is a set"):
        save(tmp_path, 1, part={1, 2})


def test_nested_lists_of_tensors_come_back(tmp_path: Path) -> None:
    parts: list[Tensor] = [torch.arange(3), torch.ones(2)]

    path = save(tmp_path, 1, parts=parts)

    loaded = load_training(path)["parts"]
    assert all(torch.equal(a, b) for a, b in zip(loaded, parts, strict=True))
