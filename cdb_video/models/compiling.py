"""A network as one compiled graph, or a line that says why it is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdb_video.errors import ConfigError

BACKEND = "inductor"
"""Of `torch.compile`."""


class CompiledModule(nn.Module):
    """A module whose forward and backward passes run as one graph; it shares its parameters.

    The module itself stays as it is, so that its state, its evaluation and its export do not depend
    on how it is trained. Every batch size has a graph of its own, compiled when it is first seen.

    Raises:
        ConfigError: at the first call, where the graph breaks or the machine cannot compile.

    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._run = torch.compile(module, fullgraph=True, dynamic=False, backend=BACKEND)

    def forward(self, *inputs: Any) -> Any:
        """What the module gives."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return self._run(*inputs)
        except (FailOnRecompileLimitHit, TorchDynamoException) as error:
            # A compiler's own words stand in what it raised.
            cause = getattr(error, "inner_exception", error)
            why = str(cause).strip().partition("\n")[0]
            raise ConfigError(
                f"train.compile=true: {type(self.module).__name__} cannot be compiled as one "
                f"graph here ({why}); use train.compile=false"
            ) from error
