import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    best_first,
    checkpoints,
    load_best,
    load_model,
    load_training,
    newest_valid,
    save_best,
    save_checkpoint,
    verify,
)
from tests.disk_order import disk_order


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


@pytest.mark.parametrize("background", [False, True])
def test_all_is_on_the_disk_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    texts = {"config.yaml": "run: {}\n"}
    store = CheckpointFolder(tmp_path, texts=texts, keep_last=1, background=background)

    def save_step(step: int) -> None:
        best = {"checkpoint": f"step-{step}"}
        store.save(step, model={"a": torch.zeros(2)}, training={"step": step}, best=best)
        store.close()

    save_step(1)
    lines = disk_order(tmp_path, monkeypatch)
    save_step(2)

    files = {path.name for path in (tmp_path / "step-2").iterdir()} - {"manifest.json"}
    assert files == {"model.safetensors", "training.safetensors", "training.json", "config.yaml"}
    assert set(lines[:4]) == {f"sync .step-2.tmp/{name}" for name in files}
    [beside] = {line.split()[1] for line in lines if ".best." in line}
    assert lines[4:] == [
        "sync .step-2.tmp/manifest.json",
        "sync .step-2.tmp",
        "rename .step-2.tmp to step-2",
        "sync .",
        f"sync {beside}",
        f"rename {beside} to best.json",
        "sync .",
        "rename step-1 to .step-1.removed",
    ]


def test_one_of_the_same_step_goes_when_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    lines = disk_order(tmp_path, monkeypatch)

    save(tmp_path, 1)

    assert lines[-5:] == [
        "sync .step-1.tmp",
        "rename step-1 to step-1.old",
        "rename .step-1.tmp to step-1",
        "sync .",
        "rename step-1.old to .step-1.old.removed",
    ]


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".step-3.tmp").mkdir(parents=True)
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2)

    store.save(4, model={"weight": torch.zeros(1)}, training={}, best=None)

    assert not (tmp_path / ".step-3.tmp").exists()


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Writing past it is an error, as on a full disk; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit", "file"), [(1000, "model.safetensors"), (17_000, "training.safetensors")]
)
def test_a_failed_save_leaves_the_earlier_checkpoint_and_says_what_is_missing(
    tmp_path: Path, limit: int, file: str
) -> None:
    earlier = save(tmp_path, 1)
    model = {"weight": torch.zeros(4000)}  # 16,000 bytes, and twice as many of training

    with (
        files_of_at_most(limit),
        pytest.raises(RunError, match=rf"step-2: {file} .*File too large.*0\.0 MB, .* MB are free"),
    ):
        save_checkpoint(
            tmp_path, 2, model=model, training={"m": torch.zeros(8000)}, texts={"a.txt": "text"}
        )

    verify(earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_save_in_the_background_has_the_state_of_its_call(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2, background=True)
    weight = torch.zeros(1_000_000)

    store.save(1, model={"weight": weight}, training={"m": weight}, best={"checkpoint": "step-1"})
    weight += 1
    store.close()

    assert not load_model(tmp_path / "step-1")["weight"].any()
    assert not load_training(tmp_path / "step-1")["m"].any()
    assert load_best(tmp_path) == {"checkpoint": "step-1"}
    [saved] = store.take_finished()
    assert (saved.step, saved.path) == (1, tmp_path / "step-1")
    assert saved.num_bytes > 8_000_000
    assert saved.seconds > saved.waited_s > 0
    assert store.take_finished() == []


def test_what_failed_in_the_background_is_raised_at_the_next_call(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2, background=True)
    state = {"model": {"weight": torch.zeros(1000)}, "training": {}, "best": None}

    with files_of_at_most(100):
        store.save(1, **state)
        with pytest.raises(RunError, match="step-1: model"):
            store.close()
        store.save(2, **state)
        with pytest.raises(RunError, match="step-2: model"):
            store.save(3, **state)
    store.save(4, **state)
    store.close()

    assert [path.name for path in checkpoints(tmp_path)] == ["step-4"]


def test_the_same_step_again_is_whole_at_every_instant(tmp_path: Path) -> None:
    save(tmp_path, 1, done="half")
    save(tmp_path, 1, done="whole")

    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert load_training(tmp_path / "step-1") == {"done": "whole"}

    (tmp_path / "step-1").rename(tmp_path / "step-1.old")  # killed between the two moves
    assert newest_valid(tmp_path) == (tmp_path / "step-1", [])
    assert load_training(tmp_path / "step-1") == {"done": "whole"}


def test_damaged_ones_do_not_count_among_those_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-3" / "model.safetensors").write_bytes(b"")
    store = CheckpointFolder(tmp_path, texts={}, keep_last=2)

    store.save(4, model={"weight": torch.zeros(1)}, training={}, best=None)

    assert [path.name for path in checkpoints(tmp_path)] == ["step-2", "step-4"]
    [saved] = store.take_finished()
    assert "set aside as damaged-step-3" in saved.notes[0]
    assert saved.notes[0] in capsys.readouterr().err


def test_an_older_one_that_cannot_be_deleted_is_named_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointFolder(tmp_path, texts={}, keep_last=1)
    state = {"model": {"weight": torch.zeros(1)}, "training": {}, "best": None}
    store.save(1, **state)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        store.save(2, **state)
    notes = store.take_finished()[-1].notes
    store.save(3, **state)

    assert ["could not be deleted (Device or resource busy)" in note for note in notes] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_the_best_comes_first_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    names = [path.name for path in best_first(tmp_path)[0]]
    assert names == ["step-3", "step-2", "step-1"]
    save_best(tmp_path, {"checkpoint": "step-2"})

    found, lines = best_first(tmp_path)

    assert [path.name for path in found] == ["step-2", "step-3", "step-1"]
    assert lines == []
    for text in ("{", "[1]", '{"checkpoint": "step-9"}', '{"checkpoint": "../x"}'):
        (tmp_path / "best.json").write_text(text)
        assert best_first(tmp_path)[0][0] == tmp_path / "step-3"
        assert "best.json: " in best_first(tmp_path)[1][0]


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


def test_tensors_whose_names_would_meet_are_kept_apart(tmp_path: Path) -> None:
    parts = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}

    loaded = load_training(save(tmp_path, 1, **parts))

    assert (float(loaded["a.b"]), float(loaded["a"]["b"])) == (0, 1)
