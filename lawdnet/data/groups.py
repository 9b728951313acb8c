"""Groups of videos that must be on one side of the split: of one person, or re-encodings of one video."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lawdnet.data.config import BuildConfig
from lawdnet.data.disjoint import DisjointSets
from lawdnet.data.faces import same_people
from lawdnet.data.group_by import face_distance, group_names
from lawdnet.data.near_duplicates import near_duplicates
from lawdnet.data.records import VideoRecord
from lawdnet.tasks.records import Refusal
from lawdnet.types import RejectReason


def assign_groups(records: dict[str, VideoRecord], config: BuildConfig) -> None:
    """Set the group of every accepted video; reject near-duplicates if the configuration says so.

    Groups of `group_by` that share a video or its re-encoding are one group, under the name of the first. Videos of one
    face, and re-encodings that are in no such group, are named after the first one's SHA-256, so that its side stays
    what it was alone.

    Args:
        records: in the order of paths. A near-duplicate that is rejected is replaced here and stays as it was in the
            store, with its segments: a build with another `near_duplicates` has it back without decoding.
        config: `group_by` and `near_duplicates` count.
    """
    accepted = {key: record for key, record in records.items() if record.is_accepted}
    copies: dict[str, str] = {}
    if config.near_duplicates != "keep":
        copies = near_duplicates({key: record.perceptual_hash for key, record in accepted.items()})
    if config.near_duplicates == "reject":
        for key, first in copies.items():
            records[key] = _rejected(accepted.pop(key), accepted[first])
        copies = {}
    for record in records.values():
        record.group = ""
    videos = list(accepted.values())
    names = group_names([video.path for video in videos], config.group_by, [video.listed for video in videos])
    pairs = list(copies.items())
    if distance := face_distance(config.group_by):
        pairs += same_people({key: record.faces for key, record in accepted.items()}, distance)
    for numbers in _connected(list(accepted), names, pairs):
        name = next((names[number] for number in numbers if names[number]), "")
        if not name and len(numbers) > 1:
            name = videos[numbers[0]].sha256
        for number in numbers:
            videos[number].group = name


def _connected(keys: Sequence[str], names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[int]]:
    """Return the positions of the videos that belong together, by name or because a pair connects them."""
    sets = DisjointSets(len(keys))
    first_of: dict[str, int] = {}
    for number, name in enumerate(names):
        if name:
            sets.join(number, first_of.setdefault(name, number))
    position = {key: number for number, key in enumerate(keys)}
    for one, other in pairs:
        sets.join(position[one], position[other])
    return sets.sets()


def _rejected(record: VideoRecord, first: VideoRecord) -> VideoRecord:
    """Return a near-duplicate's record as it counts; the record itself is not changed."""
    detail = f"a re-encoding of {first.path}: the face moves alike; set near_duplicates to group or keep to use it"
    rejected = replace(record)
    rejected.reject(Refusal("rejected", RejectReason.DUPLICATE, detail))
    return rejected
