"""Hostile data sets: paths and links that lead out, playlists that name other files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from torch import Tensor

from cdb_video.clips.dataset import open_record
from cdb_video.clips.decoders import open_video
from cdb_video.datasets.annotations import Split
from cdb_video.datasets.given import find_given
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DecodeError
from cdb_video.prepare.ingest import plan_jobs, prepare_file, prepare_videos
from cdb_video.prepare.reencode import Settings, reencode
from tests.reliability.attacks import Attack, Place

FIRST = torch.tensor([0])
DEADLINE_S = 30.0


def paths() -> Iterator[Attack]:
    """Data sets that name what lies outside of their folder."""
    absolute = "{outside}/secret.mp4"
    yield _table("absolute path", absolute)
    yield _table("dots", "../outside/secret.mp4")
    yield _table("dots inside", "sub/../../outside/secret.mp4")
    yield _table("URL", "{url}/secret.mp4", careless=_fetch)
    yield _table("file URL", "file://{outside}/secret.mp4", careless=_fetch)
    yield _table("concat protocol", "concat:{outside}/secret.ts", careless=_fetch)
    yield _table("link", "a.mp4", {"a.mp4": absolute})
    yield _table("relative link", "a.mp4", {"a.mp4": "../outside/secret.mp4"})
    yield _table("linked folder", "a/secret.mp4", {"a": "{outside}"})
    yield _table("link to a link", "a.mp4", {"b.mp4": absolute, "a.mp4": "b.mp4"})
    yield _table("link to everything", "a{outside}/secret.mp4", {"a": "/"})
    yield _table("template", "../outside/secret", columns={"path": "{path}.mp4"})
    yield Attack("path", "list", _list, _strict, _trusting)
    yield Attack("path", "annotations above", _annotations_outside, _strict, _trusting)
    yield Attack("path", "annotations linked", _annotations_linked, _strict, _trusting)
    yield Attack("path", "linked class folder", _class_folder, _strict, _trusting)
    yield Attack("path", "linked video of a class", _class_video, _strict, _trusting)
    yield Attack("path", "linked frames", _frames, _strict, _trusting)
    yield Attack("path", "folder to predict", _given, partial(_predict, untrusted=True), _predict)
    yield Attack("path", "folder to prepare", _given, _prepare_strictly, _prepare)


def playlists() -> Iterator[Attack]:
    """Texts that FFmpeg reads as videos made of other files."""
    for name in ("a.m3u8", "a.mp4"):
        for target in ("../outside/secret.ts", "{outside}/secret.ts", "file://{outside}/secret.ts"):
            yield _playlist("HLS", name, HLS.replace("NAME", target))
    yield _playlist("HLS master", "a.mp4", MASTER)
    yield _playlist("HLS over HTTP", "a.mp4", HLS.replace("NAME", "{url}/secret.ts"))
    for name in ("a.ffconcat", "a.mp4", "a.mkv"):
        for target in ("../outside/secret.mp4", "{outside}/secret.mp4"):
            yield _playlist("concat", name, CONCAT.replace("NAME", target))


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\nNAME\n#EXT-X-ENDLIST\n"
MASTER = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{outside}/list.m3u8\n"
CONCAT = "ffconcat version 1.0\nfile NAME\n"
ANYTHING = {
    "protocol_whitelist": "file,http,tcp,crypto,data,concat,subfile",
    "allowed_extensions": "ALL",
    "allowed_segment_extensions": "ALL",
    "extension_picky": "0",
    "safe": "0",
}


def _fill(text: str, place: Place) -> str:
    return text.replace("{outside}", str(place.outside)).replace("{url}", place.url)


def _table(
    name: str,
    path: str,
    links: dict[str, str] | None = None,
    *,
    columns: dict[str, str] | None = None,
    careless: Callable[[Path, Place], object] | None = None,
) -> Attack:
    def make(place: Place) -> Path:
        for link, target in (links or {}).items():
            (place.root / link).symlink_to(_fill(target, place))
        (place.root / "sub").mkdir()
        table = place.root / "clips.csv"
        table.write_text(f"path,verb,video_id,split\n{_fill(path, place)},cut,a,train\n")
        return table

    def read(given: Path, place: Place, *, untrusted: bool) -> object:
        return _first_frame(
            read_split(place.root, split="train", columns=columns, untrusted=untrusted),
            untrusted=untrusted,
        )

    return Attack(
        "path",
        name,
        make,
        partial(read, untrusted=True),
        careless or partial(read, untrusted=False),
    )


def _first_frame(split: Split, *, untrusted: bool) -> object:
    """The frame of the first record, or the names that came from elsewhere."""
    if "stolen" in split.vocabularies[split.heads[0]]:
        return "stolen"
    options: dict[str, Any] = {"deadline_s": DEADLINE_S} if untrusted else {}
    with open_record(split.records[0], untrusted=untrusted, **options) as video:
        return video.frames(FIRST)


def _fetch(table: Path, place: Place) -> object:
    """As a reader that hands the cell to FFmpeg."""
    return _decode(table.read_text().splitlines()[1].split(",")[0])


def _decode(name: str, **options: Any) -> Tensor:
    with av.open(name, **options) as container:
        frame = next(container.decode(video=0))
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]


def _list(place: Place) -> Path:
    path = place.root / "train.txt"
    path.write_text("../outside/secret.mp4 cut\n")
    return path


def _annotations_outside(place: Place) -> Path:
    path = place.outside / "clips.csv"
    path.write_text("path,verb,split\ninside.mp4,stolen,train\n")
    return Path("../outside/clips.csv")


def _annotations_linked(place: Place) -> Path:
    (place.root / "clips.csv").symlink_to(place.outside / _annotations_outside(place).name)
    return place.root / "clips.csv"


def _class_folder(place: Place) -> Path:
    (place.root / "inside.mp4").unlink()
    (place.root / "train").mkdir()
    (place.root / "train" / "cut").symlink_to(place.outside)
    return place.root


def _class_video(place: Place) -> Path:
    (place.root / "inside.mp4").unlink()
    (place.root / "train" / "cut").mkdir(parents=True)
    (place.root / "train" / "cut" / "a.mp4").symlink_to(place.outside / "secret.mp4")
    return place.root


def _frames(place: Place) -> Path:
    Image.new("RGB", (16, 16), (200, 0, 0)).save(place.outside / "0.jpg")
    (place.root / "frames").mkdir()
    (place.root / "frames" / "0.jpg").symlink_to(place.outside / "0.jpg")
    table = place.root / "clips.csv"
    table.write_text("path,verb,split\nframes,cut,train\n")
    return table


def _read(given: Path, place: Place, *, untrusted: bool) -> object:
    options: dict[str, Any] = {}
    if given.name == "clips.csv" and not given.is_absolute():
        options["annotations"] = given
    if (place.root / "frames").exists():
        options["annotation_fps"] = 5.0
    split = read_split(place.root, split="train", untrusted=untrusted, **options)
    return _first_frame(split, untrusted=untrusted)


_strict = partial(_read, untrusted=True)
_trusting = partial(_read, untrusted=False)


def _given(place: Place) -> Path:
    (place.root / "inside.mp4").unlink()
    (place.root / "a.mp4").symlink_to(place.outside / "secret.mp4")
    return place.root


def _predict(given: Path, place: Place, *, untrusted: bool = False) -> object:
    [path] = find_given([str(given)], untrusted=untrusted)
    with open_video(path) as video:
        return video.frames(FIRST)


def _prepare_strictly(given: Path, place: Place) -> object:
    return prepare_videos(given, place.folder / "made", Settings(), untrusted=True, quiet=True)


def _prepare(given: Path, place: Place) -> object:
    # In this process: one that imports PyTorch would not fit into its limits.
    [job] = plan_jobs(given, place.folder / "made")
    for _ in prepare_file(job, settings=Settings(short_side=16), index_folder=None):
        pass
    return _decode(str(job.target))


def _playlist(kind: str, name: str, text: str) -> Attack:
    def make(place: Place) -> Path:
        (place.outside / "list.m3u8").write_text(HLS.replace("NAME", "secret.ts"))
        path = place.root / name
        path.write_text(_fill(text, place))
        return path

    def careless(path: Path, place: Place) -> object:
        # What FFmpeg's versions tell a playlist by differs; here it is told.
        by = "concat" if "ffconcat" in text else "hls"
        return _decode(str(path), format=by, container_options=ANYTHING)

    first = next(line for line in text.splitlines() if "secret" in line or "list" in line)
    return Attack("playlist", f"{kind} {name}: {first}", make, _by_every_decoder, careless)


def _by_every_decoder(path: Path, place: Place) -> object:
    """What any of them gives; the last refusal, where all refuse."""
    refusal: DecodeError | None = None
    for decoder in ("pyav", "decord"):
        try:
            with open_video(path, decoder=decoder) as video:  # type: ignore[arg-type]
                return video.frames(FIRST)
        except DecodeError as error:
            refusal = error
    try:
        for _ in reencode(path, place.folder / "made.mp4", Settings(short_side=16)):
            pass
        return _decode(str(place.folder / "made.mp4"))
    except DecodeError as error:
        refusal = error
    raise refusal
