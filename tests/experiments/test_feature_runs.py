"""Training on saved features: the same numbers as on video, and everything a run can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.build_data import read_data
from cdb_video.config import Config
from cdb_video.config_file import parse_config
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError, RunError
from cdb_video.evaluation.features import load_features, save_features
from cdb_video.experiments import load_run, open_run
from cdb_video.experiments.compare import finished, make_plan, run_cells
from cdb_video.experiments.export import export_run
from cdb_video.experiments.features import run_features
from cdb_video.experiments.posthoc import correct
from cdb_video.experiments.runs import score
from cdb_video.training.trainer import Trainer
from tests.feature_files import save_data_set
from tests.tiny import tiny_config, tiny_values


def features_config(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    values = tiny_values(root, output)
    values["data"]["format"] = "features"
    values["model"]["backbone"] = "features"
    values["optim"]["lr"] = 0.05
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values, source="features")


def trained(config: Config) -> tuple[Trainer, Path]:
    """A finished run in its folder."""
    data = read_data(config)
    run, config = open_run(config, config_name="features", resume=False)
    trainer = build_trainer(config, data=data, run=run, quiet=True)
    trainer.fit()
    run.close()
    return trainer, run.path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    root = save_data_set(folder / "features", views=3)
    return trained(features_config(root, folder, train={"epochs": 4}))[1]


@pytest.fixture(scope="module")
def square_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of square videos of eight frames: a clip of eight shows all, whatever is drawn."""
    folder = tmp_path_factory.mktemp("square")
    rows = ["path,verb,noun,split"]
    for split, count in {"train": 12, "val": 6, "test": 6}.items():
        for i in range(count):
            name = f"{split}_{i}.mp4"
            write_noise(folder / name, seed=len(rows), level=40 + 60 * (i % 3))
            rows.append(
                f"{name},{('close', 'open')[i % 2]},{('bowl', 'cup', 'pot')[i % 3]},{split}"
            )
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_noise(path: Path, *, seed: int, level: int) -> None:
    pixels = np.random.default_rng(seed).integers(level, level + 80, (8, 24, 24, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 24
        stream.pix_fmt = "yuv420p"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("loss", ["cdb", pytest.param("balanced_softmax", marks=pytest.mark.slow)])
def test_a_linear_head_on_features_is_the_frozen_run_on_video(
    square_videos: Path, tmp_path: Path, loss: str
) -> None:
    """With augmentation off.

    By SGD: Adam makes steps of a gradient's sign, also where it is noise in the last bit.
    """
    common: dict[str, dict[str, Any]] = {
        "loss": {"name": loss},
        "train": {"epochs": 3},
        "model": {"dropout": 0.3},
    }
    video = tiny_config(
        square_videos,
        tmp_path,
        **common | {"model": {"freeze_backbone": True, "dropout": 0.3}},
        clip={"num_frames": 8},
        augment={"flip": False},
        optim={"name": "sgd", "lr": 0.1},
        run={"name": "video"},
    )
    on_video, folder = trained(video)
    first = build_trainer(video, quiet=True)  # the run before its first step
    run = load_run(folder)
    root = tmp_path / "features"
    root.mkdir()
    data = read_data(video)
    for role in ("train", "val", "test"):
        found = run_features(run, data.split(role), by_view=True)
        save_features(root / f"{role}.npz", found, run.classes)  # fp32: for the comparison
    config = features_config(root, tmp_path, **common, run={"name": "on_features"})
    config = config.model_copy(
        update={"optim": video.optim, "loss": video.loss, "train": video.train}
    )
    on_features = build_trainer(config, quiet=True)
    on_features.model.heads.load_state_dict(first.model.heads.state_dict())

    on_features.fit()

    for name, value in on_video.model.heads.state_dict().items():
        torch.testing.assert_close(
            on_features.model.heads.state_dict()[name], value, rtol=0, atol=1e-5
        )
        assert not torch.equal(first.model.heads.state_dict()[name], value)  # it learned
    counts = [t.train_counts["noun"] for t in (on_video, on_features)]
    assert counts[0].correct.tolist() == counts[1].correct.tolist()
    for theirs, ours in zip(
        on_video.criterion.state_dict().values(),
        on_features.criterion.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_run_on_features_learns_loads_and_is_scored_over_all_views(run_folder: Path) -> None:
    run = load_run(run_folder)

    report = score(run, read_data(run.config).split("test"))

    assert report.num_views == 3
    assert report.counts["verb"].top1 > 0.9
    written = json.loads((run_folder / "report_val.json").read_text())
    assert written["views"] == "3"
    about = json.loads((run.checkpoint / "model.json").read_text())
    assert about["architecture"] == {"num_features": 6}


@pytest.mark.parametrize(
    "method",
    [
        "crt",
        "logit-adjust",
        pytest.param("lws", marks=pytest.mark.slow),
        pytest.param("tau-norm", marks=pytest.mark.slow),
    ],
)
def test_corrections_take_the_saved_features(run_folder: Path, method: Any) -> None:
    found = correct(load_run(run_folder), method)

    assert found.after["heads"]["verb"]["top1"] > 0.5
    assert found.after["num_videos"] == 12


def test_crossfit_difficulty_and_class_sampling_take_them(tmp_path: Path) -> None:
    root = save_data_set(tmp_path / "features", views=2)
    config = features_config(
        root,
        tmp_path,
        data={"val_split": None, "sampler": "class_balanced", "sampler_head": "noun"},
        loss={"name": "cdb", "difficulty": {"source": "crossfit"}},
    )

    trainer = build_trainer(config, quiet=True)
    trainer.fit()

    assert int(trainer.epoch_log.difficulties["verb"].epochs) == 2


def test_attentive_heads_and_mixup_work_on_them(tmp_path: Path) -> None:
    root = save_data_set(tmp_path / "features", views=2)
    config = features_config(
        root,
        tmp_path,
        model={"head_type": "attentive"},
        augment={"mixup": 0.4},
        loss={"name": "cross_entropy"},
        train={"epochs": 4},
    )

    trainer, folder = trained(config)

    assert trainer.state.position.step == 16
    report = score(load_run(folder), read_data(config).split("test"))
    assert report.counts["verb"].top1 > 0.5
    correct(load_run(folder), "logit-adjust", role="val")
    with pytest.raises(ConfigError, match="head 'verb' is a AttentiveHead"):
        correct(load_run(folder), "crt")


@pytest.mark.slow
def test_a_comparison_runs_on_them(tmp_path: Path) -> None:
    from cdb_video.config_file import dump_config

    root = save_data_set(tmp_path / "features")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(features_config(root, tmp_path)))
    plan = make_plan(recipe, [], losses=["cross_entropy", "ldam", "cdb"], num_seeds=1, name="all")

    lines = list(run_cells(plan, ranks=ONE_PROCESS))

    # With the control that trains on the difficulty set too: train.npz and val.npz together.
    assert len(lines) == len(finished(plan).cells) == 4
    control = json.loads(
        (plan.folder / "cross_entropy---difficulty-set" / "seed-0" / "report_test.json").read_text()
    )
    assert sum(control["heads"]["verb"]["train_count"].values()) == 33


def test_what_needs_video_is_refused_in_one_line(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained on saved features and see no videos"):
        load_run(run_folder).predict(tmp_path / "video.mp4")
    with pytest.raises(RunError, match="trained on saved features, and take no clips"):
        export_run(run_folder, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"backbone": "r3d_10"}},
            r"data\.format=features with model\.backbone=r3d_10",
        ),
        ({"data": {"format": "auto"}}, r"data\.format=auto with model\.backbone=features"),
        ({"data": {"in_memory": True}}, r"data\.in_memory=true: is for video"),
    ],
)
def test_format_and_backbone_go_together(
    tmp_path: Path, sections: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        features_config(tmp_path, tmp_path, **sections)


def test_splits_of_other_widths_are_refused(tmp_path: Path) -> None:
    root = save_data_set(tmp_path / "features")
    (save_data_set(tmp_path / "wide", width=8) / "val.npz").replace(root / "val.npz")

    with pytest.raises(ConfigError, match=r"^data\.val_split=val: 8 features a clip, and the tr"):
        build_trainer(features_config(root, tmp_path), quiet=True)


def test_half_precision_keeps_three_digits_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    import dataclasses

    from cdb_video.evaluation.predictions import HeadClasses
    from tests.feature_files import NAMES, make_features

    found = make_features(4)
    classes = {
        head: HeadClasses(n, torch.ones(len(n), dtype=torch.int64)) for head, n in NAMES.items()
    }
    save_features(tmp_path / "f.npz", found, classes, half=True)

    loaded, _ = load_features(tmp_path / "f.npz")

    assert loaded.features.dtype == torch.float16
    torch.testing.assert_close(loaded.features.float(), found.features, rtol=1e-3, atol=1e-4)
    assert (loaded.recordings, loaded.metadata) == (found.recordings, found.metadata)
    large = dataclasses.replace(found, features=found.features * 1e6)
    with pytest.raises(RunError, match="fp16 holds up to 65504"):
        save_features(tmp_path / "f.npz", large, classes, half=True)
