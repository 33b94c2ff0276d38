"""The versions that decide about speed, right numbers and safety, and the known bad ones.

    python -m cdb_video.prepare.env

A line a version, then a line for each that is known to be bad. Exit status 0.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cdb_video.clips.untrusted import floors, is_mended

LIBRARIES = (
    "torchvision",
    "pytorchvideo",
    "numpy",
    "safetensors",
    "pyyaml",
    "pillow",
    "transformers",
    "huggingface_hub",
)
Version = tuple[int, ...]


class KnownBad(NamedTuple):
    """Versions of a part, and what is wrong with them."""

    part: str
    is_bad: Callable[[str], bool]
    what: str
    source: str


def between(first: Version, end: Version) -> Callable[[str], bool]:
    """Whether a version is from the first on, and before the end."""

    def holds(text: str) -> bool:
        found = parse(text)
        return bool(found) and first <= found < end

    return holds


def parse(text: str) -> Version:
    """The leading numbers: "2.9.0+cu130" is (2, 9, 0); () of what is no version."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


KNOWN_BAD = (
    KnownBad(
        "torch",
        between((0,), (2, 6)),
        "a weights file can run code in spite of weights_only=True; use 2.10 or newer",
        "CVE-2025-32434",
    ),
    KnownBad(
        "torch",
        between((0,), (2, 10)),
        "a weights file can corrupt memory in spite of weights_only=True; use 2.10 or newer",
        "CVE-2026-24747",
    ),
    KnownBad(
        "torch",
        between((2, 9, 0), (2, 9, 1)),
        "conv3d without cuDNN: several times slower, and more memory, in reduced precision",
        "pytorch issues 166122, 166643",
    ),
    KnownBad(
        "cuDNN",
        between((9, 8), (9, 10, 3)),
        "wrong results of conv3d on large inputs; use 9.15 or newer",
        "pytorch issue 163539",
    ),
    KnownBad(
        "cuDNN",
        between((9, 10, 2), (9, 15)),
        "wrong results of conv3d in TF32; use 9.15 or newer",
        "pytorch pull request 167024",
    ),
    KnownBad(
        "oneDNN",
        between((3, 13, 3), (3, 13, 4)),
        "bf16 on a CPU: wrong gradients of a 3x3x3 conv3d over two frames; use fp32",
        "measured with PyTorch 2.15.0 on a CPU with avx512_bf16",
    ),
    KnownBad(
        "FFmpeg of PyAV",
        lambda version: not is_mended(version),
        f"a crafted video can take the process over; needed is {floors()}: pip install -U av",
        "CVE-2026-8461",
    ),
    KnownBad(
        "FFmpeg of decord",
        lambda version: not is_mended(version),
        "a crafted video can take the process over: decoder=decord is for files that you trust",
        "CVE-2026-8461",
    ),
    KnownBad(
        "FFmpeg of torchcodec",
        lambda version: not is_mended(version),
        f"a crafted video can take the process over; needed is {floors()}, from the system",
        "CVE-2026-8461",
    ),
)


def find_versions() -> dict[str, str]:
    """Part -> version, of what is there."""
    found = {"Python": platform.python_version(), "system": platform.platform()}
    libc, number = platform.libc_ver()
    if libc:
        found[libc] = number
    found |= _of_torch()
    for name in LIBRARIES:
        found[name] = _installed(name) or "not installed"
    import av

    found["PyAV"], found["FFmpeg of PyAV"] = av.__version__, av.ffmpeg_version_info
    found |= {name: ".".join(map(str, of)) for name, of in av.library_versions.items()}
    return found | _of_decord() | _of_torchcodec()


def find_warnings(versions: Mapping[str, str]) -> list[str]:
    """A line for each known bad version."""
    return [
        f"{bad.part} {versions[bad.part]}: {bad.what} ({bad.source})"
        for bad in KNOWN_BAD
        if bad.part in versions and bad.is_bad(versions[bad.part])
    ]


def _of_torch() -> dict[str, str]:
    import torch

    found = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number:
        found["cuDNN"] = f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    # Its former name.
    match = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    if match:
        found["oneDNN"] = match[1]
    return found


def _of_decord() -> dict[str, str]:
    """Read out of its files: loading decord loads its FFmpeg, beside that of PyAV."""
    version = _installed("decord")
    if version is None:
        return {}
    files = importlib.metadata.files("decord") or ()
    libraries = [file for file in files if "libavcodec" in file.name]
    texts = [os.fspath(file.locate()) for file in libraries]
    for text in texts:
        with open(text, "rb") as content:
            match = re.search(rb"FFmpeg version ([\w.-]+)", content.read())
        if match:
            return {"decord": version, "FFmpeg of decord": match[1].decode()}
    return {"decord": version}


def _of_torchcodec() -> dict[str, str]:
    version = _installed("torchcodec")
    if version is None:
        return {}
    try:
        from torchcodec._core import get_ffmpeg_library_versions

        ffmpeg = str(get_ffmpeg_library_versions()["ffmpeg_version"])
    except Exception as error:  # without an FFmpeg, or of another version: whatever it raises
        return {"torchcodec": f"{version}, which does not load ({type(error).__name__})"}
    return {"torchcodec": version, "FFmpeg of torchcodec": ffmpeg}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print versions and warnings."""
    versions = find_versions()
    width = max(map(len, versions))
    for part, version in versions.items():
        print(f"{part:<{width}}  {version}")
    for line in find_warnings(versions):
        print(f"warning: {line}")


if __name__ == "__main__":
    main()
