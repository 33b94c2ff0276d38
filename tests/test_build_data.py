from pathlib import Path

import pytest

from cdb_video.build_clips import build_augmentation
from cdb_video.build_data import data_root, read_data
from cdb_video.errors import ConfigError, DataError
from tests.tiny import tiny_config


def test_a_table_with_a_split_column_needs_no_split_names(tiny_data: Path, tmp_path: Path) -> None:
    data = read_data(tiny_config(tiny_data, tmp_path))

    assert data.val is not None
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (12, 7, 5)
    assert data.train.num_classes == {"verb": 2, "noun": 3}


def test_a_data_set_without_a_test_split_is_fine(tiny_data: Path, tmp_path: Path) -> None:
    rows = (tiny_data / "clips.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith(",test")]
    (tmp_path / "clips.csv").write_text("\n".join(kept) + "\n")
    for video in tiny_data.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)

    assert read_data(tiny_config(tmp_path, tmp_path)).test is None
    with pytest.raises(DataError, match="'testing'"):
        read_data(tiny_config(tmp_path, tmp_path, data={"test_split": "testing"}))


def test_subjects_are_held_out_of_training_for_validation(tiny_data: Path, tmp_path: Path) -> None:
    header, *rows = (tiny_data / "clips.csv").read_text().splitlines()
    people = [f"{row},P{i % 4}" for i, row in enumerate(r for r in rows if r.endswith(",train"))]
    table = "\n".join([f"{header},participant", *people]) + "\n"
    (tmp_path / "people.csv").write_text(table)
    for video in tiny_data.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    held_out = {"val_split": "held_out", "hold_out_subjects": ["P1", "P3"]}

    data = read_data(tiny_config(tmp_path, tmp_path, data=held_out))

    assert data.val is not None
    assert {record.metadata["participant"] for record in data.val.records} == {"P1", "P3"}
    assert {record.metadata["participant"] for record in data.train.records} == {"P0", "P2"}
    assert len(data.train) + len(data.val) == 12


def test_a_head_without_a_label_in_validation_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    header, *rows = (tiny_data / "clips.csv").read_text().splitlines()
    cleared = [
        ",".join([*row.split(",")[:2], "", "val"]) if row.endswith(",val") else row for row in rows
    ]
    (tmp_path / "clips.csv").write_text("\n".join([header, *cleared]) + "\n")
    for video in tiny_data.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)

    with pytest.raises(
        ConfigError, match=r"data\.val_split=val: no clip is labelled for head 'noun'"
    ):
        read_data(tiny_config(tmp_path, tmp_path))


def test_no_clip_may_have_two_roles(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_split=.*is also data\.test_split=auto"):
        tiny_config(tiny_data, tmp_path, data={"train_split": ["train", "test"]})
    for name in ("train", "other"):
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{tiny_data}/train_0.mp4,open\n")
    config = tiny_config(tmp_path, tmp_path, data={"val_split": "other"})
    with pytest.raises(ConfigError, match=r"data\.val_split: clip .*train_0.* data\.train_split"):
        read_data(config)


def test_without_a_root_the_key_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, data={"root": None})

    with pytest.raises(ConfigError, match=r"data\.root is null"):
        data_root(config)


def test_no_flip_classes_become_class_indices(tiny_data: Path, tmp_path: Path) -> None:
    no_flip = {"no_flip_classes": {"verb": ["open"], "noun": ["pot", "bowl"]}}
    config = tiny_config(tiny_data, tmp_path, augment=no_flip)

    augmentation = build_augmentation(config, read_data(config).train.vocabularies)

    assert augmentation.no_flip_labels == {"verb": {1}, "noun": {2, 0}}
