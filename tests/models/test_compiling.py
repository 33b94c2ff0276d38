"""Compiled networks: one graph for every backbone, the same numbers, a line where it is not so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from cdb_video.errors import ConfigError
from cdb_video.models import compiling
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.base import GlobalMean
from cdb_video.models.compiling import CompiledModule
from cdb_video.models.recognizer import Recognizer

SMALL = ("slowfast_tiny",)
# Tracing takes seconds for these.
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES if name not in SMALL]


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_every_backbone_is_one_graph(name: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    with torch.device("meta"):
        net = BACKBONES[name](num_frames=16, crop_size=64)
        model = Recognizer(net, num_classes={"verb": 3, "noun": 2})

    # The graph as it was traced, run as it is: breaks are counted here, and not refused.
    logits = torch.compile(model, backend="eager")(torch.zeros(2, 3, 16, 64, 64, device="meta"))

    assert logits["verb"].shape == (2, 3)
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["graph_break"].values()) == 0


def test_a_compiled_network_has_the_gradients_and_shares_the_state_of_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), GlobalMean())
    model = copy.deepcopy(plain)
    names = list(model.state_dict())
    clips = torch.randn(2, 3, 4, 16, 16)

    plain(clips).square().sum().backward()
    CompiledModule(model)(clips).square().sum().backward()

    assert list(model.state_dict()) == names
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


class Breaks(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        print("a side effect that no graph holds")
        return clips


def test_a_graph_that_breaks_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    # Dynamo would keep a print for later. (monkeypatch cannot take back what this module holds.)
    prints_break = torch._dynamo.config.patch(reorderable_logging_functions=set())

    with prints_break, pytest.raises(ConfigError) as error:
        CompiledModule(Breaks())(torch.zeros(1))

    message = str(error.value)
    assert message.startswith("train.compile=true: Breaks cannot be compiled as one graph here (")
    assert message.endswith("use train.compile=false")
    assert "\n" not in message


def test_a_compiler_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("g++ is not there\nand more")

    monkeypatch.setattr(compiling, "BACKEND", no_compiler)
    torch._dynamo.reset()

    with pytest.raises(ConfigError, match=r"as one graph here \(g\+\+ is not there\); use train"):
        CompiledModule(nn.ReLU())(torch.zeros(1))


def test_more_sizes_than_graphs_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    compiled = CompiledModule(nn.ReLU())

    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (2, 3):
            compiled(torch.zeros(size))
        with pytest.raises(ConfigError, match=r"ReLU cannot be compiled as one graph here"):
            compiled(torch.zeros(4))
