"""What the demo data set shows: how many clips of which verb and noun, in which split.

Difficulty is built in and can be seen: Take and Put, Open and Close are each other run backwards;
onion and potato, cup and bowl look alike. How many clips a class has is a separate choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cdb_video.datasets.demo_scene import FPS, Shot

Counts: TypeAlias = Literal["mixed", "rare_hard", "rare_easy"]

DEMO_HOLD_OUT_SUBJECTS = ("P07", "P08")
"""The subjects of `train_split1.txt` whose clips are meant for validation."""

_SUBJECTS = {
    "train": ("P01", "P02", "P03", "P04", "P05", "P06"),
    "val": DEMO_HOLD_OUT_SUBJECTS,
    "test": ("P09", "P10"),
}
_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_RECIPES = ("R01-TomatoSalad", "R02-PotatoSoup", "R03-Breakfast")

# From hard to easy, by design. The numbers are the places in the tail under "mixed", 0 for the
# commonest: if anything the easy are the rarer (rank correlations 0.07 and 0.33).
VERBS = {"Take": 1, "Put": 2, "Close": 5, "Open": 4, "Stir": 6, "Pour": 7, "Cut": 3, "Wash": 0}
NOUNS = {
    "potato": 5,
    "cup": 3,
    "onion": 0,
    "bowl": 4,
    "pot": 2,
    "tomato": 1,
    "eggplant": 7,
    "milk carton": 6,
}
# The long tail of verbs and of nouns: of 300 clips, so many are of each place.
_TAIL = (72, 58, 46, 36, 29, 23, 19, 17)

# Reversed verbs share their nouns, and nouns that look alike their verbs: neither label tells the
# other. All three choices of counts fit these pairs exactly, which not every list of pairs does.
_CARRIED = ("potato", "onion", "tomato", "cup", "bowl")
_LIDDED = ("cup", "bowl", "pot", "milk carton")
_FOOD = ("potato", "onion", "tomato", "eggplant")
_NOUNS_OF = {
    "Take": _CARRIED,
    "Put": _CARRIED,
    "Close": _LIDDED,
    "Open": _LIDDED,
    "Stir": ("cup", "bowl", "pot"),
    "Pour": ("cup", "bowl", "milk carton"),
    "Cut": _FOOD,
    "Wash": _FOOD,
}


@dataclass(frozen=True)
class DemoClip:
    """One clip of the data set: its split and recording, and what it shows."""

    split: str
    session: str
    name: str
    shot: Shot

    @property
    def action(self) -> str:
        """The name of its action, such as "Open milk carton"."""
        return f"{self.shot.verb} {self.shot.noun}"


def plan_demo(*, counts: Counts, seed: int, num_clips: int) -> list[DemoClip]:
    """What every clip shows and where it belongs, in the order of their names."""
    if num_clips < 20:
        raise ValueError(f"num_clips is {num_clips}; three splits of every class take 20 at least")
    rng = np.random.default_rng((seed, 0))
    pairs = _pairs(counts, num_clips, rng)
    splits = _assign_splits(pairs)
    session_ends: defaultdict[str, int] = defaultdict(lambda: int(rng.integers(100, 1000)))
    turns = Counter[str]()
    clips = []
    for index in rng.permutation(len(pairs)).tolist():
        (verb, noun), split = pairs[index], splits[index]
        subjects = _SUBJECTS[split]
        recipe, person = divmod(turns[split], len(subjects))
        turns[split] = (turns[split] + 1) % (len(subjects) * len(_RECIPES))
        subject = subjects[person]
        session = f"{subject}-{_RECIPES[recipe]}"
        num_frames = int(rng.integers(16, 41))
        start = session_ends[session] + int(rng.integers(12, 120))
        session_ends[session] = stop = start + num_frames
        name = f"{session}-{_ms(start)}-{_ms(stop)}-F{start:06d}-F{stop:06d}"
        person_seed, room_seed = (seed, 1, int(subject[1:])), (seed, 2, int(subject[1:]), recipe)
        shot = Shot(verb, noun, num_frames, person_seed, room_seed, (seed, 3, index))
        clips.append(DemoClip(split, session, name, shot))
    return sorted(clips, key=lambda clip: clip.name)


def _ms(frame: int) -> int:
    return round(frame * 1000 / FPS)


def _places(mixed: dict[str, int], counts: Counts) -> list[int]:
    """The place in the tail of each class, the classes being listed from hard to easy."""
    if counts == "mixed":
        return list(mixed.values())
    return sorted(mixed.values(), reverse=counts == "rare_hard")


def _pairs(counts: Counts, num_clips: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The (verb, noun) of every clip, both long-tailed as `counts` says."""
    tail = np.array(_TAIL) * num_clips / sum(_TAIL)
    of_verb, of_noun = tail[_places(VERBS, counts)], tail[_places(NOUNS, counts)]
    wanted = np.array([[float(noun in _NOUNS_OF[verb]) for noun in NOUNS] for verb in VERBS])
    # Iterative proportional fitting: the evenest table with these row and column sums.
    for _ in range(500):
        wanted *= (of_verb / wanted.sum(1))[:, None]
        wanted *= of_noun / wanted.sum(0)
    table = _rounded(wanted, rng)
    order = sorted((int(n), v, k) for (v, k), n in np.ndenumerate(table))
    verbs, nouns = list(VERBS), list(NOUNS)
    return [(verbs[v], nouns[k]) for n, v, k in order for _ in range(n)]


def _rounded(wanted: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The table in whole numbers: each cell, row and column rounded up or down, none to nothing.

    Controlled rounding as a flow problem: its corner solutions are whole numbers, and the random
    costs leave one best corner.
    """
    from scipy.optimize import linprog  # a second to import, which no rendering process needs

    rows, columns = wanted.shape
    sums = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.tile(np.eye(columns), rows)])
    # Sums that are whole already may miss it by the fitting's last digits.
    down, up = np.floor(wanted + 1e-6).ravel(), np.ceil(wanted - 1e-6).ravel()
    totals = sums @ wanted.ravel()
    least, most = np.maximum(np.floor(totals + 1e-6), 1), np.ceil(totals - 1e-6)
    solution = linprog(
        rng.random(wanted.size),
        A_ub=np.vstack([sums, -sums]),
        b_ub=np.concatenate([most, -least]),
        A_eq=np.ones((1, wanted.size)),
        b_eq=[round(wanted.sum())],
        bounds=list(zip(down, up, strict=True)),
        method="highs-ds",
    )
    whole: NDArray[np.int64] = np.rint(solution.x).astype(np.int64).reshape(rows, columns)
    return whole


def _assign_splits(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A split for every clip: each verb, noun and action is shared out, its first clip trains."""
    given: Counter[tuple[str, str]] = Counter()
    splits = []
    for verb, noun in pairs:
        labels = (verb, noun, f"{verb} {noun}")
        seen = [sum(given[label, split] for split in _SHARES) for label in labels]
        lacks = {
            split: share * sum(seen) - sum(given[label, split] for label in labels)
            for split, share in _SHARES.items()
        }
        split = "train" if min(seen) == 0 else max(lacks, key=lacks.__getitem__)
        given.update((label, split) for label in labels)
        splits.append(split)
    return splits
