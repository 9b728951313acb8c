"""Who is in a video, as face embeddings: which videos show the same person.

Shape letters: M embeddings, D = 128 numbers of an embedding.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import cv2
import numpy as np

from lawdnet.data.disjoint import DisjointSets
from lawdnet.data.records import SegmentRow
from lawdnet.data.schema import from_rows, read_segment
from lawdnet.storage import Location
from lawdnet.types import NUM_LANDMARKS, Float32, UInt8

MOST_TRACKS = 8
"""Tracks of a video that are looked at: those with the most frames."""
FRAMES = 8
"""Frames of a track whose embeddings are averaged."""
BLOCK = 4096
"""Embeddings that are compared at a time, to bound memory."""

K = TypeVar("K")
"""Key of a video."""

Sample = tuple[UInt8, Float32]
"""Crops T×H×W×3 of a face, and its landmarks T×68×2 in their px."""


def sample_faces(file: Location, rows: Sequence[SegmentRow]) -> list[Sample]:
    """Read a few crops of each track of a video, spread evenly over it.

    Args:
        file: its segment file.
        rows: its segments.

    """
    tracks: dict[int, list[SegmentRow]] = {}
    for row in rows:
        tracks.setdefault(row.track, []).append(row)
    longest = sorted(tracks.values(), key=lambda own: -sum(row.num_frames for row in own))[:MOST_TRACKS]
    return [_sample_track(file, own) for own in longest]


def _sample_track(file: Location, rows: Sequence[SegmentRow]) -> Sample:
    frames = [(row.row_group, frame) for row in rows for frame in range(row.num_frames)]
    wanted: dict[int, list[int]] = {}
    for number in np.linspace(0, len(frames) - 1, FRAMES + 2).astype(int)[1:-1]:
        group, frame = frames[number]
        wanted.setdefault(group, []).append(frame)
    images, points = [], []
    for group, numbers in wanted.items():
        table = read_segment(file, group, ["frames_jpeg", "landmarks"])
        jpegs, points_T68x2 = table["frames_jpeg"][0], from_rows(table["landmarks"]).reshape(-1, NUM_LANDMARKS, 2)
        for number in numbers:
            bgr_HW3 = cv2.imdecode(np.frombuffer(jpegs[number].as_py(), np.uint8), cv2.IMREAD_COLOR)
            images.append(cv2.cvtColor(bgr_HW3, cv2.COLOR_BGR2RGB))
            points.append(points_T68x2[number])
    return np.stack(images), np.stack(points)


def encode(embeddings: Iterable[np.ndarray]) -> str:
    """Return embeddings as text, a word for each."""
    return " ".join(base64.b64encode(one_D.astype("<f2").tobytes()).decode() for one_D in embeddings)


def decode(text: str) -> Float32:
    """Return M×D embeddings; the inverse of `encode`, to half precision."""
    return np.array([np.frombuffer(base64.b64decode(word), "<f2") for word in text.split()], np.float32)


def same_people(faces: Mapping[K, str], distance: float) -> list[tuple[K, K]]:
    """Find the videos that show the same person.

    Args:
        faces: key of a video → its embeddings as text.
        distance: largest Euclidean distance between two embeddings of one person.

    Returns:
        Pairs of keys; the pairs of three videos of one person connect them, and may be only two.
    """
    keys = [key for key, text in faces.items() for _ in text.split()]
    if not keys:
        return []
    all_MD = np.concatenate([decode(text) for text in faces.values() if text])
    square_M = np.square(all_MD).sum(1)
    sets = DisjointSets(len(keys))
    for start in range(0, len(keys), BLOCK):
        own = slice(start, start + BLOCK)
        # |a - b|² = |a|² + |b|² - 2 a·b
        near_BM = square_M[own, None] + square_M - 2 * all_MD[own] @ all_MD.T <= distance**2
        _join(sets, np.stack([np.arange(start, start + len(near_BM)), near_BM.argmax(1)], 1))
        firsts_M = sets.firsts()  # most of the many pairs of a frequent person are connected by now
        near_BM &= firsts_M[own, None] != firsts_M
        _join(sets, np.argwhere(near_BM) + np.array([start, 0]))
    return [(keys[first], keys[number]) for number, first in enumerate(sets.firsts().tolist()) if first != number]


def _join(sets: DisjointSets, pairs_P2: np.ndarray) -> None:
    for one, other in pairs_P2.tolist():
        sets.join(one, other)
