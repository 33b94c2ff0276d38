"""A checkpoint that a disk or a copy damaged is never loaded: the one before it is."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    load_model,
    load_training,
    newest_valid,
    save_checkpoint,
)
from tests.reliability.outcome import Outcome, Row

PAGE = 4096
Damage = Callable[[Path, Path, random.Random], str]
"""(checkpoint, an older one, draw) -> what was done to it."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every kind of damage in turn, to a file drawn at random."""
    draw = random.Random(seed)
    whole = {step: written(folder / "whole", step) for step in (1, 2)}
    failures: list[str] = []
    for case in range(count):
        damage = DAMAGES[case % len(DAMAGES)]
        hurt = folder / "hurt"
        shutil.copytree(folder / "whole", hurt)
        done = damage(hurt / "step-2", hurt / "step-1", draw)
        failures += [f"case {case}, {done}: {line}" for line in wrong(hurt, whole)]
        shutil.rmtree(hurt)
    return Outcome(count, tuple(failures), {"kinds": len(DAMAGES)})


def written(folder: Path, step: int) -> dict[str, Any]:
    """Save a checkpoint of random tensors and return what is in it."""
    generator = torch.Generator().manual_seed(step)
    model = {f"layer.{i}": torch.randn(3000, generator=generator) for i in range(2)}
    training = {"momentum": torch.randn(6000, generator=generator), "step": step, "lr": 0.1 / step}
    texts = {"config.yaml": f"run: {{seed: {step}}}\n", "model.json": json.dumps({"step": step})}
    save_checkpoint(folder, step, model=model, training=training, texts=texts)
    return {"model": model, "training": training}


def wrong(folder: Path, whole: dict[int, dict[str, Any]]) -> Iterator[str]:
    """A line for what is not as promised."""
    for part, load in {"model": load_model, "training": load_training}.items():
        try:
            loaded = load(folder / "step-2")
        except RunError:
            continue
        # The part that no damage reached may load; nothing else may.
        if not same(loaded, whole[2][part]):
            yield f"the {part} was loaded, and it is wrong"
    found, lines = newest_valid(folder)
    if found != folder / "step-1":
        yield f"{found and found.name} was taken for the newest whole one"
    elif not (
        same(load_model(found), whole[1]["model"])
        and same(load_training(found), whole[1]["training"])
    ):
        yield "the one before it was not loaded as it was saved"
    if len(lines) != 1 or not (folder / "damaged-step-2").exists():
        yield f"it was not set aside, or not said: {lines}"


def same(loaded: dict[str, Any], saved: dict[str, Any]) -> bool:
    return loaded.keys() == saved.keys() and all(
        torch.equal(loaded[name], value) if isinstance(value, Tensor) else loaded[name] == value
        for name, value in saved.items()
    )


def any_file(path: Path, draw: random.Random) -> Path:
    """One of the files, the tensors as often as the others together."""
    files = sorted(path.iterdir())
    tensors = [file for file in files if file.suffix == ".safetensors"]
    return draw.choice(tensors if draw.random() < 0.5 else files)


def flip_a_bit(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    content = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {file.name} flipped"


def flip_a_bit_of_the_header(path: Path, older: Path, draw: random.Random) -> str:
    """Where a name, a shape or an offset is, and not a number of a tensor."""
    file = path / draw.choice(["model.safetensors", "training.safetensors"])
    content = bytearray(file.read_bytes())
    place, bit = draw.randrange(8 + int.from_bytes(content[:8], "little")), draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of the header of {file.name} flipped"


def truncate(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    size = draw.randrange(file.stat().st_size)
    with file.open("r+b") as stream:
        stream.truncate(size)
    return f"{file.name} cut to {size} bytes"


def append(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    content = draw.randbytes(draw.randrange(1, PAGE))
    if file.suffix in (".json", ".yaml"):  # white space would be none the worse
        content += b"\0"
    file.write_bytes(file.read_bytes() + content)
    return f"{len(content)} bytes appended to {file.name}"


def zero_a_page(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    content = bytearray(file.read_bytes())
    start = draw.randrange(0, len(content), PAGE)
    size = len(content[start : start + PAGE])
    content[start : start + PAGE] = bytes(size)
    file.write_bytes(content)
    return f"{size} bytes of {file.name} zeroed from byte {start} on"


def empty(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    file.write_bytes(b"")
    return f"{file.name} emptied"


def lose(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    file.unlink()
    return f"{file.name} deleted"


def lose_the_manifest(path: Path, older: Path, draw: random.Random) -> str:
    (path / "manifest.json").unlink()
    return "the manifest deleted"


def manifest_of_another(path: Path, older: Path, draw: random.Random) -> str:
    shutil.copy(older / "manifest.json", path)
    return "the manifest of another checkpoint"


def file_of_another(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    shutil.copy(older / file.name, path)
    return f"{file.name} of another checkpoint"


def swap_files(path: Path, older: Path, draw: random.Random) -> str:
    one, other = draw.sample(sorted(path.iterdir()), 2)
    aside = one.rename(path / "aside")
    other.rename(one)
    aside.rename(other)
    return f"{one.name} and {other.name} swapped"


def add_a_file(path: Path, older: Path, draw: random.Random) -> str:
    name = draw.choice(["extra.safetensors", "model.safetensors.bak", "config.json"])
    (path / name).write_bytes(draw.randbytes(10))
    return f"{name} added"


def file_becomes_a_folder(path: Path, older: Path, draw: random.Random) -> str:
    file = any_file(path, draw)
    file.unlink()
    file.mkdir()
    return f"{file.name} is a folder"


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    flip_a_bit_of_the_header,
    truncate,
    append,
    zero_a_page,
    empty,
    lose,
    lose_the_manifest,
    manifest_of_another,
    file_of_another,
    swap_files,
    add_a_file,
    file_becomes_a_folder,
)

ROW = Row(
    "corruption",
    "A damaged checkpoint is never loaded; the one before it is, and that is said.",
    measure,
    quick=700,
    full=10_000,
)
