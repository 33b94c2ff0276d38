"""What a clip costs a foundation model: parameters, GFLOPs, CPU seconds and memory, measured here.

    OMP_NUM_THREADS=1 python -m tools.benchmarks.clip_costs
    OMP_NUM_THREADS=1 python -m tools.benchmarks.clip_costs vjepa2-l-16x256

The published architectures with random weights, one clip in fp32, each in a process of its own. The
seconds are of one thread and of the processor, so other work on the machine counts little.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cdb_video.models.from_transformers import build
from cdb_video.models.hub_families import FAMILIES
from cdb_video.models.hub_files import transformers

# name -> family, sizes of its config beside the library's defaults, frames, pixels.
MODELS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "videomae-s-16x224": (
        "videomae",
        {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        16,
        224,
    ),
    "videomae-b-16x224": ("videomae", {}, 16, 224),
    "videomae-l-16x224": (
        "videomae",
        {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
        16,
        224,
    ),
    "timesformer-b-8x224": ("timesformer", {}, 8, 224),
    "vivit-b-32x224": ("vivit", {}, 32, 224),
    "vjepa2-l-16x256": ("vjepa2", {}, 16, 256),
    "vjepa2-l-64x256": ("vjepa2", {}, 64, 256),
}
COLUMNS = (
    "model, frames x crop",
    "parameters (M)",
    "tokens",
    "GFLOPs",
    "forward (s)",
    "with backward (s)",
    "forward (GB)",
    "with backward (GB)",
)
WITHOUT_TRAINING = {"vjepa2-l-64x256"}
"""Whose activations are more than a small machine holds."""


def main() -> None:
    """A line a model, as Markdown."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in sys.argv[1:] or MODELS:
        command = [sys.executable, "-m", "tools.benchmarks.clip_costs", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        found = json.loads(done.stdout.splitlines()[-1])
        cells = (f"{v:.1f}" if isinstance(v, float) else str(v) for v in found.values())
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def measure(name: str) -> dict[str, Any]:
    """The figures of one model; memory is the process's at its highest, weights included."""
    kind, sizes, num_frames, crop_size = MODELS[name]
    config = getattr(transformers(), FAMILIES[kind].model).config_class(**sizes).to_dict()
    pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "value_range": 1.0}
    torch.manual_seed(0)
    made = partial(
        build,
        name,
        {"config": config, "normalization": pixels},
        num_frames=num_frames,
        crop_size=crop_size,
    )
    backbone = made()
    clip = torch.randn(1, 3, num_frames, crop_size, crop_size)
    backbone.eval()
    with torch.inference_mode():
        tokens = backbone.tokens(clip).shape[1]
        forward = best(lambda: backbone(clip))
        memory = peak()
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in backbone.parameters()) / 1e6,
        "tokens": tokens,
        "gflops": count_gflops(made, clip.shape),
        "forward": forward,
        "step": "-",
        "memory": memory,
        "step_memory": "-",
    }
    if name not in WITHOUT_TRAINING:
        backbone.train()
        found["step"] = best(lambda: backbone(clip).sum().backward())
        found["step_memory"] = peak()
    return found


def count_gflops(made: Callable[[], Any], shape: torch.Size) -> float:
    """Of a forward, a multiplication and an addition as one; nothing is computed."""
    with torch.device("meta"), torch.inference_mode():
        backbone = made().eval()
        # What attention costs is only seen where it is written out.
        backbone.net.config._attn_implementation = "eager"
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(shape))
    flops: int = counter.get_total_flops()
    return flops / 2e9


def best(call: Callable[[], object], times: int = 2) -> float:
    """The fewest processor seconds of a few calls."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return min(seconds)


def peak() -> float:
    """GB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
