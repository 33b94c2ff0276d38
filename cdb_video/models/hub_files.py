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
SAFE = "model.safetensors"
PICKLED = "pytorch_model.bin"
INDEX = ".index.json"
"""Behind either name: of weights in several files."""


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

    What is whole in the cache is not looked for again on the hub.

    Args:
        source: a folder, or a hub id such as "facebook/vjepa2-vitl-fpc64-256", with `@` and a
            branch, tag or commit where it is to be another than its main one.
        weights: with them; else the few files that describe it.

    Raises:
        ConfigError: no such folder; or the hub has no such files, or cannot be reached.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        repository, at, revision = source.partition("@")
        is_id = repository.count("/") == 1 and bool(revision) == bool(at)
        if source.startswith(("/", ".", "~")) or not is_id:
            raise ConfigError(
                f"model.backbone: hf:{source}: no such folder, and no hub id (owner/name, or "
                "owner/name@revision)"
            )
        folder = _snapshot(repository, revision or None, weights=weights)
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"model.backbone: hf:{source}: {folder} has no {CONFIG}")
    lacking = _lacking_weights(folder) if weights else []
    if lacking == [SAFE]:
        raise ConfigError(
            f"model.backbone: hf:{source}: no weights in {folder}; allowed are {SAFE}, or "
            f"{PICKLED}, which is read with weights_only=True, or their parts with {INDEX}"
        )
    if lacking:
        raise ConfigError(
            f"model.backbone: hf:{source}: {folder} lacks {', '.join(lacking)}, of which its index "
            "of weights tells"
        )
    return folder


def hub_commit(folder: Path) -> str | None:
    """The commit of a folder of the library's cache; None of any other."""
    return folder.name if folder.parent.name == "snapshots" else None


def has_safetensors(folder: Path) -> bool:
    """Whether its weights are in the format that cannot hold code."""
    return _has_weights(folder, SAFE)


def _has_weights(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / (name + INDEX)).is_file()


def _lacking_weights(folder: Path) -> list[str]:
    """The files that are missing of its weights, safetensors before pickles; none: whole."""
    name = next((name for name in (SAFE, PICKLED) if _has_weights(folder, name)), None)
    if name is None:
        return [SAFE]
    if (folder / name).is_file():
        return []
    parts = read_json(folder / (name + INDEX)).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise ConfigError(f"{folder / (name + INDEX)}: weight_map must name a file a tensor")
    return [part for part in sorted(set(parts.values())) if not (folder / part).is_file()]


def _snapshot(repository: str, revision: str | None, *, weights: bool) -> Path:
    """The folder of a hub id in the library's cache: as it is there if it is whole, else fetched.

    Transformers' own loading leaves no preprocessor's file there, and a broken download some parts.
    """
    transformers()  # says what to install
    files = [CONFIG, *PREPROCESSORS]
    try:
        kept = _download(repository, revision, files, local_files_only=True)
        if _is_whole(kept, weights=weights):
            return kept
    except Exception:  # noqa: S110 - not there, in any of the library's ways to say so
        pass
    try:
        found = _download(repository, revision, files + (_patterns(SAFE) if weights else []))
        if weights and not has_safetensors(found):
            found = _download(repository, revision, files + _patterns(PICKLED))
    except Exception as error:  # of the network, the hub, or an id that cannot be
        reason = str(error).strip().splitlines()
        name = f"{repository}@{revision}" if revision else repository
        raise ConfigError(
            f"model.backbone: hf:{name}: neither a folder, nor whole in the cache of "
            f"huggingface_hub, nor to be had from the hub ({type(error).__name__}: "
            f"{reason[0] if reason else ''}); fetch it where there is a network, and give the "
            "folder"
        ) from error
    return found


def _patterns(name: str) -> list[str]:
    """Of the files of weights, in one or in parts."""
    stem, _, ending = name.rpartition(".")
    return [name, f"{stem}-*-of-*.{ending}", name + INDEX]


def _download(
    repository: str, revision: str | None, patterns: list[str], *, local_files_only: bool = False
) -> Path:
    """A snapshot in the library's cache with the files of some names."""
    hub: Any = importlib.import_module("huggingface_hub")
    found = hub.snapshot_download(
        repository,
        revision=revision,
        allow_patterns=patterns,
        local_files_only=local_files_only,
    )
    return Path(found)


def _is_whole(folder: Path, *, weights: bool) -> bool:
    described = any((folder / name).is_file() for name in PREPROCESSORS)
    if not (folder / CONFIG).is_file() or not described:
        return False
    return not weights or not _lacking_weights(folder)


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
