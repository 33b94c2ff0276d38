"""What every loss of the shelf has to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cdb_video.losses import LOSSES, PER_SAMPLE_BASES
from tests.host_sync import NoHostSync
from tests.losses.shelf import COUNTS, FORMS, K, batch, close, made, seeded

every_form = pytest.mark.parametrize("name", FORMS)


def test_the_shelf_has_these_losses() -> None:
    bases = (
        "cross_entropy",
        "weighted",
        "focal",
        "class_balanced",
        "ldam",
        "balanced_softmax",
        "logit_adjusted",
        "equalization",
        "seesaw",
        "recall",
    )

    assert bases == PER_SAMPLE_BASES
    assert tuple(LOSSES) == (*bases, "cdb")


@every_form
@pytest.mark.parametrize("label", [-1, K])
def test_a_label_that_is_no_class_is_refused_by_place_and_value(name: str, label: int) -> None:
    logits, target = batch()
    target[2] = label

    with pytest.raises(ValueError, match=rf"target\[2\] must be in \[0, {K}\) or -7, got {label}"):
        made(name, ignore_index=-7)(logits, target)


# --- reduction and ignored targets -----------------------------------------------------------


@every_form
def test_the_mean_is_over_labelled_samples(name: str) -> None:
    logits, target = batch()
    target[[0, 5, 6]] = -1

    each, total, mean = (
        seeded(made(name, reduction=reduction, ignore_index=-1), logits, target)
        for reduction in ("none", "sum", "mean")
    )

    assert each.shape == (12,)
    assert total.shape == mean.shape == ()
    assert (each[[0, 5, 6]] == 0).all()
    assert (each >= 0).all()
    assert each.any()
    close(total, each.sum(), 1e-5)
    close(mean, each.sum() / 9)


@every_form
def test_an_ignored_sample_changes_nothing(name: str) -> None:
    logits, target = batch()
    target[3] = -1
    labelled = target != -1
    criterion = made(name, ignore_index=-1).eval()
    logits.requires_grad_()

    loss = criterion(logits, target)
    loss.backward()

    assert logits.grad is not None
    assert (logits.grad[3] == 0).all()
    assert (logits.grad[labelled] != 0).any(1).all()
    close(loss, criterion(logits[labelled], target[labelled]))


@every_form
def test_a_batch_of_one_class_keeps_its_weight(name: str) -> None:
    logits, _ = batch(3)
    target = torch.full((3,), 2)
    criterion, each = made(name).eval(), made(name, reduction="none").eval()

    close(criterion(logits, target), each(logits, target).mean())


# --- symmetry --------------------------------------------------------------------------------


@every_form
def test_the_order_of_classes_does_not_matter(name: str) -> None:
    logits, target = batch()
    order = torch.tensor([2, 0, 3, 1])
    criterion, permuted = made(name), made(name, class_counts=COUNTS[order])
    if name == "equalization":  # its coins are in the order of classes
        criterion, permuted = criterion.eval(), permuted.eval()

    close(permuted(logits[:, order], order.argsort()[target]), criterion(logits, target))


@every_form
def test_adding_the_same_to_all_logits_of_a_clip_does_not_matter(name: str) -> None:
    logits, target = batch(dtype=torch.float64)
    shift = torch.linspace(-3, 3, 12)[:, None]

    close(
        seeded(made(name), logits + shift, target),
        seeded(made(name), logits, target),
        tolerance=1e-5,
    )


@every_form
def test_no_loss_rewards_a_lower_logit_of_the_own_class(name: str) -> None:
    logits, target = batch()
    logits.requires_grad_()

    made(name)(logits, target).backward()

    assert logits.grad is not None
    own = logits.grad.gather(1, target[:, None])
    assert (own <= 0).all()
    assert own.any()


# --- numbers ---------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_a_finite_loss_and_gradient(name: str, dtype: torch.dtype) -> None:
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, -1, -1], [-1, 1, 1, 1], [-1, -1, -1, 1]])
    logits = (1e4 * signs.repeat(1, 4).view(16, 1, 4)).flatten(0, 1).to(dtype).requires_grad_()
    target = torch.arange(16) % 4

    loss = made(name, reduction="none")(logits, target)
    loss.sum().backward()

    assert logits.grad is not None
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    logits, target = batch(dtype=dtype)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = seeded(made(name), logits, target)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, seeded(made(name), logits.float(), target))


@every_form
def test_double_logits_give_a_double_loss(name: str) -> None:
    logits, target = batch(dtype=torch.float64)

    for reduction in ("mean", "none"):
        criterion = made(name, reduction=reduction).eval()

        loss, narrow = criterion(logits, target), criterion(logits.float(), target)

        assert loss.dtype == torch.float64
        # Not the fp32 loss in a wider type.
        assert not torch.equal(loss, narrow.double())
        close(loss, narrow, 1e-4)


# --- state -----------------------------------------------------------------------------------


@every_form
def test_a_loaded_state_continues_the_same(name: str) -> None:
    first = made(name)
    second = made(name, class_counts=COUNTS.flip(0))
    logits, target = batch()
    first(logits, target)

    second.load_state_dict(first.state_dict())

    assert torch.equal(seeded(second, logits, target), seeded(first, logits, target))


@every_form
def test_everything_it_remembers_moves_with_the_module(name: str) -> None:
    criterion = made(name)
    tensors = [value for module in criterion.modules() for value in vars(module).values()]

    assert not any(isinstance(value, Tensor) for value in tensors)
    assert not list(criterion.parameters())
    assert {buffer.device.type for buffer in criterion.to("meta").buffers()} <= {"meta"}
    assert set(criterion.state_dict()) == {key for key, _ in criterion.named_buffers()}


@every_form
def test_eval_mode_counts_nothing(name: str) -> None:
    criterion = made(name).eval()
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    random_state = torch.get_rng_state()

    criterion(*batch())

    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in criterion.state_dict().items():
        assert torch.equal(value, before[key]), key


# --- on the device ---------------------------------------------------------------------------


@every_form
def test_a_training_step_never_waits_for_the_device(name: str) -> None:
    logits, target = batch()
    target[0] = -100
    criterion = made(name)
    logits.requires_grad_()

    with NoHostSync():
        criterion(logits, target).backward()

    assert logits.grad is not None


def test_all_of_the_shelf_compiles_into_one_graph() -> None:
    names = set(FORMS) - {"weighted effective", "cdb"}  # no code of its own; `test_cdb`
    eager = nn.ModuleDict({name: made(name) for name in sorted(names)})
    compiled = nn.ModuleDict({name: made(name) for name in sorted(names)})

    def losses(shelf: nn.ModuleDict, logits: Tensor, target: Tensor) -> Tensor:
        return torch.stack([criterion(logits, target) for criterion in shelf.values()])

    step = torch.compile(losses, fullgraph=True, backend="aot_eager")
    logits, target = batch()
    target[0] = -100
    for _ in range(2):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

        torch.manual_seed(0)
        actual = step(compiled, ours, target)
        torch.manual_seed(0)
        expected = losses(eager, theirs, target)
        actual.sum().backward()
        expected.sum().backward()

        close(actual, expected)
        assert ours.grad is not None
        assert theirs.grad is not None
        close(ours.grad, theirs.grad)
    for key, value in compiled.state_dict().items():
        assert torch.equal(value, eager.state_dict()[key]), key
