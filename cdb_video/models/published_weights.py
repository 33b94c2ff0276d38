"""Where published weights are, and how they come onto this machine."""

from __future__ import annotations

import hashlib
import re
import urllib.request
import uuid
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from cdb_video.errors import WeightsError
from cdb_video.models.images import imagenet1k_weights
from cdb_video.progress import Progress

MAX_WEIGHTS_BYTES = 2**35
"""Of a file that can be weights: 8 billion parameters in fp32."""


class KnownWeights(NamedTuple):
    """One published file."""

    url: str
    top1: float | None
    """Published top-1 on its own data set, in per cent; None where that is not the figure."""
    megabytes: float
    """torchvision: the file's. pytorchvideo: 4 bytes a parameter; the file may hold more."""
    licence: str
    """Of the repository that publishes it; the terms of the data it was trained on also apply."""

    @property
    def sha256(self) -> str | None:
        """The hexadecimal digits of its SHA-256 that are published: torchvision's file names."""
        return _sha256_in_name(self.url)


_PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo"
_TORCHVISION = "https://download.pytorch.org/models"


def _zoo(file: str, top1: float | None, megabytes: float) -> KnownWeights:
    return KnownWeights(f"{_PYTORCHVIDEO}/{file}", top1, megabytes, "Apache-2.0")


def _tv(file: str, top1: float, megabytes: float) -> KnownWeights:
    return KnownWeights(f"{_TORCHVISION}/{file}", top1, megabytes, "BSD-3-Clause")


# Figures: pytorchvideo's model zoo page and torchvision 0.29's weight enums.
KNOWN_WEIGHTS: dict[str, dict[str, KnownWeights]] = {
    "slowfast_r50": {
        "kinetics400": _zoo("kinetics/SLOWFAST_8x8_R50.pyth", 76.94, 138),
        "ssv2": _zoo("ssv2/SLOWFAST_8x8_R50.pyth", 61.68, 136),
        "charades": _zoo("charades/SLOWFAST_8x8_R50.pyth", None, 136),
    },
    "slowfast_r101": {"kinetics400": _zoo("kinetics/SLOWFAST_8x8_R101.pyth", 77.90, 251)},
    "slow_r50": {
        "kinetics400": _zoo("kinetics/SLOW_8x8_R50.pyth", 74.58, 130),
        "ssv2": _zoo("ssv2/SLOW_8x8_R50.pyth", 60.04, 128),
        "charades": _zoo("charades/SLOW_8x8_R50.pyth", None, 128),
    },
    "c2d_r50": {"kinetics400": _zoo("kinetics/C2D_8x8_R50.pyth", 71.46, 97)},
    "i3d_r50": {"kinetics400": _zoo("kinetics/I3D_8x8_R50.pyth", 73.27, 112)},
    "r2plus1d_r50": {"kinetics400": _zoo("kinetics/R2PLUS1D_16x4_R50.pyth", 76.01, 112)},
    "csn_r101": {"kinetics400": _zoo("kinetics/CSN_32x2_R101.pyth", 77.00, 89)},
    "x3d_xs": {"kinetics400": _zoo("kinetics/X3D_XS.pyth", 69.12, 15)},
    "x3d_s": {"kinetics400": _zoo("kinetics/X3D_S.pyth", 73.33, 15)},
    "x3d_m": {"kinetics400": _zoo("kinetics/X3D_M.pyth", 75.94, 15)},
    "x3d_l": {"kinetics400": _zoo("kinetics/X3D_L.pyth", 77.44, 25)},
    "mvit_b": {
        "kinetics400": _zoo("kinetics/MVIT_B_16x4.pyth", 78.85, 146),
        "kinetics400_32x3": _zoo("kinetics/MVIT_B_32x3_f294077834.pyth", 80.30, 146),
    },
    "r3d_18": {"kinetics400": _tv("r3d_18-b3b3357e.pth", 63.2, 127.4)},
    "mc3_18": {"kinetics400": _tv("mc3_18-a90a0ba3.pth", 63.96, 44.7)},
    "r2plus1d_18": {"kinetics400": _tv("r2plus1d_18-91a641e6.pth", 67.46, 120.3)},
    "s3d": {"kinetics400": _tv("s3d-d76dad2f.pth", 68.37, 32.0)},
    "mvit_v2_s": {"kinetics400": _tv("mvit_v2_s-ae3be167.pth", 80.76, 131.9)},
    "swin3d_t": {"kinetics400": _tv("swin3d_t-7615ae03.pth", 77.72, 121.5)},
    "swin3d_s": {"kinetics400": _tv("swin3d_s-da41c237.pth", 79.52, 218.3)},
    "swin3d_b": {
        "kinetics400": _tv("swin3d_b_1k-24f7c7c6.pth", 79.43, 364.1),
        "kinetics400_imagenet22k": _tv("swin3d_b_22k-7c6ae6fa.pth", 81.64, 364.1),
    },
}
"""Backbone -> name -> file; those of torchvision's image networks: `known_weights`."""


def known_weights(backbone: str) -> dict[str, KnownWeights]:
    """Name -> file, of a backbone; empty where there is no published file at a plain address."""
    weights = imagenet1k_weights(backbone)
    if weights is None:
        return KNOWN_WEIGHTS.get(backbone, {})
    file, top1 = weights.url.rpartition("/")[2], weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return {"imagenet1k": _tv(file, top1, weights.meta["_file_size"])}


def resolve_weights(name_or_path: str, *, backbone: str, cache_dir: Path) -> Path:
    """The file of a path, an http(s) URL or a known name such as "kinetics400".

    A URL is downloaded once into `cache_dir`. Its checksum is verified where one is known: from
    `URL#sha256=DIGITS` (a prefix will do) or a name such as torchvision's `r3d_18-b3b3357e.pth`.

    Raises:
        WeightsError: neither a file nor a name known for this backbone; or the download fails or
            has another checksum.
    """
    known = known_weights(backbone)
    if name_or_path in known:
        return _cached(known[name_or_path].url, cache_dir)
    if "://" in name_or_path:
        return _cached(name_or_path, cache_dir)
    if Path(name_or_path).exists():
        return Path(name_or_path)
    names = f" or one of {', '.join(known)}" if known else ""
    raise WeightsError(
        f"model.weights: {name_or_path!r} does not exist; allowed for {backbone} are a path, "
        f"an http(s) URL{names}"
    )


def _cached(url: str, cache_dir: Path) -> Path:
    """The file of a URL in the cache, downloaded if it is not there."""
    address, _, fragment = url.partition("#")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise WeightsError(f"model.weights: {url!r} is not a path or an http(s) URL")
    expected = fragment.removeprefix("sha256=").lower() if fragment else _sha256_in_name(address)
    if expected is not None and not re.fullmatch(r"[0-9a-f]{8,64}", expected):
        raise WeightsError(f"model.weights: {url!r} must end in #sha256= and 8 to 64 digits")
    # Files of different data sets have one name (SLOWFAST_8x8_R50.pyth), so the URL is in it too.
    key = hashlib.sha256(address.encode()).hexdigest()[:12]
    path = cache_dir / f"{key}-{PurePosixPath(parts.path).name}"
    if path.exists():
        _verify(path, expected, source=str(path))
    else:
        _download(address, path, expected)
    return path


def _sha256_in_name(url: str) -> str | None:
    """The digits in a name such as `r3d_18-b3b3357e.pth`, PyTorch's convention."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    return found[1] if found else None


def _download(url: str, path: Path, expected: str | None) -> None:
    """Fetch beside, verify, rename: a broken download never looks like a good one.

    Ranks that start together each fetch a file of their own; the last rename stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            _fetch(url, file)
        _verify(part, expected, source=url)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, file: BinaryIO) -> None:
    try:
        # S310: the scheme is http or https, checked by the caller.
        with (
            urllib.request.urlopen(url, timeout=60) as response,  # noqa: S310
            Progress(f"fetching {url}", total=0, unit="MB") as progress,
        ):
            promised = response.headers.get("Content-Length")
            while part := response.read(1 << 20):
                file.write(part)
                if file.tell() > MAX_WEIGHTS_BYTES:
                    raise WeightsError(f"{url}: larger than {MAX_WEIGHTS_BYTES} bytes, no weights")
                progress.reach(file.tell() / 1e6, int(promised or 0) / 1e6)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise WeightsError(f"{url}: download failed ({error})") from error
    if promised is not None and file.tell() != int(promised):
        raise WeightsError(f"{url}: {file.tell()} of {promised} bytes arrived; try again")


def _verify(path: Path, expected: str | None, *, source: str) -> None:
    """Refuse a file whose SHA-256 does not begin with the expected digits."""
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeightsError(
            f"{source}: SHA-256 begins {found[: len(expected)]}, expected {expected}; "
            "delete the file or correct the checksum"
        )
