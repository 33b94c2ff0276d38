"""Action recognition on long-tailed egocentric video, with the difficulty-balanced (CDB) loss.

Nothing is imported until a name is used (PEP 562): `from cdb_video import CDBLoss` needs torch
alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdb_video.build import build_model, build_trainer
    from cdb_video.clips.base import VideoDecoder
    from cdb_video.clips.decoders import open_video
    from cdb_video.clips.sampling import random_clip, segment_clip, uniform_clips
    from cdb_video.config import Config
    from cdb_video.config_file import load_config
    from cdb_video.counts import ClassCounts
    from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
    from cdb_video.datasets.readers import read_split
    from cdb_video.evaluation.evaluate import EvalReport, evaluate
    from cdb_video.evaluation.predict import predict
    from cdb_video.experiments import LoadedRun, load_run
    from cdb_video.losses import LOSSES, CDBLoss, ClassDifficulty, MultiHeadLoss, cdb_weights
    from cdb_video.models.backbones import BACKBONES
    from cdb_video.models.base import Backbone
    from cdb_video.models.recognizer import Recognizer
    from cdb_video.models.weights import load_weights
    from cdb_video.training.trainer import Trainer

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - by plain `sorted`
    "BACKBONES",
    "Backbone",
    "CDBLoss",
    "ClassCounts",
    "ClassDifficulty",
    "Config",
    "EvalReport",
    "LOSSES",
    "LoadedRun",
    "MultiHeadLoss",
    "Recognizer",
    "Split",
    "Trainer",
    "VideoDecoder",
    "VideoRecord",
    "Vocabulary",
    "__version__",
    "build_model",
    "build_trainer",
    "cdb_weights",
    "evaluate",
    "load_config",
    "load_run",
    "load_weights",
    "open_video",
    "predict",
    "random_clip",
    "read_split",
    "segment_clip",
    "uniform_clips",
]

_NAMES = {
    "build": ("build_model", "build_trainer"),
    "clips.base": ("VideoDecoder",),
    "clips.decoders": ("open_video",),
    "clips.sampling": ("random_clip", "segment_clip", "uniform_clips"),
    "config": ("Config",),
    "config_file": ("load_config",),
    "counts": ("ClassCounts",),
    "datasets.annotations": ("Split", "VideoRecord", "Vocabulary"),
    "datasets.readers": ("read_split",),
    "evaluation.evaluate": ("EvalReport", "evaluate"),
    "evaluation.predict": ("predict",),
    "experiments": ("LoadedRun", "load_run"),
    "losses": ("CDBLoss", "ClassDifficulty", "LOSSES", "MultiHeadLoss", "cdb_weights"),
    "models.backbones": ("BACKBONES",),
    "models.base": ("Backbone",),
    "models.recognizer": ("Recognizer",),
    "models.weights": ("load_weights",),
    "training.trainer": ("Trainer",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # AttributeError also lets `from cdb_video import config` go on to the sub-module.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
