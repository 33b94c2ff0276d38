"""Training on saved features: the same numbers as on video, and everything a run can do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from cdb_video.build import build_initial_model, build_trainer
from cdb_video.build_data import read_data
from cdb_video.build_evaluation import build_crossfit
from cdb_video.config import Config
from cdb_video.config_file import parse_config
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError, RunError
from cdb_video.evaluation.features import load_features, save_features
from cdb_video.experiments import load_run, open_run
from cdb_video.experiments.compare import finished, make_plan, run_cells
from cdb_video.experiments.export import export_run
from cdb_video.experiments.features import run_features, view_features, write_features
from cdb_video.experiments.posthoc import correct
from cdb_video.experiments.runs import score
from cdb_video.training.trainer import Trainer
from tests.feature_files import made_with, save_data_set
from tests.tiny import tiny_config, tiny_values


def features_config(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    values = tiny_values(root, output)
    values["data"]["format"] = "features"
    values["model"]["backbone"] = "features"
    values["optim"]["lr"] = 0.05
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values, source="features")


def trained(config: Config, *, resume: bool = False) -> tuple[Trainer, Path]:
    """A finished run in its folder."""
    data = read_data(config)
    run, config = open_run(config, config_name="features", resume=resume)
    try:
        trainer = build_trainer(config, data=data, run=run, quiet=True)
        trainer.fit()
    finally:
        run.close()
    return trainer, run.path


SOURCE = made_with("hf:a None")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    root = save_data_set(folder / "features", views=3, source=SOURCE)
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
    assert about["architecture"] == {"num_features": 6, "source": json.loads(SOURCE)}


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


@pytest.mark.parametrize("method", ["logit-adjust", pytest.param("lws", marks=pytest.mark.slow)])
def test_corrections_are_of_the_features_that_are_there_now(
    run_folder: Path, tmp_path: Path, method: Any
) -> None:
    """The ids and labels are the same, the features are others."""
    before = load_run(run_folder)
    correct(before, method)
    seen = view_features(before, before.read_split("test"), "test").features
    root = save_data_set(tmp_path / "features", views=3, source=SOURCE)
    for path in root.glob("*.npz"):
        found, classes = load_features(path)
        negated = dataclasses.replace(found, features=-found.features)
        save_features(path, negated, classes)
    run = load_run(run_folder, overrides=[f"data.root={root}"])
    assert torch.equal(view_features(run, run.read_split("test"), "test").features, -seen)
    there = score(run, run.read_split("test")).counts["verb"].top1

    found = correct(run, method)

    assert found.before["heads"]["verb"]["top1"] == there < 0.5
    written = json.loads((run_folder / "report_test.json").read_text())
    assert written["heads"]["verb"]["top1"] == there
    assert not list(run_folder.glob("posthoc_features*"))


def test_crossfit_is_measured_once_where_features_never_change(
    tiny_data: Path, tmp_path: Path
) -> None:
    crossfit = {"name": "cdb", "difficulty": {"source": "crossfit"}}
    root = save_data_set(tmp_path / "features")
    video = tiny_config(tiny_data, tmp_path, loss=crossfit)
    frozen = tiny_config(tiny_data, tmp_path, loss=crossfit, model={"freeze_backbone": True})
    for config, is_kept in (
        (features_config(root, tmp_path, loss=crossfit), True),
        (frozen, True),
        (video, False),
    ):
        data = read_data(config)
        cpu = torch.device("cpu")
        model = build_initial_model(config, data, cpu, quiet=True)
        measure = build_crossfit(config, data, cpu, "fp32", ONE_PROCESS)
        assert measure is not None

        first, second = measure(model), measure(model)

        assert (second["verb"] is first["verb"]) == is_kept
        assert second["noun"].total.tolist() == first["noun"].total.tolist()


def test_crossfit_of_a_frozen_backbone_is_found_again_by_a_resumed_run(tmp_path: Path) -> None:
    root = save_data_set(tmp_path / "features", views=2)
    folders = []
    for name, parts in (("whole", (3,)), ("parts", (1, 3))):
        for epochs in parts:
            config = features_config(
                root,
                tmp_path,
                loss={"name": "cdb", "difficulty": {"source": "crossfit", "ema": 0.5}},
                optim={"schedule": "constant"},
                train={"epochs": epochs},
                run={"name": name},
            )
            folder = trained(config, resume=epochs > parts[0])[1]
        folders.append(folder)

    whole, parts_ = ((folder / "difficulty.csv").read_text() for folder in folders)

    assert parts_ == whole
    weights = [load_run(folder).model.state_dict() for folder in folders]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


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
        (
            {"augment": {"color_jitter": 0.4}},
            r"augment\.color_jitter=0\.4: features have no pixels to cut or change; use mixup",
        ),
        (
            {"augment": {"rand_augment": [2, 9]}},
            r"augment\.rand_augment=\[2, 9\]: features have no",
        ),
        ({"augment": {"erase": 0.25}}, r"augment\.erase=0\.25: features have no pixels"),
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


def test_features_by_other_weights_or_clips_are_refused(run_folder: Path, tmp_path: Path) -> None:
    root = save_data_set(tmp_path / "a", source=SOURCE)
    other = save_data_set(tmp_path / "b", source=made_with("hf:b None"))
    longer = save_data_set(tmp_path / "c", source=made_with("hf:a None", num_frames=32))
    config = features_config(root, tmp_path)

    shutil.copy(other / "val.npz", root / "val.npz")
    with pytest.raises(ConfigError) as caught:
        build_trainer(config, quiet=True)
    shutil.copy(longer / "val.npz", root / "val.npz")
    with pytest.raises(
        ConfigError, match=r"made with clip\.num_frames=32, against 16 of the train"
    ):
        build_trainer(config, quiet=True)
    run = load_run(run_folder, overrides=[f"data.root={other}"])
    with pytest.raises(
        ConfigError, match=r"^data\.root=.*hf:b None, against hf:a None of the run's"
    ):
        run.read_split("test")
    resumed = features_config(other, run_folder.parent, train={"epochs": 5})
    with pytest.raises(
        ConfigError, match=r"^data\.root=.*hf:b None, against hf:a None of the run's"
    ):
        trained(resumed, resume=True)

    assert str(caught.value) == (
        "data.val_split=val: features made with weights=hf:b None, against hf:a None of the "
        "training split's; the files of all splits must be of the same weights and clips"
    )


def test_features_that_are_passed_on_say_what_made_them(run_folder: Path, tmp_path: Path) -> None:
    run = load_run(run_folder)
    split = run.read_split("test")

    write_features(run, split, tmp_path / "test.npz")

    assert json.loads(load_features(tmp_path / "test.npz")[0].source) == json.loads(SOURCE)
    with pytest.raises(ConfigError, match=r"test\.npz: the run reads this file"):
        write_features(run, split, split.records[0].path)


def test_views_are_those_of_the_files(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^views\.num_clips=10: the run is on saved features"):
        load_run(run_folder, overrides=["views.num_clips=10"])


def test_half_precision_keeps_three_digits_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
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
