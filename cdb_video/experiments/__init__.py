"""Runs as a whole: open one, load what it learned, score it, compare many."""

from cdb_video.experiments.runs import (
    MAY_DIFFER_ON_RESUME,
    LoadedRun,
    find_checkpoint,
    load_run,
    load_selected,
    open_run,
    read_classes,
    refuse_different_checkpoints,
    score,
)

__all__ = [
    "MAY_DIFFER_ON_RESUME",
    "LoadedRun",
    "find_checkpoint",
    "load_run",
    "load_selected",
    "open_run",
    "read_classes",
    "refuse_different_checkpoints",
    "score",
]
