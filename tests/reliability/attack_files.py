"""Hostile files: pickles, YAML, archives and videos that swell."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml

from cdb_video.clips.decoders import open_video
from cdb_video.config_file import load_config
from cdb_video.datasets.image_files import read_pixels
from cdb_video.evaluation.features import load_features
from cdb_video.evaluation.predictions import load_predictions
from cdb_video.models.weights import read_state
from tests.reliability.attacks import Attack, Place

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
BOMB_SIDE = 7_000
SWOLLEN_BYTES = 2**28 + 2**24


class Payload:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.canary}",))


def pickles() -> Iterator[Attack]:
    """Weights that run something when a plain unpickler reads them."""

    def saved(place: Place, name: str, content: Callable[[Payload], Any], **options: Any) -> Path:
        path = place.root / name
        torch.save(content(Payload(place.canary)), path, **options)
        return path

    def bare(place: Place, name: str) -> Path:
        path = place.root / name
        path.write_bytes(pickle.dumps({"model": Payload(place.canary)}))
        return path

    def by_torch(path: Path, place: Place) -> object:
        return torch.load(path, weights_only=False)

    def by_pickle(path: Path, place: Place) -> object:
        return pickle.loads(path.read_bytes())

    def in_trusting_environment(path: Path, place: Place) -> object:
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        return read_state(path)

    def by_default(path: Path, place: Place) -> object:
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns a careless reader, and obeys
            return torch.load(path)

    def read(path: Path, place: Place) -> object:
        return read_state(path)

    def make(name: str, content: Callable[[Payload], Any], **options: Any) -> Any:
        return partial(saved, name=name, content=content, **options)

    tensors = OrderedDict(weight=torch.zeros(4))
    old = {"_use_new_zipfile_serialization": False}
    yield Attack("pickle", "alone", make("a.pth", lambda p: p), read, by_torch)
    yield Attack(
        "pickle", "beside weights", make("a.pyth", lambda p: {**tensors, "p": p}), read, by_torch
    )
    yield Attack(
        "pickle", "in model_state", make("b.pyth", lambda p: {"model_state": p}), read, by_torch
    )
    yield Attack("pickle", "old format", make("b.pth", lambda p: {"p": p}, **old), read, by_torch)
    yield Attack("pickle", "as safetensors", partial(bare, name="a.safetensors"), read, by_pickle)
    yield Attack(
        "pickle",
        "environment variable",
        make("c.pth", lambda p: {"p": p}),
        in_trusting_environment,
        by_default,
    )


def cifar_batches() -> Iterator[Attack]:
    """Files of a data set that is published as pickles."""

    def made(place: Place, content: bytes) -> Path:
        path = place.root / "test_batch"
        path.write_bytes(content)
        return path

    def payload(place: Place) -> Path:
        return made(place, pickle.dumps({"data": Payload(place.canary)}, protocol=2))

    def read(path: Path, place: Place) -> object:
        return read_pixels(path).shape

    def careless(path: Path, place: Place) -> object:
        return len(pickle.loads(path.read_bytes(), encoding="latin1"))

    # LONG_BINPUT: a place in the memo, up to which Python makes room.
    memo = b"\x80\x02}r" + (20_000_000).to_bytes(4, "little") + b"."
    # A key of 300,000 tuples, each within the next: Python's hash of it ends the process.
    tuples = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    # One text of 4 MB, encoded a hundred times.
    text = b"X" + (4_000_000).to_bytes(4, "little") + b"a" * 4_000_000 + b"q\x00"
    call = b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R"
    swelling = b"\x80\x02" + text + b"c_codecs\nencode\nq\x01](" + call * 100 + b"e."
    yield Attack("pickle", "as a batch of CIFAR", payload, read, careless)
    for name, content in (
        ("a memo without end", memo),
        ("a key of tuples in tuples", tuples),
        ("one text a hundred times", swelling),
    ):
        make = partial(made, content=content)
        yield Attack("pickle", f"{name}, as a batch of CIFAR", make, read, careless)


def yamls() -> Iterator[Attack]:
    """Configurations."""

    def written(place: Place, text: str) -> Path:
        path = place.root / "config.yaml"
        path.write_text(text.replace("CANARY", str(place.canary)))
        return path

    def read(path: Path, place: Place) -> object:
        return load_config(path)

    def override(path: Path, place: Place) -> object:
        # The value, as a command line gives it.
        return load_config(DEMO, [f"run.name={path.read_text()}"])

    def careless(path: Path, place: Place) -> object:
        return yaml.unsafe_load(path.read_text())

    def unfold(path: Path, place: Place) -> object:
        return len(json.dumps(yaml.safe_load(path.read_text())))

    # 9^7 words of 100 letters.
    rows = [f"r{i}: &r{i} [{', '.join([f'*r{i - 1}'] * 9)}]" for i in range(1, 8)]
    bomb = "\n".join([f"r0: &r0 {'x' * 100}", *rows])
    run = "!!python/object/apply:os.system ['touch CANARY']"
    new = "!!python/object/apply:builtins.exec [\"open('CANARY', 'w')\"]"
    yield Attack("YAML", "apply", partial(written, text=f"run:\n  name: {run}\n"), read, careless)
    yield Attack("YAML", "exec", partial(written, text=f"data: {new}\n"), read, careless)
    yield Attack("YAML", "override", partial(written, text=run), override, careless)
    yield Attack("YAML", "aliases", partial(written, text=bomb), read, unfold)


def archives() -> Iterator[Attack]:
    """Arrays and weights that run something or swell."""

    def objects(place: Place) -> Path:
        path = place.root / "a.npz"
        payload = np.array([Payload(place.canary)], dtype=object)
        np.savez(path, ids=payload, scores_verb=payload, labels_verb=payload)
        return path

    def compressed(place: Place) -> Path:
        path = place.root / "bomb.npz"
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (SWOLLEN_BYTES,)}
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            write_zeros(archive, "ids.npy", SWOLLEN_BYTES, first=header.getvalue())
        return path

    def claims(place: Place) -> Path:
        path = place.root / "claims.npz"
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
        )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ids.npy", header.getvalue() + bytes(64))
        return path

    def view(place: Place) -> Path:
        path = place.root / "view.pth"
        torch.save({"backbone.weight": torch.zeros(1).expand(2**20, 2**12)}, path)
        return path

    def swollen_weights(place: Place) -> Path:
        """A file of torch's, whose tensor is stored compressed, and is larger than it was."""
        plain, path = place.root / "plain.pth", place.root / "swollen.pth"
        torch.save({"weight": torch.zeros(2**20)}, plain)
        size = struct.pack("<i", SWOLLEN_BYTES // 4)
        with (
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for entry in source.infolist():
                if entry.filename.endswith("data/0"):
                    write_zeros(archive, entry.filename, SWOLLEN_BYTES)
                else:  # J: a pickled int of 4 bytes
                    content = source.read(entry).replace(b"J\x00\x00\x10\x00", b"J" + size)
                    archive.writestr(entry.filename, content)
        plain.unlink()
        return path

    def all_arrays(path: Path, place: Place) -> object:
        with np.load(path, allow_pickle=True) as file:
            return {name: file[name] for name in file.files}

    def copies(path: Path, place: Place) -> object:
        return {name: value.clone() + 1 for name, value in torch.load(path).items()}

    def predictions(path: Path, place: Place) -> object:
        return load_predictions(path)

    def features(path: Path, place: Place) -> object:
        return load_features(path)

    def weights(path: Path, place: Place) -> object:
        return {name: value.clone() for name, value in read_state(path).items()}

    yield Attack("archive", "objects as predictions", objects, predictions, all_arrays)
    yield Attack("archive", "objects as features", objects, features, all_arrays)
    yield Attack("archive", "compressed predictions", compressed, predictions, all_arrays)
    yield Attack("archive", "an array that claims terabytes", claims, predictions, all_arrays)
    yield Attack("archive", "compressed weights", swollen_weights, weights, copies)
    yield Attack("archive", "a view as weights", view, weights, copies)


def write_zeros(archive: zipfile.ZipFile, name: str, size: int, *, first: bytes = b"") -> None:
    """An entry of so many zeros, a few of which are ever in memory."""
    with archive.open(name, "w", force_zip64=True) as content:
        content.write(first)
        for _ in range(size // 2**24):
            content.write(bytes(2**24))


def bombs() -> Iterator[Attack]:
    """Small files of enormous frames."""

    def encoded(place: Place) -> Path:
        path = place.root / "large.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width = stream.height = BOMB_SIDE
            stream.pix_fmt = "yuvj420p"
            frame = av.VideoFrame(BOMB_SIDE, BOMB_SIDE, "yuvj420p")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    def lying(place: Place) -> Path:
        encoder = av.CodecContext.create("mjpeg", "w")
        encoder.width = encoder.height = BOMB_SIDE
        encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
        frame = av.VideoFrame(BOMB_SIDE, BOMB_SIDE, "yuvj420p")
        frame.pts = 0
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        path = place.root / "lying.mov"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p"
            container.start_encoding()
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
        return path

    def picture(place: Place) -> Path:
        """A PNG of black pixels, in a folder of frames; written here, as an encoder would swell."""
        folder = place.root / "frames"
        folder.mkdir()
        side = BOMB_SIDE
        rows = zlib.compressobj(1)
        body = b"".join(rows.compress(bytes(1 + 3 * side)) for _ in range(side)) + rows.flush()
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
        (folder / "0.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(data))
                + kind
                + data
                + struct.pack(">I", zlib.crc32(kind + data))
                for kind, data in chunks
            )
        )
        return folder

    def gif(place: Place) -> Path:
        path = place.root / "large.gif"
        screen = struct.pack("<HHBBB", BOMB_SIDE, BOMB_SIDE, 0x80, 0, 0) + bytes(6)
        image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
        path.write_bytes(b"GIF89a" + screen + image * 3 + b"\x3b")
        return path

    def frame_of(path: Path, place: Place, **options: Any) -> object:
        folder: dict[str, Any] = {"decoder": "frames", "fps": 5} if path.is_dir() else {}
        with open_video(path, **folder, **options) as video:
            return video.frames(torch.tensor([0])).shape

    def package(path: Path, place: Place) -> object:
        return frame_of(path, place, untrusted=True)

    for name, make in (
        ("header", encoded),
        ("behind a small header", lying),
        ("picture in a folder of frames", picture),
        ("animation", gif),
    ):
        yield Attack("bomb", name, make, package, frame_of)
