"""The files of a model of the Hugging Face hub, or of a local folder laid out like one.

Nothing that such a repository says is ever run as code: architectures are transformers' own, by
name, and weights are tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization

CONFIG = "config.json"
PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
SAFE = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")


def transformers() -> Any:
    """The library, which has no types for what is used of it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "model.backbone: hf: models need transformers: pip install 'cdb-video[hf]'"
        )
    return importlib.import_module("transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting what we report ourselves."""
    logging = transformers().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def model_folder(source: str, *, weights: bool = False) -> Path:
    """The local folder of a model: given, in the library's cache, or fetched into it.

    What is in the cache is not looked for again on the hub.

    Args:
        source: a folder, or a hub id such as "facebook/vjepa2-vitl-fpc64-256".
        weights: with them; else the few files that describe it.

    Raises:
        ConfigError: no such folder; or the hub has no such files, or cannot be reached.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise ConfigError(
                f"model.backbone: hf:{source}: no such folder, and no hub id (owner/name)"
            )
        folder = _fetched(source, [CONFIG, *PREPROCESSORS, *(SAFE if weights else ())])
        if weights and not _has(folder, SAFE):
            folder = _fetched(source, [CONFIG, *PREPROCESSORS, *PICKLED])
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"model.backbone: hf:{source}: {folder} has no {CONFIG}")
    if weights and not _has(folder, SAFE + PICKLED):
        raise ConfigError(
            f"model.backbone: hf:{source}: no weights in {folder}; allowed are *.safetensors, or "
            "pytorch_model.bin, which is read with weights_only=True"
        )
    return folder


def has_safetensors(folder: Path) -> bool:
    """Whether its weights are in the format that cannot hold code."""
    return _has(folder, SAFE[:1])


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _fetched(source: str, patterns: list[str]) -> Path:
    """The folder of a hub id in the library's cache, with the files of some names."""
    transformers()  # says what to install
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        kept = Path(hub.snapshot_download(source, allow_patterns=patterns, local_files_only=True))
        wanted = [p for p in patterns if p.startswith(("*", "pytorch"))]
        if (kept / CONFIG).is_file() and (not wanted or _has(kept, tuple(wanted))):
            return kept
    except Exception:  # noqa: S110 - not there, in any of the library's ways to say so
        pass
    try:
        return Path(hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # of the network, the hub, or an id that cannot be
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"model.backbone: hf:{source}: neither a folder, nor in the cache of huggingface_hub, "
            f"nor to be had from the hub ({type(error).__name__}: {reason[0] if reason else ''}); "
            "fetch it where there is a network, and give the folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping.

    Raises:
        ConfigError: it cannot be read as one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping, is a {type(content).__name__}")
    return content


def read_normalization(folder: Path) -> Normalization:
    """What a model's weights expect of pixels, from its preprocessor's file.

    Raises:
        ConfigError: the model says nothing of it: pixels of another range would be a quiet mistake.
    """
    found = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(
            f"model.backbone: {folder} has neither {' nor '.join(PREPROCESSORS)}: mean and "
            "deviation of the pixels that the weights expect are unknown"
        )
    about = read_json(found)
    scale = 1.0
    if about.get("do_rescale", True):
        # ViViT's files multiply by 1 / 127.5 and, with `offset`, take 1 off.
        scale = 255 * float(about.get("rescale_factor", 1 / 255))
    else:
        scale = 255.0
    shift = 1.0 if about.get("offset", False) else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if about.get("do_normalize", True):
        try:
            mean, std = ((*map(float, about[key]),) for key in ("image_mean", "image_std"))  # type: ignore[assignment]
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{found}: image_mean and image_std must be lists of numbers"
            ) from None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"{found}: image_mean and image_std must be three numbers, std above 0")
    return Normalization(
        tuple(round(value + shift, 12) for value in mean), std, value_range=round(scale, 12)
    )
