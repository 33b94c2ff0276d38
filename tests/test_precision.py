"""Which number format a forward pass runs in."""

import pytest
import torch

from cdb_video.precision import autocast, choose_precision

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu():
    assert choose_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken_as_it_is(name):
    assert choose_precision(name, CPU) == name


@pytest.mark.gpu
def test_auto_is_bf16_on_a_gpu_since_ampere():
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)

    assert choose_precision("auto", torch.device("cuda")) == ("bf16" if has_bf16 else "fp32")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_inside_have_the_precision_and_outside_fp32(precision, dtype):
    matrix = torch.ones(2, 2)
    context = autocast(CPU, precision)

    # The same context is entered for every micro batch.
    for _ in range(2):
        with context:
            inside = matrix @ matrix
        assert inside.dtype == dtype
        assert (matrix @ matrix).dtype == torch.float32


def test_fp32_leaves_an_outer_context_alone():
    matrix = torch.ones(2, 2)

    with autocast(CPU, "bf16"), autocast(CPU, "fp32"):
        assert (matrix @ matrix).dtype == torch.bfloat16
