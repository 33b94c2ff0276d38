"""Predictions as JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdb_video.evaluation.predict import Ranking
from cdb_video.evaluation.timeline import Segment, Timeline

CSV_COLUMNS = ("video", "head", "start_s", "stop_s", "rank", "class", "score")


@dataclass(frozen=True)
class VideoPrediction:
    """What is predicted for one video."""

    video: str
    rankings: Mapping[str, Ranking]
    """Head -> the best classes of the whole video."""
    timeline: Timeline | None = None
    """Of its sliding windows; None: it was taken as one clip."""
    threshold: float = 0.0
    """Score below which the timeline gives no segment."""

    @property
    def segments(self) -> dict[str, list[Segment]]:
        """Head -> segments of the timeline; empty without one."""
        return self.timeline.segments(threshold=self.threshold) if self.timeline else {}

    def as_json(self) -> dict[str, object]:
        """{"video", head: [{"class", "score"}, ...]}, with a timeline also "segments", "windows".

        "segments": {head: [{"start_s", "stop_s", "class", "score"}, ...]}; "windows": [{"start_s",
        "stop_s", head: [{"class", "score"}, ...]}, ...], with as many classes as the rankings.
        """
        whole: dict[str, object] = {"video": self.video, **_entries(self.rankings)}
        if self.timeline is None:
            return whole
        top = max(len(ranking) for ranking in self.rankings.values())
        segments = {
            head: [
                {"start_s": start, "stop_s": stop, "class": name, "score": score}
                for start, stop, name, score in found
            ]
            for head, found in self.segments.items()
        }
        windows = [
            {"start_s": start, "stop_s": stop, **_entries(rankings)}
            for start, stop, rankings in self.timeline.windows(top=top)
        ]
        return {**whole, "segments": segments, "windows": windows}

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Of the CSV: the whole video's classes, without times; then the segments, of rank 1."""
        for head, ranking in self.rankings.items():
            for rank, (name, score) in enumerate(ranking, start=1):
                yield self.video, head, "", "", rank, name, score
        for head, segments in self.segments.items():
            for start, stop, name, score in segments:
                yield self.video, head, start, stop, 1, name, score


def write_json(path: Path, predictions: Iterable[VideoPrediction]) -> None:
    """A list with an object a video, see `VideoPrediction.as_json`."""
    text = json.dumps([one.as_json() for one in predictions], indent=1, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")


def write_csv(path: Path, predictions: Sequence[VideoPrediction]) -> None:
    """A row a class or segment, see `VideoPrediction.rows`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for one in predictions:
            writer.writerows(one.rows())


def _entries(rankings: Mapping[str, Ranking]) -> dict[str, list[dict[str, object]]]:
    return {
        head: [{"class": name, "score": score} for name, score in ranking]
        for head, ranking in rankings.items()
    }
