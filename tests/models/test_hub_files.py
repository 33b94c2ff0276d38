"""Models of the hub: what is whole in the library's cache is used, what is not is fetched."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from cdb_video.errors import ConfigError
from cdb_video.models.hub_families import read_architecture
from cdb_video.models.hub_files import PICKLED, SAFE, has_safetensors, model_folder
from tests.hub_models import save_hub_model

hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model's folder, and the same with its weights in several files."""
    root = tmp_path_factory.mktemp("saved")
    model = save_hub_model(root / "single", "vivit")
    shutil.copytree(root / "single", root / "parts", ignore=shutil.ignore_patterns(SAFE))
    model.save_pretrained(root / "parts", max_shard_size="20KB")
    return {name: root / name for name in ("single", "parts")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the library, which has no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def keep(cache: Path, folder: Path, *, ref: str = "main") -> Path:
    """Put a model into the cache as the library does; where it then is."""
    snapshot = cache / "models--somebody--vivit" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / ref).write_text(COMMIT)
    return snapshot


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, snapshot: Path) -> list[str]:
    """Let the library fetch from a folder into the cache; the files that it fetches."""
    fetched: list[str] = []
    in_cache = hub.snapshot_download

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        if options["local_files_only"]:
            return str(in_cache(name, allow_patterns=allow_patterns, **options))
        for path in folder.iterdir():
            asked = any(fnmatch(path.name, pattern) for pattern in allow_patterns)
            if asked and not (snapshot / path.name).exists():
                shutil.copy(path, snapshot)
                fetched.append(path.name)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return fetched


def test_a_hub_id_that_cannot_be_reached_is_one_line(cache: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.backbone: hf:nobody/nothing: neither a folder"
    ) as e:
        read_architecture("nobody/nothing")

    assert "\n" not in str(e.value)


@pytest.mark.parametrize("source", ["./nothing", "nothing", "owner/name@", "owner/name/more"])
def test_what_is_no_hub_id_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="no such folder, and no hub id"):
        read_architecture(source)


@pytest.mark.parametrize("kind", ["single", "parts"])
def test_a_model_that_is_whole_in_the_cache_needs_no_network(
    saved: dict[str, Path], cache: Path, kind: str
) -> None:
    snapshot = keep(cache, saved[kind])

    assert model_folder("somebody/vivit", weights=True) == snapshot
    known = read_architecture("somebody/vivit")
    assert (known["config"]["model_type"], known["commit"]) == ("vivit", COMMIT)
    assert "commit" not in read_architecture(str(saved[kind]))


def test_a_pickle_in_the_cache_needs_no_network(saved: dict[str, Path], cache: Path) -> None:
    snapshot = keep(cache, saved["single"])
    (snapshot / SAFE).rename(snapshot / PICKLED)

    assert model_folder("somebody/vivit", weights=True) == snapshot
    assert not has_safetensors(snapshot)


def test_a_revision_is_the_one_that_is_asked_for(saved: dict[str, Path], cache: Path) -> None:
    snapshot = keep(cache, saved["single"], ref="v1")

    assert model_folder("somebody/vivit@v1") == snapshot
    assert model_folder(f"somebody/vivit@{COMMIT}") == snapshot
    with pytest.raises(ConfigError, match=r"hf:somebody/vivit@v2: neither a folder"):
        model_folder("somebody/vivit@v2")
    with pytest.raises(ConfigError, match=r"hf:somebody/vivit: neither a folder"):
        model_folder("somebody/vivit")


@pytest.mark.parametrize(
    ("kind", "lacking", "weights"),
    [
        # What AutoModel.from_pretrained leaves in the cache.
        ("single", "preprocessor_config.json", False),
        # What is left of a download that was broken off.
        ("parts", "model-00002-of-*.safetensors", True),
        ("parts", "model.safetensors.index.json", True),
        ("single", "model.safetensors", True),
    ],
)
def test_what_is_not_whole_in_the_cache_is_fetched(
    saved: dict[str, Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    lacking: str,
    weights: bool,
) -> None:
    snapshot = keep(cache, saved[kind])
    [missing] = snapshot.glob(lacking)
    missing.unlink()
    fetched = publish(monkeypatch, saved[kind], snapshot)

    assert model_folder("somebody/vivit", weights=weights) == snapshot

    assert fetched == [missing.name]


def test_a_folder_that_lacks_a_part_of_its_weights_is_refused_by_name(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(saved["parts"], folder)
    [part] = folder.glob("model-00002-of-*.safetensors")
    part.unlink()

    with pytest.raises(ConfigError, match=f"lacks {part.name}, of which its index") as error:
        model_folder(str(folder), weights=True)

    assert "\n" not in str(error.value)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": []}))
    with pytest.raises(ConfigError, match=r"index\.json: weight_map must name a file a tensor"):
        model_folder(str(folder), weights=True)
