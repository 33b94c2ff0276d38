from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from cdb_video.datasets.demo import DEMO_HOLD_OUT_SUBJECTS, make_demo
from cdb_video.datasets.demo_motions import MOTIONS, Act
from cdb_video.datasets.demo_plan import NOUNS, VERBS, Counts, DemoClip, plan_demo
from cdb_video.datasets.demo_scene import Shot, render, write_clip
from cdb_video.errors import DataError

ALL_COUNTS: tuple[Counts, ...] = ("mixed", "rare_hard", "rare_easy")
TAIL = [72, 58, 46, 36, 29, 23, 19, 17]

# Makes the tiny demo and prints how often progress was reported; with a number as its second
# argument it kills itself, as nothing can prevent, after so many clips.
MAKE = """
import os, signal, sys
from pathlib import Path
from cdb_video.datasets.demo import make_demo

told = []
def progress(done, total):
    told.append(done)
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

make_demo(Path(sys.argv[1]), num_clips=20, progress=progress)
print(len(told))
"""


def start_making(folder: Path, *, die_after: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", MAKE, str(folder), str(die_after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def made_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny demo that two processes asked for at once, and how many clips each of them made."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    processes = [start_making(folder), start_making(folder)]
    return folder, [process.communicate(timeout=120)[0].strip() for process in processes]


@pytest.fixture(scope="module")
def made(made_by_two: tuple[Path, list[str]]) -> Path:
    return made_by_two[0]


def plan(counts: Counts = "mixed", *, seed: int = 0, num_clips: int = 300) -> list[DemoClip]:
    return plan_demo(counts=counts, seed=seed, num_clips=num_clips)


def read_ids(path: Path) -> dict[int, str]:
    """{id: name} of an official class list; a name may hold spaces."""
    rows = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
    return {int(number): name for name, number in rows}


def read_rows(path: Path) -> list[tuple[str, int, int, int]]:
    """(clip, action, verb, noun) of an official split file."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(clip, int(action), int(verb), int(noun)) for clip, action, verb, noun in rows]


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_equal_seeds_give_equal_plans_and_other_seeds_do_not() -> None:
    assert plan(seed=3) == plan(seed=3)
    assert plan(seed=3) != plan(seed=4)


@pytest.mark.parametrize("counts", ALL_COUNTS)
def test_every_choice_of_counts_gives_verbs_and_nouns_the_same_long_tail(counts: Counts) -> None:
    clips = plan(counts)

    assert sorted(Counter(clip.shot.verb for clip in clips).values(), reverse=True) == TAIL
    assert sorted(Counter(clip.shot.noun for clip in clips).values(), reverse=True) == TAIL
    assert 25 <= len({clip.action for clip in clips}) <= 32


def test_rare_classes_are_the_hard_ones_the_easy_ones_or_some_of_both() -> None:
    in_order_of_difficulty = {}
    for counts in ALL_COUNTS:
        verbs = Counter(clip.shot.verb for clip in plan(counts))
        nouns = Counter(clip.shot.noun for clip in plan(counts))
        in_order_of_difficulty[counts] = ([verbs[v] for v in VERBS], [nouns[n] for n in NOUNS])

    assert in_order_of_difficulty["rare_hard"] == (TAIL[::-1], TAIL[::-1])
    assert in_order_of_difficulty["rare_easy"] == (TAIL, TAIL)
    for of_classes in in_order_of_difficulty["mixed"]:
        assert abs(np.corrcoef(np.argsort(np.argsort(of_classes)), np.arange(8))[0, 1]) < 0.4


@pytest.mark.parametrize("counts", ALL_COUNTS)
@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_trained_and_every_verb_and_noun_is_measured(
    counts: Counts, seed: int
) -> None:
    clips = plan(counts, seed=seed)
    seen: dict[str, Counter[str]] = {split: Counter() for split in ("train", "val", "test")}
    for clip in clips:
        seen[clip.split].update((clip.shot.verb, clip.shot.noun, clip.action))

    assert seen["train"].keys() == {*VERBS, *NOUNS, *(clip.action for clip in clips)}
    for split in ("val", "test"):
        assert min(seen[split][name] for name in (*VERBS, *NOUNS)) >= 2
    shares = Counter(clip.split for clip in clips)
    assert shares["train"] == pytest.approx(180, abs=8)
    assert shares["val"] == pytest.approx(60, abs=4)
    assert shares["test"] == pytest.approx(60, abs=4)


def test_no_recording_is_in_two_splits_and_validation_is_held_out_by_subject() -> None:
    clips = plan()
    splits_of_session: dict[str, set[str]] = {}
    for clip in clips:
        splits_of_session.setdefault(clip.session, set()).add(clip.split)

    assert all(len(splits) == 1 for splits in splits_of_session.values())
    for clip in clips:
        assert (clip.split == "val") == (clip.name[:3] in DEMO_HOLD_OUT_SUBJECTS)


def test_names_are_unique_and_tell_the_length_at_24_fps() -> None:
    clips = plan()

    assert len({clip.name for clip in clips}) == 300
    for clip in clips:
        *session, start_ms, stop_ms, start, stop = clip.name.split("-")
        assert "-".join(session) == clip.session
        assert int(stop[1:]) - int(start[1:]) == clip.shot.num_frames
        # Both ends are rounded to a millisecond.
        assert int(stop_ms) - int(start_ms) == pytest.approx(clip.shot.num_frames / 0.024, abs=1)


def test_files_are_in_the_official_format(made: Path) -> None:
    actions, verbs, nouns = (read_ids(made / f"{h}_idx.txt") for h in ("action", "verb", "noun"))
    train, test = (read_rows(made / f"{split}_split1.txt") for split in ("train", "test"))

    for names in (actions, verbs, nouns):
        assert list(names) == list(range(1, len(names) + 1))
    assert set(verbs.values()) == set(VERBS)
    assert set(nouns.values()) == set(NOUNS)
    assert len(train) + len(test) == 20
    for clip, action, verb, noun in train + test:
        assert actions[action] == f"{verbs[verb]} {nouns[noun]}"
        assert (made / "cropped_clips" / "-".join(clip.split("-")[:3]) / f"{clip}.mp4").is_file()


def test_files_hold_the_frames_that_their_names_promise(made: Path) -> None:
    paths = sorted(made.glob("cropped_clips/*/*.mp4"))

    assert len(paths) == 20
    for path in paths:
        *_, start, stop = path.stem.split("-")
        frames = decode(path)
        assert len(frames) == int(stop[1:]) - int(start[1:])
        assert 16 <= len(frames) <= 40
        assert {frame.shape for frame in frames} == {(96, 128, 3)}
    with av.open(str(paths[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 24)
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_equal_shots_give_equal_files_and_other_seeds_other_pictures(tmp_path: Path) -> None:
    shot = Shot("Open", "milk carton", 4, person=(1,), room=(2,), clip=(3,))
    other = Shot("Open", "milk carton", 4, person=(1,), room=(2,), clip=(4,))

    write_clip(tmp_path / "a.mp4", shot)
    write_clip(tmp_path / "b.mp4", shot)

    assert np.array_equal(decode(tmp_path / "a.mp4"), decode(tmp_path / "b.mp4"))
    assert not np.array_equal(list(render(shot)), list(render(other)))


@pytest.mark.parametrize(("verb", "reverse"), [("Take", "Put"), ("Open", "Close")])
def test_a_verb_and_its_reverse_show_the_same_moments(verb: str, reverse: str) -> None:
    act = Act.draw("cup", np.random.default_rng(0))

    for progress in (0.0, 0.25, 0.5, 1.0):  # whose 1 - progress is exact
        assert MOTIONS[verb](act, progress, 0.0) == MOTIONS[reverse](act, 1 - progress, 0.0)


def test_two_processes_that_start_together_make_it_once(
    made_by_two: tuple[Path, list[str]],
) -> None:
    folder, clips_made = made_by_two

    assert sorted(clips_made) == ["0", "20"]
    assert {path.name for path in folder.parent.iterdir()} == {"demo", ".demo.lock"}


def test_a_finished_folder_is_returned_untouched(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}

    make_demo(made, num_clips=20)

    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_process_killed_half_way_leaves_no_folder_and_the_next_one_makes_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "demo"
    killed = start_making(folder, die_after=3)
    # Ends when nobody holds its standard output any more: its workers must end with it.
    killed.communicate(timeout=60)
    left = [path.name for path in tmp_path.iterdir()]

    make_demo(folder, num_clips=20)

    assert killed.returncode == -9
    assert "demo" not in left
    assert any(name.startswith(".demo.part-") for name in left)
    assert len(list(folder.glob("cropped_clips/*/*.mp4"))) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"demo", ".demo.lock"}


def test_another_seed_takes_the_place_of_the_old_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    old = {"version": 1, "counts": "mixed", "seed": 0, "num_clips": 20}
    (folder / "demo.json").write_text(json.dumps(old))
    (folder / "stale.txt").write_text("of the old one")

    make_demo(folder, seed=1, num_clips=20)

    assert json.loads((folder / "demo.json").read_text()) == {**old, "seed": 1}
    assert not (folder / "stale.txt").exists()


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(DataError, match="holds something else than demo data"):
        make_demo(tmp_path, num_clips=20)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_too_few_clips_for_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clips is 19"):
        plan(num_clips=19)
