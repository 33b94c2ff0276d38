"""The data side of `build`: a configuration becomes splits and loaders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cdb_video.build_clips import DEMO_ROOTS, Memory, cache_dir, clip_memory
from cdb_video.clips.feature_files import feature_shape, feature_source, source_difference
from cdb_video.config import Config
from cdb_video.datasets.annotations import Split, Vocabulary
from cdb_video.datasets.image_files import is_packed
from cdb_video.datasets.long_tail import LongTail
from cdb_video.datasets.readers import read_split
from cdb_video.distributed import Ranks, local_world_size
from cdb_video.errors import ConfigError, UnknownSplitError
from cdb_video.evaluation.consistency import known_pairs
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.progress import Progress

Part = Literal["all", "rest", "held_out"]


@dataclass(frozen=True)
class Data:
    """The splits of a run by role."""

    train: Split
    val: Split | None
    test: Split | None
    memory: Memory | None = None
    """With data.in_memory: the clips decoded so far."""
    val_is_held_out: bool = False
    """The validation split was taken out of the annotated training split."""

    def split(self, role: str) -> Split:
        """The split of a role: train, val or test."""
        found = {"train": self.train, "val": self.val, "test": self.test}[role]
        if found is None:
            raise ConfigError(f"data.{role}_split is null: the run has no {role} split")
        return found

    @property
    def classes(self) -> dict[str, HeadClasses]:
        """Head -> what the training split tells of its classes."""
        names = {head: known.names for head, known in self.train.vocabularies.items()}
        pairs = known_pairs({head: self.train.labels(head) for head in names}, names)
        return {
            head: HeadClasses(
                names[head],
                self.train.class_counts(head),
                annotated_counts=self._annotated_counts(head),
                pairs=pairs.get(head),
            )
            for head in names
        }

    def _annotated_counts(self, head: str) -> Tensor | None:
        if self.val is None or not self.val_is_held_out:
            return None
        return self.train.class_counts(head) + self.val.class_counts(head)


def read_data(
    config: Config,
    *,
    check_files: bool = True,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> Data:
    """The splits that the configuration names.

    Args:
        config: its `data` section, and `model.heads`.
        check_files: every video must be there.
        vocabularies: the classes of a checkpoint; None: those of the data.

    Raises:
        ConfigError: no `data.root`; a class or head that the data does not have.
        DataError: annotations or files that cannot be used.

    """
    root = data_root(config)

    def read(split: str | tuple[str, ...], part: Part = "all") -> Split:
        return _read(
            config, root, split, part=part, check_files=check_files, vocabularies=vocabularies
        )

    data = config.data
    held_out = data.val_split == "held_out"
    train = read(data.train_split, part="rest" if held_out else "all")
    # Every split by the training split's classes, also where each is a file of its own.
    vocabularies = train.vocabularies
    val = test = None
    if held_out:
        val = read(data.train_split, part="held_out")
    elif data.val_split is not None:
        val = read(data.val_split)
    if data.test_split == "auto":
        with contextlib.suppress(UnknownSplitError):
            test = read("test")
    elif data.test_split is not None:
        test = read(data.test_split)
    found = Data(
        train=train,
        val=val,
        test=test,
        memory=clip_memory(config),
        val_is_held_out=held_out,
    )
    _check_roles(found)
    _check_heads(config, found)
    if data.untrusted and not data.in_memory and is_packed(train.records[0].path):
        raise ConfigError(
            "data.untrusted=true with data.in_memory=false: every image would be read in a process "
            "of its own out of a file of all; use data.in_memory=true"
        )
    return found


def read_role(
    config: Config,
    role: str,
    *,
    vocabularies: Mapping[str, Vocabulary] | None,
    check_files: bool = True,
) -> Split:
    """The split of one role alone, by a checkpoint's classes: its videos are all that is needed.

    Raises:
        ConfigError: the configuration has no split for the role.
        DataError: annotations or files that cannot be used.

    """
    data = config.data
    held_out = data.val_split == "held_out"
    name = {"train": data.train_split, "val": data.val_split, "test": data.test_split}[role]
    part: Part = "all"
    if held_out and role != "test":
        name, part = data.train_split, "held_out" if role == "val" else "rest"
    if name is None:
        raise ConfigError(f"data.{role}_split is null: the run has no {role} split")
    return _read(
        config,
        data_root(config),
        "test" if name == "auto" else name,
        part=part,
        check_files=check_files,
        vocabularies=vocabularies,
    )


def _check_roles(data: Data) -> None:
    """Splits of other names can share clips: EGTEA's train_split1 and test_split2 do."""
    seen: dict[str, str] = {}
    for role, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        for record in split.records if split else ():
            first = seen.setdefault(record.id, role)
            if first != role:
                raise ConfigError(
                    f"data.{role}_split: clip {record.id} is in data.{first}_split as well; no "
                    "clip may have two roles"
                )


def _read(
    config: Config,
    root: Path,
    split: str | tuple[str, ...],
    *,
    part: Part,
    check_files: bool,
    vocabularies: Mapping[str, Vocabulary] | None,
) -> Split:
    data, tail = config.data, config.data.long_tail
    return read_split(
        root,
        format=data.format,
        split=split,
        annotations=data.annotations,
        heads=config.model.heads,
        columns=data.columns or None,
        annotation_fps=data.annotation_fps,
        annotation_first_frame=data.annotation_first_frame,
        split_seed=data.split_seed,
        group_pattern=data.group_pattern,
        val_per_class=data.val_per_class,
        long_tail=LongTail(**tail.model_dump(exclude={"draw"})) if tail else None,
        draw_seed=config.run.seed if config.draws_images else None,
        hold_out_subjects=data.hold_out_subjects,
        hold_out_column=data.hold_out_column,
        part=part,
        check_files=check_files,
        vocabularies=vocabularies,
        untrusted=data.untrusted,
    )


def features_architecture(config: Config, data: Data) -> dict[str, Any] | None:
    """What the backbone `features` is built of; None: of video.

    The width that all splits have and, where their files say so, what made them: the `source`.

    Raises:
        ConfigError: splits whose features are of other backbones, weights or clips.
        DataError: files that hold no features.

    """
    if config.data.format != "features":
        return None
    width, source = feature_shape(data.train.records)[-1], feature_source(data.train.records)
    for role, split in (("val", data.val), ("test", data.test)):
        if split:
            key = f"data.{role}_split={split.name}"
            so_far = {"num_features": width, "source": source}
            refuse_other_features(split, so_far, key=key, whose="the training split's")
            source = {**feature_source(split.records), **source}
    return {"num_features": width} | ({"source": source} if source else {})


def refuse_other_features(
    split: Split, architecture: Mapping[str, Any], *, key: str, whose: str
) -> None:
    """Refuse features of another backbone, or by other weights or clips, as far as files say.

    Args:
        split: of saved features.
        architecture: what they must be, by `features_architecture`.
        key: names them, for the message.
        whose: the others are.

    Raises:
        ConfigError: naming the key and what differs.

    """
    width = feature_shape(split.records)[-1]
    if width != architecture["num_features"]:
        raise ConfigError(
            f"{key}: {width} features a clip, and {whose} have {architecture['num_features']}; the "
            "files of all splits must be of one backbone"
        )
    difference = source_difference(architecture.get("source", {}), feature_source(split.records))
    if difference:
        raise ConfigError(
            f"{key}: features made with {difference} of {whose}; the files of all splits must be "
            "of the same weights and clips"
        )


def data_root(config: Config) -> Path:
    """The folder of the data; the demo's is rendered first, into the cache, unless it is there."""
    root = config.data.root
    if root is None:
        raise ConfigError("data.root is null: give the folder of your data, or `demo`")
    if root not in DEMO_ROOTS:
        return Path(root).expanduser()
    from cdb_video.datasets.demo import make_demo

    quiet = not Ranks.from_environment().is_main
    with Progress("rendering the demo data", total=0, unit="videos", quiet=quiet) as progress:
        return make_demo(cache_dir(config) / root, counts=DEMO_ROOTS[root], progress=progress.reach)


def _check_heads(config: Config, data: Data) -> None:
    heads = list(data.train.heads)
    named: dict[str, Iterable[str]] = {
        "loss.head_weights": config.loss.head_weights,
        "augment.no_flip_classes": config.augment.no_flip_classes,
        "train.select_by": [config.train.select_by] if config.train.select_by else [],
    }
    for key, given in named.items():
        for head in given:
            if head not in heads:
                raise ConfigError(f"{key}: {head!r} is no head; the heads are {', '.join(heads)}")
    for role, split in (("train", data.train), ("val", data.val)):
        for head in heads if split else []:
            if split and int(split.class_counts(head).sum()) == 0:
                raise ConfigError(
                    f"data.{role}_split={split.name}: no clip is labelled for head {head!r}; "
                    "leave it out of model.heads"
                )


def load_into_memory(config: Config, data: Data, roles: Iterable[str], *, ranks: Ranks) -> None:
    """With data.in_memory, decode the clips of the roles that are not there yet.

    Raises:
        DecodeError: naming the file that cannot be decoded.
        ConfigError: more than the machine can hold.

    """
    if data.memory is None:
        return
    splits = {"train": data.train, "val": data.val, "test": data.test}
    records = [record for role in roles for record in getattr(splits[role], "records", ())]
    with Progress(
        "decoding into memory", total=len(records), unit="videos", quiet=not ranks.is_main
    ) as progress:
        # Nothing else is to be done meanwhile: the rank's share of all cores decodes.
        cores = len(os.sched_getaffinity(0)) // local_world_size()
        data.memory.load(
            records,
            num_workers=max(config.data.num_workers, cores),
            progress=lambda: progress.advance(),
        )
