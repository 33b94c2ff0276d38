"""Features files whose classes are easy to tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cdb_video.evaluation.features import Features, save_features
from cdb_video.evaluation.predictions import HeadClasses

NAMES = {"verb": ("close", "open"), "noun": ("bowl", "cup", "pot")}


def made_with(weights: str, **clip: int) -> str:
    """A `source` as tools/evaluate.py --features writes it."""
    return json.dumps({"weights": weights, "clip": {"num_frames": 16, "stride": 2, **clip}})


def make_features(
    count: int, *, views: int = 1, width: int = 6, seed: int = 0, source: str = ""
) -> Features:
    """(count, views, width): a verb's direction and a noun's, with noise."""
    generator = torch.Generator().manual_seed(seed)
    verb, noun = torch.arange(count) % 2, torch.arange(count) % 3
    features = 0.3 * torch.randn(count, views, width, generator=generator)
    features[torch.arange(count), :, verb] += 1
    features[torch.arange(count), :, 2 + noun] += 1
    return Features(
        ids=tuple(f"s{seed}-{i}" for i in range(count)),
        features=features,
        labels={"verb": verb, "noun": noun},
        recordings=tuple(f"s{seed}-r{i // 3}" for i in range(count)),
        metadata={"participant": tuple(f"P{i % 2}" for i in range(count))},
        source=source,
    )


def save_data_set(folder: Path, *, views: int = 1, width: int = 6, source: str = "") -> Path:
    """train.npz, val.npz and test.npz, of 24, 9 and 12 clips."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": 24, "val": 9, "test": 12}.items()):
        found = make_features(count, views=views, width=width, seed=seed, source=source)
        classes = {
            head: HeadClasses(names, torch.bincount(found.labels[head], minlength=len(names)))
            for head, names in NAMES.items()
        }
        save_features(folder / f"{split}.npz", found, classes, half=True)
    return folder
