import pytest
import torch
from torch import nn

from cdb_video.errors import RunError
from cdb_video.models.backbones import build_backbone
from cdb_video.training.optim import Schedule, build_optimizer, load_optimizer


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2))
        self.heads = nn.ModuleDict({"verb": nn.Linear(2, 3)})


def test_heads_have_a_rate_of_their_own_and_biases_and_norms_do_not_decay() -> None:
    model = TinyModel()

    optimizer = build_optimizer(model, name="sgd", lr=0.1, head_lr_scale=10, weight_decay=0.5)

    by_id = {
        id(parameter): (group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.1, 0.0),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "heads.verb.weight": (1.0, 0.5),
        "heads.verb.bias": (1.0, 0.0),
    }


@pytest.mark.parametrize(
    ("backbone", "tables"),
    [
        ("mvit_b", {"cls_token", "pos_embed_class", "pos_embed_spatial", "pos_embed_temporal"}),
        ("mvit_v2_s", {"class_token", "rel_pos_h", "rel_pos_t", "rel_pos_w"}),
        ("swin3d_t", {"relative_position_bias_table"}),
        ("vit_b_16", {"class_token", "pos_embedding"}),
    ],
)
def test_position_tables_and_class_tokens_do_not_decay(backbone: str, tables: set[str]) -> None:
    with torch.device("meta"):
        network = build_backbone(backbone, num_frames=16, crop_size=224)
    model = nn.ModuleDict({"backbone": network, "heads": nn.ModuleDict()})  # type: ignore[dict-item]

    optimizer = build_optimizer(model, name="adamw", lr=0.1, weight_decay=0.5)

    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    kept = {name.rpartition(".")[2] for name, value in found.items() if value == 0}
    assert {name for name in kept if not name.endswith(("bias", "weight"))} == tables
    assert all(name.endswith("weight") for name, value in found.items() if value)


def test_moments_of_other_groups_are_refused() -> None:
    model = TinyModel()
    state = build_optimizer(model, name="sgd", lr=0.1, weight_decay=0.5).state_dict()
    model.heads["noun"] = nn.Linear(2, 3)

    with pytest.raises(RunError, match="the checkpoint's optimizer is another version's") as error:
        load_optimizer(build_optimizer(model, name="sgd", lr=0.1, weight_decay=0.5), state)

    assert "\n" not in str(error.value)


def test_frozen_parameters_are_left_out() -> None:
    model = TinyModel()
    model.backbone.requires_grad_(False)

    optimizer = build_optimizer(model, name="adamw", lr=0.1)

    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("epochs_done", "expected"),
    [
        (0.0, 0.01),  # warm-up starts at a hundredth
        (1.0, 0.505),  # and is half way after one of two epochs
        (2.0, 1.0),
        (6.0, 0.5),  # the middle of the cosine's eight epochs
        (10.0, 0.0),
    ],
)
def test_cosine_with_warmup_by_hand(epochs_done: float, expected: float) -> None:
    schedule = Schedule(epochs=10, shape="cosine", warmup_epochs=2)

    assert schedule.factor(epochs_done) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("epochs_done", "expected"), [(5.9, 1.0), (6.0, 0.1), (7.9, 0.1), (8.0, 0.01)]
)
def test_steps_fall_at_their_shares_of_the_run(epochs_done: float, expected: float) -> None:
    schedule = Schedule(epochs=10, shape="steps", step_at=(0.6, 0.8), step_factor=0.1)

    assert schedule.factor(epochs_done) == pytest.approx(expected)


def test_applying_the_schedule_keeps_the_ratio_between_backbone_and_heads() -> None:
    model = TinyModel()
    optimizer = build_optimizer(model, name="sgd", lr=0.1, head_lr_scale=10)

    factor = Schedule(epochs=10, shape="cosine").apply(optimizer, 5.0)

    assert factor == pytest.approx(0.5)
    assert sorted({round(group["lr"], 12) for group in optimizer.param_groups}) == [0.05, 0.5]


def test_sgd_is_nesterov_and_without_momentum_plain() -> None:
    model = TinyModel()

    with_momentum = build_optimizer(model, name="sgd", lr=0.1, momentum=0.9)
    plain = build_optimizer(model, name="sgd", lr=0.1, momentum=0.0)
    heavy_ball = build_optimizer(model, name="sgd", lr=0.1, momentum=0.9, nesterov=False)

    assert with_momentum.defaults["nesterov"]
    assert (heavy_ball.defaults["momentum"], heavy_ball.defaults["nesterov"]) == (0.9, False)
    assert not plain.defaults["nesterov"]
    before = model.heads["verb"].weight.detach().clone()
    model.heads["verb"].weight.grad = torch.ones_like(before)
    Schedule(epochs=1, shape="constant").apply(plain, 0.0)
    plain.step()
    assert torch.allclose(model.heads["verb"].weight, before - 0.1)


def test_a_first_step_that_is_not_applied_leaves_no_momentum() -> None:
    model = TinyModel()
    optimizer = build_optimizer(model, name="sgd", lr=0.1, momentum=0.9)
    Schedule(epochs=1, shape="constant").apply(optimizer, 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    weight = model.heads["verb"].weight
    before = weight.detach().clone()
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        for gradient in (torch.nan, 1.0):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update(1.0)
    finally:
        torch.use_deterministic_algorithms(False)

    # Nesterov's first step on a gradient of 1: 0.1 (1 + 0.9).
    assert torch.allclose(weight, before - 0.19)
