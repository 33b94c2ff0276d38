"""Training on images: in memory and decoded, resumed, on two ranks, compared, predicted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.build_data import read_data
from cdb_video.config import Config
from cdb_video.config_file import dump_config, parse_config
from cdb_video.datasets.given import find_given
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import ConfigError, DataError, RunError
from cdb_video.experiments import load_run, open_run
from cdb_video.experiments.compare import finished, make_plan, run_cells
from cdb_video.experiments.runs import score
from cdb_video.training.trainer import Trainer
from tests.image_files import made_images, write_image, write_mnist
from tests.tiny import tiny_values

ROOT = Path(__file__).parents[2]
SIDE = 28


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"), per_class=30, side=SIDE, suffix=".gz")


def image_values(root: Path, output: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    values = tiny_values(root, output)
    values["data"] |= {"format": "images", "in_memory": True, "val_per_class": 5}
    values["data"]["long_tail"] = {"imbalance": 5}
    values["clip"] = {"num_frames": 1, "stride": 1, "crop_size": SIDE, "short_side": SIDE}
    values["augment"] = {"crop": "pad", "padding": 1}
    values["model"]["backbone"] = "lenet"
    values["train"] |= {"global_batch_size": 8, "micro_batch_size": 8}
    for name, section in sections.items():
        values[name] |= section
    return values


def image_config(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    return parse_config(image_values(root, output, **sections), source="images")


def trained(config: Config, *, resume: bool = False) -> tuple[Trainer, Path]:
    data = read_data(config)
    run, config = open_run(config, config_name="images", resume=resume)
    trainer = build_trainer(config, data=data, run=run, quiet=True)
    trainer.fit()
    run.close()
    return trainer, run.path


@pytest.fixture(scope="module")
def run_folder(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return trained(image_config(mnist, folder, train={"epochs": 8}))[1]


def test_a_network_learns_images_and_its_run_says_what_they_were(run_folder: Path) -> None:
    report = json.loads((run_folder / "report_val.json").read_text())

    label = report["heads"]["label"]
    # 30 - 5 of the first class, int(25 / 5^(c / 3)) of class c.
    assert label["train_count"] == {"0": 25, "1": 14, "2": 8, "3": 5}
    assert label["count"] == dict.fromkeys("0123", 5)
    assert report["split_fed"] == ["selection", "difficulty"]
    # Stripes four times as bright as the rest.
    assert label["mean_class_accuracy"] > 0.9


def test_scores_do_not_depend_on_where_the_pixels_were(run_folder: Path) -> None:
    kept = load_run(run_folder)
    decoded = load_run(run_folder, overrides=["data.in_memory=false"])
    split = read_data(kept.config).split("test")

    first, second = score(kept, split), score(decoded, split)

    assert torch.equal(
        first.predictions.heads["label"].scores, second.predictions.heads["label"].scores
    )


def test_an_image_file_is_predicted_as_evaluation_scores_it(
    run_folder: Path, tmp_path: Path
) -> None:
    pixels = made_images(1, side=SIDE, seed=9)[0] // 4
    pixels[14:21] += 190  # the stripe of class 2
    ranking = load_run(run_folder).predict(write_image(tmp_path / "a.png", pixels), top=1)

    [(name, probability)] = ranking["label"]
    assert name == "2"
    assert probability > 0.5


def test_what_was_held_out_cannot_be_drawn_again(mnist: Path, tmp_path: Path) -> None:
    tail = {"imbalance": 5, "draw": "random"}
    config = image_config(mnist, tmp_path, data={"long_tail": tail}, train={"epochs": 1})
    _, path = trained(config)

    assert load_run(path).config.run.seed == 0
    for override, shown in {
        "run.seed=7": "run.seed=7",
        "data.val_per_class=3": "data.val_per_class=3",
        "data.long_tail.imbalance=2": "data.long_tail=",
    }.items():
        with pytest.raises(RunError, match=f"^{shown}.*says what was held out"):
            load_run(path, overrides=[override])


def test_images_in_a_folder_are_found_for_a_run_on_images(tmp_path: Path) -> None:
    image = write_image(tmp_path / "in/a.png", made_images(1, side=SIDE, seed=0)[0])

    assert find_given([str(tmp_path / "in")], images=True) == [image]
    with pytest.raises(DataError, match=r"no video in this folder \(\.mp4"):
        find_given([str(tmp_path / "in")])
    packed = write_mnist(tmp_path / "mnist", per_class=1) / "t10k-images-idx3-ubyte"
    with pytest.raises(DataError, match="holds many images"):
        find_given([str(packed)], images=True)


# What the other rooms do with images: each through a whole run.
@pytest.mark.parametrize(
    "sections",
    [
        {"augment": {"rand_augment": [1, 5], "erase": 0.5, "color_jitter": 0.4}},
        {"augment": {"mixup": 0.4, "cutmix": 1.0}},
        {"data": {"sampler": "class_balanced"}},
        {"loss": {"difficulty": {"source": "crossfit"}}},
        {"data": {"untrusted": True}},
        {"data": {"in_memory": False}},
        {"model": {"backbone": "resnet32"}, "train": {"precision": "bf16"}},
    ],
    ids=["changed", "mixed", "drawn", "crossfit", "untrusted", "decoded", "resnet32"],
)
def test_a_run_on_images_with(mnist: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    train = {"epochs": 1} | sections.get("train", {})
    config = image_config(mnist, tmp_path, **sections | {"train": train})
    trainer, path = trained(config)

    assert trainer.state.position.step == 6  # of 52 images, 8 a step
    report = json.loads((path / "report_val.json").read_text())
    assert report["num_videos"] == 20


def test_a_run_goes_on_where_it_stopped(mnist: Path, tmp_path: Path) -> None:
    constant = {"schedule": "constant"}
    whole, _ = trained(image_config(mnist, tmp_path / "b", train={"epochs": 3}, optim=constant))
    trained(image_config(mnist, tmp_path / "c", train={"epochs": 1}, optim=constant))
    longer = image_config(mnist, tmp_path / "c", train={"epochs": 3}, optim=constant)
    resumed, _ = trained(longer, resume=True)

    state = resumed.model.state_dict()
    for name, values in whole.model.state_dict().items():
        assert torch.equal(values, state[name]), name


@pytest.mark.slow
def test_of_a_comparison_every_seed_has_its_own_images_and_all_arms_the_same(
    mnist: Path, tmp_path: Path
) -> None:
    tail = {"imbalance": 5, "draw": "random"}
    config = image_config(mnist, tmp_path, data={"long_tail": tail}, train={"epochs": 1})
    path = tmp_path / "images.yaml"
    path.write_text(dump_config(config))
    plan = make_plan(path, [], losses=["cross_entropy", "cdb"], num_seeds=2)

    assert len(list(run_cells(plan, ranks=ONE_PROCESS))) == 6

    trained_on = {}
    for cell in finished(plan).cells:
        counts = cell.report["heads"]["label"]["train_count"]
        trained_on[cell.arm] = sum(counts.values())
    control = "cross_entropy + difficulty set"
    assert trained_on == {"cross_entropy": 52, "cdb": 52, control: 52 + 20}
    ids = {
        (arm.name, seed): {r.id for r in read_data(plan.configs[arm.name, seed]).train.records}
        for arm in plan.arms
        for seed in plan.seeds
    }
    for seed in plan.seeds:
        assert ids["cdb", seed] == ids["cross_entropy", seed] < ids[control, seed]
    assert ids["cdb", 0] != ids["cdb", 1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"clip": {"num_frames": 2}}, "clip.num_frames=2: an image is a clip of 1 frame"),
        ({"views": {"num_clips": 3}}, "views.num_clips=3: an image has 1 clip"),
        ({"augment": {"crop": "jitter"}}, "data.in_memory=true with augment.crop=jitter: "),
        ({"data": {"on_error": "skip"}}, "data.in_memory=true of images: needs"),
        ({"data": {"format": "folder"}}, "data.long_tail: is for data.format=images, got folder"),
        (
            {"data": {"long_tail": {"imbalance": 2, "majority_share": 0.9}}},
            "data.long_tail.imbalance=2.0 with majority_share=0.9: give one of the two",
        ),
        (
            {"data": {"long_tail": {"imbalence": 2}}},
            "data.long_tail.imbalence: no such key; did you mean 'imbalance'?",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_key(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    values = image_values(tmp_path, tmp_path)
    values["views"] = {}

    for name, section in sections.items():
        values[name] |= section

    with pytest.raises(ConfigError) as caught:
        parse_config(values, source="images")

    assert str(caught.value).startswith(f"images: {message}")


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(mnist: Path, tmp_path: Path) -> None:
    path = tmp_path / "images.yaml"
    path.write_text(dump_config(image_config(mnist, tmp_path, run={"name": None})))
    lines = {}
    for name, launch in {
        "one": [sys.executable],
        "two": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
        ],
    }.items():
        command = [*launch, "tools/train.py", str(path), f"run.name={name}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        events = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        lines[name] = [event for event in events if event["event"] == "train"]

    # A LeNet has no batch norm: the sums are the same but for their order.
    assert [line["step"] for line in lines["one"]] == [6, 10, 12]
    for one, two in zip(lines["one"], lines["two"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
