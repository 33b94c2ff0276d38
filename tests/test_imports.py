"""Who may import whom, what an import may load, and calls that the package must not make."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cdb_video"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tools").rglob("*.py"))]

BASE = {"counts", "distributed", "errors", "files", "precision", "progress"}
LEAVES = {"datasets", "clips", "models", "losses"}
# Room -> the rooms that it may import. A room is a folder or a file of the package.
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set() for room in BASE},
    "distributed": {"errors"},
    "files": {"errors"},
    "config": set(),
    "config_file": {"config", "errors"},
    "config_reference": {"config"},
    "command_line": {"errors"},
    "datasets": BASE,
    "clips": BASE | {"datasets"},
    "models": BASE | {"datasets"},
    # Usable with torch alone.
    "losses": {"counts"},
    "prepare": BASE | LEAVES,
    "evaluation": BASE | LEAVES,
    "training": BASE | LEAVES | {"evaluation"},
    "build_clips": BASE | LEAVES | {"config"},
    "build_data": BASE | LEAVES | {"config", "evaluation", "build_clips"},
    "build_losses": BASE | LEAVES | {"config", "evaluation", "training"},
    "build_weights": BASE | LEAVES | {"config"},
    "build": BASE
    | LEAVES
    | {"config", "config_file", "evaluation", "prepare", "training"}
    | {"build_clips", "build_data", "build_evaluation", "build_losses", "build_weights"},
    "build_evaluation": BASE
    | LEAVES
    | {"config", "evaluation", "training", "build_clips", "build_data"},
    "experiments": BASE
    | LEAVES
    | {"config", "config_file", "evaluation", "prepare", "training", "build"}
    | {"build_clips", "build_data", "build_evaluation", "build_weights"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The rooms of the package that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("cdb_video.")}


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import cdb_video.losses.cdb
from cdb_video import distributed
def late():
    from cdb_video.clips.batch import Batch
"""
    assert imported_rooms(source) == {"losses", "distributed", "clips"}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path != PACKAGE / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_module_imports_only_rooms_below_its_own(path: Path) -> None:
    room = room_of(path)

    assert room in MAY_IMPORT, f"{room} is a new room: what may it import?"
    assert imported_rooms(path.read_text()) - {room} <= MAY_IMPORT[room]


def test_the_table_has_no_circle_and_keeps_the_leaves_apart() -> None:
    # Each room may import only rooms that come before it in some order.
    done: set[str] = set()
    while ready := {room for room, below in MAY_IMPORT.items() if below <= done} - done:
        done |= ready

    assert done == set(MAY_IMPORT)
    for leaf in LEAVES:
        assert not MAY_IMPORT[leaf] & (LEAVES - {"datasets"})
        assert "config" not in MAY_IMPORT[leaf]


def run(code: str) -> list[str]:
    """The words that a fresh process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


BLOCK = """
import sys
BLOCKED = {"av", "pytorchvideo", "torchvision", "matplotlib", "pydantic", "decord", "rich",
           "torchcodec", "yaml", "scipy", "sklearn", "torchmetrics", "safetensors", "PIL"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
"""


def test_the_block_blocks() -> None:
    code = "try:\n    import cdb_video.config\nexcept ImportError as error:\n    print(error)"

    assert run(BLOCK + code) == ["pydantic", "is", "blocked"]


def test_losses_and_counts_need_torch_alone() -> None:
    code = """
import torch
before = set(sys.modules)
from cdb_video.losses import CDBLoss
from cdb_video import LOSSES, CDBLoss, ClassCounts, ClassDifficulty, MultiHeadLoss, cdb_weights
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*(new - {"cdb_video", "torch"} - sys.stdlib_module_names))
"""
    assert run(BLOCK + code) == []


def test_importing_every_module_loads_no_optional_library_and_sets_nothing_up() -> None:
    code = """
import importlib, logging, pkgutil, sys, cdb_video
for module in pkgutil.walk_packages(cdb_video.__path__, "cdb_video."):
    importlib.import_module(module.name)
optional = {"pytorchvideo", "decord", "torchcodec", "matplotlib", "tensorboard", "transformers"}
optional |= {"onnx", "onnxscript", "onnxruntime"}
import torch
print(*(optional & set(sys.modules)), *logging.getLogger().handlers)
print(*["cuda"] * torch.cuda.is_initialized(), *["group"] * torch.distributed.is_initialized())
"""
    assert run(code) == []


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.utils.model_zoo.load_url",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.distributed.checkpoint.load",
}


def forbidden(source: str) -> Iterator[str]:
    """What a module does that runs code out of data, or could."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for name in [module] if module else [alias.name for alias in node.names]:
                if name.split(".")[0] in FORBIDDEN_MODULES or name.startswith("torch.hub"):
                    yield f"import {name}"
            imported = {f"{module}.{alias.name}" for alias in node.names}
            yield from imported & (FORBIDDEN_CALLS | {"torch.hub", "torch.load"})
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.hub":
            yield "torch.hub"
        if isinstance(node, ast.Call):
            yield from forbidden_call(node)


def forbidden_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    if name in FORBIDDEN_CALLS:
        yield name
    if name == "torch.load" and options.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in {"np.load", "numpy.load"} and options.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if name.endswith("Image.open") and "formats" not in options:
        yield "an image of any format"  # Pillow starts a program for some
    modes = [ast.unparse(argument) for argument in node.args[1:]]
    if name == "av.open" and modes != ["'w'"] and "container_options" not in options:
        yield "a video of any format and protocol"
    if options.get("shell", "False") != "False":
        yield "shell"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.hub",
        "from torch import hub",
        "from torch import load",
        "torch.hub.download_url_to_file(url, path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "PIL.Image.open(path)",
        "av.open(path)",
        "torch.jit.load(path)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text, Loader)",
        "from yaml import load",
        "subprocess.run(text, shell=True)",
    ],
)
def test_a_forbidden_call_is_seen(source: str) -> None:
    assert list(forbidden(source))


def test_allowed_calls_are_not_taken_for_forbidden_ones() -> None:
    source = """
model.eval()
torch.load(p, weights_only=True)
np.load(p, allow_pickle=False)
yaml.safe_load(t)
av.open(p, "w", format="mp4")
av.open(p, container_options={})
"""

    assert list(forbidden(source)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_out_of_data(path: Path) -> None:
    assert set(forbidden(path.read_text())) == set()
