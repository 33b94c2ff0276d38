"""What the annotations and the contents of files say about splits: repeats, leaks, rare classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cdb_video.datasets.annotations import Split, VideoRecord
from cdb_video.prepare.files import VideoFile, segment_name
from cdb_video.prepare.findings import Finding

FEW_CLIPS = 5
"""Classes with fewer training clips are told of."""
SUBJECT_COLUMNS = ("participant", "subject")

Used = tuple[str, VideoRecord]
"""A record and the role of its split."""


def check_splits(
    splits: Mapping[str, Split], *, subject_columns: Sequence[str] = SUBJECT_COLUMNS
) -> Iterator[Finding]:
    """What can be told without a look at the files.

    Args:
        splits: role -> split.
        subject_columns: metadata that names who is seen; the first that a record has.

    """

    def subject(record: VideoRecord) -> str:
        return next((record.metadata[c] for c in subject_columns if record.metadata.get(c)), "")

    yield from _repeated_ids(splits)
    yield from _repeated_segments(splits)
    yield from _shared(splits, "shared recording", lambda record: record.recording)
    yield from _shared(splits, "shared subject", subject)
    for role, split in splits.items():
        for head in split.heads:
            yield from _rare_classes(role, split, head)


def same_content(files: Iterable[VideoFile], digests: Mapping[Path, str]) -> Iterator[Finding]:
    """Files of the same bytes under two names."""
    by_digest: dict[str, VideoFile] = {}
    for file in files:
        if file.path not in digests:
            continue
        first = by_digest.setdefault(digests[file.path], file)
        if first is file:
            continue
        uses = (*first.records, *file.records)
        yield Finding(
            _content_kind(uses),
            _roles(uses),
            str(file.path),
            f"the same bytes as {first.path} ({first.roles})",
        )


def _repeated_ids(splits: Mapping[str, Split]) -> Iterator[Finding]:
    for uses in _groups(splits, lambda record: record.id):
        if len(uses) > 1:
            record = uses[0][1]
            message = f"id {record.id!r} has {len(uses)} records"
            yield Finding("repeated id", _roles(uses), segment_name(record), message)


def _repeated_segments(splits: Mapping[str, Split]) -> Iterator[Finding]:
    """One part of one file under two ids; under one id, the id is told of."""
    for uses in _groups(splits, lambda record: (record.path, record.start_s, record.stop_s)):
        ids = list(dict.fromkeys(record.id for _, record in uses))
        if len(ids) > 1:
            message = f"one clip under {len(ids)} ids: {ids[0]!r}, {ids[1]!r}"
            where = segment_name(uses[0][1])
            yield Finding(_content_kind(uses), _roles(uses), where, message)


def _shared(
    splits: Mapping[str, Split], kind: str, name: Callable[[VideoRecord], str]
) -> Iterator[Finding]:
    """What has clips in the training split and in another."""
    for uses in _groups(splits, name):
        roles = [role for role, _ in uses]
        shared = name(uses[0][1])
        if shared and "train" in roles and len(set(roles)) > 1:
            counts = " and ".join(f"{roles.count(role):,}" for role in dict.fromkeys(roles))
            yield Finding(kind, _roles(uses), shared, f"{counts} clips")


def _rare_classes(role: str, split: Split, head: str) -> Iterator[Finding]:
    counts = split.class_counts(head).tolist()
    if not any(counts):
        if role == "test":
            return  # challenges keep their labels; such a split is for predictions
        yield Finding("no labels", role, head, "no clip of the split has a label of this head")
        return
    for name, count in zip(split.vocabularies[head], counts, strict=True):
        where = f"{head} {name!r}"
        if count == 0:
            yield Finding(f"no {role} clips", role, where, f"none of {len(split):,} clips")
        elif role == "train" and count < FEW_CLIPS:
            yield Finding("few train clips", role, where, f"{count} of {len(split):,} clips")


def _groups(
    splits: Mapping[str, Split], key: Callable[[VideoRecord], object]
) -> Iterable[list[Used]]:
    groups: dict[object, list[Used]] = defaultdict(list)
    for role, split in splits.items():
        for record in split.records:
            groups[key(record)].append((role, record))
    return groups.values()


def _roles(uses: Sequence[Used]) -> str:
    return ", ".join(dict.fromkeys(role for role, _ in uses))


def _content_kind(uses: Sequence[Used]) -> str:
    several = len({role for role, _ in uses}) > 1
    return "same content in two splits" if several else "same content"
