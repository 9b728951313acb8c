"""Groups of videos that must be on one side of the split: of one person, or re-encodings of one video."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.disjoint import DisjointSets
from lawdnet.data.faces import same_people
from lawdnet.data.group_by import face_distance, group_names
from lawdnet.data.near_duplicates import first_takes


def re_encodings(videos: pa.Table) -> dict[int, int]:
    """Near-duplicates among videos, by number: each with the first one that it is a re-encoding of.

    Args:
        videos: in the columns of `lawdnet.data.ledger`, in the order of paths.
    """
    return first_takes((text.as_py() for text in videos["perceptual_hash"]), len(videos))


def groups_of(videos: pa.Table, config: BuildConfig, copies: dict[int, int]) -> list[str]:
    """Return the name of the group of every video; empty for one that stands alone.

    Groups of `group_by` that share a video or its re-encoding are one group, under the name of the first. Videos of one
    face, and re-encodings that are in no such group, are named after the first one's SHA-256, so that its side stays
    what it was alone.

    Args:
        videos: in the columns of `lawdnet.data.ledger`, in the order of paths.
        copies: see `re_encodings`.
    """
    texts = ["path", "listed"] if config.group_by else []
    paths, listed = (videos[name].to_pylist() for name in texts) if texts else ([""] * len(videos),) * 2
    names = group_names(paths, config.group_by, listed)
    sets = DisjointSets(len(videos))
    _join_names(sets, names)
    pairs = list(copies.items())
    if distance := face_distance(config.group_by):
        pairs += same_people({n: text for n, text in enumerate(videos["faces"].to_pylist()) if text}, distance)
    for one, other in pairs:
        sets.join(one, other)
    for numbers in sets.sets(least=2):
        name = next((names[number] for number in numbers if names[number]), "")
        name = name or videos["sha256"][numbers[0]].as_py()
        for number in numbers:
            names[number] = name
    return names


def _join_names(sets: DisjointSets, names: Sequence[str]) -> None:
    first_of: dict[str, int] = {}
    for number, name in enumerate(names):
        if name:
            sets.join(number, first_of.setdefault(name, number))
