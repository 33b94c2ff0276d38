"""`from cdb_video import ...`: what is there, that type checkers see it, and what it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cdb_video

ROOT = Path(__file__).parent.parent
CONSTANTS = {"BACKBONES", "LOSSES", "__version__"}


def run(code: str) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert cdb_video.__all__ == [
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
    assert cdb_video.__all__ == sorted(cdb_video.__all__)


@pytest.mark.parametrize("name", sorted(set(cdb_video.__all__) - CONSTANTS))
def test_a_public_name_is_documented_and_keeps_its_name(name: str) -> None:
    value = getattr(cdb_video, name)

    assert value.__name__ == name
    assert value.__module__.startswith("cdb_video.")
    assert not inspect.ismodule(value)
    assert inspect.getdoc(value)


def test_type_checkers_are_told_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(cdb_video.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert sorted({*told, "__version__"}) == cdb_video.__all__
    for name, module in told.items():
        assert module is not None
        assert getattr(importlib.import_module(module), name) is getattr(cdb_video, name)


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert cdb_video.__version__ == project["version"]


def test_an_unknown_name_is_an_attribute_error_and_a_module_is_found() -> None:
    with pytest.raises(AttributeError, match="'cdb_video' has no attribute 'CBDLoss'"):
        _ = cdb_video.CBDLoss

    # In a fresh process, where nothing has imported the sub-module before.
    assert run("from cdb_video import errors; print(errors.__name__)") == "cdb_video.errors\n"


def test_dir_lists_the_public_names_before_any_is_used() -> None:
    assert run("import cdb_video; print(set(cdb_video.__all__) <= set(dir(cdb_video)))") == "True\n"


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = "import cdb_video, sys; print(*(m for m in sys.modules if m.startswith('cdb_video.')))"

    assert run(code).split() == []
