import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.build import build_model
from cdb_video.build_losses import build_criterion
from cdb_video.config_file import load_config
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.models.hub_families import FAMILIES
from cdb_video.models.hub_files import transformers

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
NUM_CLASSES = {"verb": 19, "noun": 53, "action": 106}
# What the hub says of them: their families' own sizes, which are the library's defaults.
HUB_MODELS = {
    "hf:facebook/vjepa2-vitl-fpc64-256": "vjepa2",
    "hf:MCG-NJU/videomae-base": "videomae",
}


def architecture_of(backbone: str) -> dict[str, Any] | None:
    """What is looked up of a backbone outside of the recipe; None: nothing is."""
    if backbone == "features":
        return {"num_features": 8}
    if not backbone.startswith("hf:"):
        return None
    family = FAMILIES[HUB_MODELS[backbone]]
    config = getattr(transformers(), family.model).config_class().to_dict()
    pixels = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "value_range": 1.0}
    return {"config": config, "normalization": pixels}


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 25


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_builds_its_model_and_loss(path: Path) -> None:
    config = load_config(path)

    heads = config.model.heads or tuple(NUM_CLASSES)
    classes = {
        head: HeadClasses(
            tuple(str(i) for i in range(NUM_CLASSES[head])),
            torch.ones(NUM_CLASSES[head], dtype=torch.int64),
        )
        for head in heads
    }
    with torch.device("meta"):
        model = build_model(
            config.model,
            num_classes={head: len(known.names) for head, known in classes.items()},
            num_frames=config.clip.num_frames,
            crop_size=config.clip.crop_size,
            architecture=architecture_of(config.model.backbone),
        )
    criterion = build_criterion(config.loss, classes)

    assert set(model.heads) == set(criterion.losses) == set(heads)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_the_command_that_runs_it(path: Path) -> None:
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line)

    first = comment[0].removeprefix("# ")
    assert re.match(r"torchrun .*tools/train\.py|python tools/compare\.py ", first)
    if path.stem != "demo":  # the default
        assert str(path.relative_to(ROOT)) in "\n".join(comment)


def test_the_paper_recipe_is_the_papers_setup() -> None:
    config = load_config(ROOT / "configs/egtea/paper_verbs_resnext101_cdb.yaml")

    # The released code: 10 segment frames at 224, SGD 1e-3 without momentum, weight decay 5e-4,
    # 100 epochs with one fall at 60, batch 16 over two GPUs, validation on P20 to P26.
    assert (config.clip.num_frames, config.clip.sampling, config.clip.crop_size) == (
        10,
        "segments",
        224,
    )
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (1e-3, 0, 5e-4)
    assert (config.train.epochs, config.optim.step_at, config.optim.step_factor) == (
        100,
        (0.6,),
        0.1,
    )
    assert (config.train.global_batch_size, config.train.micro_batch_size) == (16, 8)
    assert config.train.precision == "fp32"
    assert config.data.hold_out_subjects == tuple(f"P{i}" for i in range(20, 27))
    assert config.loss.tau == "dynamic"


@pytest.mark.parametrize(
    ("recipe", "control"),
    [
        ("egtea/slowfast_r50_verb_noun_action_cdb", "egtea/slowfast_r50_verb_noun_action_ce"),
        ("egtea/slowfast_r50_actions_full_cdb", "egtea/slowfast_r50_actions_full_ce"),
        ("egtea/paper_verbs_resnext101_cdb", "egtea/paper_verbs_resnext101_ce"),
        ("egtea/paper_verbs_resnext101_cdb", "egtea/paper_verbs_resnext101_focal"),
        ("images/mnist_4v9_cdb", "images/mnist_4v9_ce"),
        ("images/fashion_mnist_lt_cdb", "images/fashion_mnist_lt_ce"),
        ("images/cifar10_lt_cdb", "images/cifar10_lt_ce"),
        ("images/cifar100_lt_cdb", "images/cifar100_lt_ce"),
        ("images/imagenet_lt_cdb", "images/imagenet_lt_ce"),
    ],
)
def test_the_control_differs_from_the_cdb_recipe_in_the_loss_alone(
    recipe: str, control: str
) -> None:
    cdb, other = (
        load_config(ROOT / f"configs/{name}.yaml").model_dump() for name in (recipe, control)
    )

    assert cdb.pop("loss") != other.pop("loss")
    assert cdb == other


def test_the_papers_focal_loss_is_that_of_its_released_code() -> None:
    loss = load_config(ROOT / "configs/egtea/paper_verbs_resnext101_focal.yaml").loss

    assert (loss.name, loss.options) == ("focal", {"gamma": 1})


def test_the_cifar_100_recipe_is_the_released_codes_setup() -> None:
    config = load_config(ROOT / "configs/images/cifar100_lt_cdb.yaml")

    # 25 of 500 images a class held out, 240 epochs of 32 images, SGD 0.1 with momentum 0.9, falls
    # by 100 at 160 and 210, weight decay 5e-4, crops of the image padded by 4.
    assert (config.data.val_per_class, config.data.long_tail.imbalance) == (25, 100)  # type: ignore[union-attr]
    assert (config.train.epochs, config.train.global_batch_size) == (240, 32)
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 5e-4)
    assert not config.optim.nesterov
    # 10,302 images are 321 steps: the fall comes before the first step of the epoch.
    falls = [math.ceil(share * 240 * 321) / 321 for share in config.optim.step_at]
    assert falls == [160, 210]
    assert config.optim.step_factor == 0.01
    assert (config.augment.crop, config.augment.padding, config.augment.flip) == ("pad", 4, True)
    assert config.model.backbone == "resnet32"


def test_full_training_holds_nothing_out() -> None:
    config = load_config(ROOT / "configs/egtea/slowfast_r50_actions_full_cdb.yaml")

    assert (config.data.val_split, config.data.hold_out_subjects) == (None, ())
    assert config.loss.difficulty.source == "crossfit"


def test_the_imagenet_lt_recipe_is_the_released_codes_setup() -> None:
    config = load_config(ROOT / "configs/images/imagenet_lt_cdb.yaml")

    # 90 epochs of 512 images, plain SGD 0.2 by a cosine, weight decay 2e-4, crops of 224 of 8 % to
    # all of the area, evaluation's of 256; tau 1.
    assert (config.train.epochs, config.train.global_batch_size) == (90, 512)
    assert (config.optim.lr, config.optim.momentum, config.optim.nesterov) == (0.2, 0.9, False)
    assert (config.optim.weight_decay, config.optim.schedule) == (2e-4, "cosine")
    assert (config.clip.crop_size, config.clip.short_side) == (224, 256)
    assert (config.augment.crop, config.augment.area) == ("random_resized", (0.08, 1.0))
    assert (config.model.backbone, config.loss.tau) == ("resnet10", 1)


def test_the_cifar_10_recipe_is_the_protocol_of_cao_et_al() -> None:
    config = load_config(ROOT / "configs/images/cifar10_lt_ce.yaml")

    # 200 epochs of 128 images, plain SGD 0.1 after 5 epochs of warm-up, a hundredth at 160 and
    # again at 180, weight decay 2e-4.
    assert (config.train.epochs, config.train.global_batch_size) == (200, 128)
    assert (config.optim.lr, config.optim.momentum, config.optim.nesterov) == (0.1, 0.9, False)
    assert (config.optim.weight_decay, config.optim.warmup_epochs) == (2e-4, 5)
    assert [share * 200 for share in config.optim.step_at] == [160, 180]
    assert config.optim.step_factor == 0.01
    assert (config.model.backbone, config.augment.padding) == ("resnet32", 4)
