"""Near-duplicates: the same video again, encoded with another quality, size or container.

A perceptual hash describes how a face moves, not how it looks. Hashes of single crops (dHash) do not tell another
sentence of the same person from a re-encoding: aligned crops of one face are too similar (docs/decisions.md).

Shape letters: K videos, W windows, S samples of a window, 64 pixels of a thumbnail, or bits of a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lawdnet.data.disjoint import DisjointSets
from lawdnet.types import Bool, Float32, UInt8

K = TypeVar("K")
"""Key of a video."""

SIDE = 8
"""Width and height of a thumbnail, px."""
STEP = 12
"""Ticks between two samples of a window."""
SAMPLES = 5
"""Thumbnails of a window, which so spans 48 ticks: what the shortest segment has."""
STARTS = (*range(0, 121, STEP), *(240 << doubling for doubling in range(10)))
"""First ticks of the windows: the first seconds closely, then ever more rarely up to 82 minutes, so that a long video
is more than its beginning."""
SAMPLED = frozenset(start + STEP * sample for start in STARTS for sample in range(SAMPLES))
"""Ticks whose thumbnails are needed."""
STILL = 0.5
"""Root mean square change of a thumbnail's pixels, grey levels of 255, below which a window shows only noise."""
MOST_BITS = 10
"""Largest mean number of differing bits per hash, of 64, of two near-duplicates. Measured on re-encodings: 1 to 10;
other videos of the same speaker: at least 11.7, of other people: at least 25.8 (docs/decisions.md)."""
LEAST_WINDOWS = 2
"""Number of windows that two videos must both have to be compared."""
BAND_BITS = 16
"""Bits of a hash that must be equal for two videos to be compared."""
PAIRS = 65536
"""Pairs that are compared at a time, to bound memory."""
MOST_NEIGHBOURS = 32
"""Number of videos with the same band that a video is compared with."""

PROJECTION = np.random.RandomState(0).choice([-1, 1], (64, SAMPLES * SIDE * SIDE)).astype(np.float32)
"""The random directions of the hash. `RandomState`, because its numbers are the same in every version of numpy."""


class MotionHasher:
    """Hashes the motion of one face: sees its crops one by one, and keeps a few thumbnails of 64 pixels."""

    def __init__(self) -> None:
        self._thumbnails: dict[int, Float32] = {}

    def see(self, tick: int, crop_HW3: UInt8) -> None:
        """Take the crop of a tick; most ticks are not sampled and cost nothing."""
        if tick in SAMPLED:
            small_883 = cv2.resize(crop_HW3, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            self._thumbnails[tick] = cv2.cvtColor(small_883, cv2.COLOR_RGB2GRAY).astype(np.float32).ravel()

    def hashes(self) -> dict[int, str]:
        """Return first tick → 16 hex digits, for every window whose thumbnails are complete and that shows motion."""
        found = {}
        for start in STARTS:
            window = [self._thumbnails.get(start + STEP * sample) for sample in range(SAMPLES)]
            thumbnails = [thumbnail for thumbnail in window if thumbnail is not None]
            if len(thumbnails) == SAMPLES and (text := _hash(np.stack(thumbnails))):
                found[start] = text
        return found


def _hash(thumbnails_S64: Float32) -> str:
    """SimHash (Charikar 2002): the sign of random projections; the share of differing bits measures an angle.

    What is projected is the change against the window's mean, free of the light of the whole crop. Pixels that hardly
    change hardly count, so noise of the encoder decides few bits.
    """
    change_S64 = thumbnails_S64 - thumbnails_S64.mean(1, keepdims=True)
    change_S64 = change_S64 - change_S64.mean(0)
    if np.sqrt(np.square(change_S64).mean()) < STILL:
        return ""
    return np.packbits(PROJECTION @ change_S64.ravel() > 0).tobytes().hex()


def encode(hashers: Iterable[MotionHasher]) -> str:
    """Return the perceptual hash of a video as text: `TICK:HASH` of its windows, of the first face that has one."""
    found: dict[int, str] = {}
    for hasher in hashers:
        found = hasher.hashes() | found
    return _text(found)


def join_hashes(texts: Iterable[str]) -> str:
    """Return the perceptual hash of a video from those of its spans, in order."""
    found: dict[int, str] = {}
    for start, _, digits in (part.partition(":") for text in texts for part in text.split()):
        found.setdefault(int(start), digits)
    return _text(found)


def _text(digits: Mapping[int, str]) -> str:
    return " ".join(f"{start}:{digits[start]}" for start in sorted(digits))


def near_duplicates(hashes: Mapping[K, str]) -> dict[K, K]:
    """Find videos that are re-encodings of others; one that begins later or earlier is not found.

    All pairs would be too many for 100,000 videos. Only videos that share 16 of the 64 bits exactly, at the same time,
    are compared: chance lets two of 65,536 hashes agree there, and hashes with up to three differing bits always do.

    Args:
        hashes: key of a video → its perceptual hash (see `encode`), in the order of precedence.

    Returns:
        Key of a video → key of the first video that it is a near-duplicate of, directly or through others.
    """
    keys = list(hashes)
    return {keys[number]: keys[first] for number, first in first_takes(hashes.values(), len(keys)).items()}


def first_takes(hashes: Iterable[str], count: int) -> dict[int, int]:
    """Find re-encodings among so many videos, which are known by their numbers; see `near_duplicates`."""
    hash_KW, has_KW = _table(hashes, count)
    sets = DisjointSets(count)
    for window in range(hash_KW.shape[1]):
        rows = np.flatnonzero(has_KW[:, window])
        for shift in range(0, 64, BAND_BITS):
            band = (hash_KW[rows, window] >> np.uint64(shift)).astype(np.uint16)
            order = np.argsort(band, kind="stable")
            _join_neighbours(rows[order], band[order], hash_KW, has_KW, sets)
    firsts = sets.firsts()
    copies = np.flatnonzero(firsts != np.arange(count))
    return dict(zip(copies.tolist(), firsts[copies].tolist(), strict=True))


def _join_neighbours(
    rows: NDArray[Any], band: NDArray[np.uint16], hash_KW: NDArray[np.uint64], has_KW: Bool, sets: DisjointSets
) -> None:
    """Compare each video with those that follow it in the same band, and join the near-duplicates.

    Args:
        rows: numbers of the videos, by band and precedence.
        band: their bands.
    """
    for ahead in range(1, MOST_NEIGHBOURS + 1):
        same = band[ahead:] == band[:-ahead]
        if not same.any():  # nor is there a pair further ahead
            return
        one, other = rows[:-ahead][same], rows[ahead:][same]
        firsts = sets.firsts()
        apart = firsts[one] != firsts[other]
        one, other = one[apart], other[apart]
        for start in range(0, len(one), PAIRS):
            _join_near(one[start : start + PAIRS], other[start : start + PAIRS], hash_KW, has_KW, sets)


def _join_near(
    one: NDArray[Any], other: NDArray[Any], hash_KW: NDArray[np.uint64], has_KW: Bool, sets: DisjointSets
) -> None:
    """Compare pairs of videos, and join the near-duplicates."""
    both_PW = has_KW[one] & has_KW[other]
    bits_P = (np.bitwise_count(hash_KW[one] ^ hash_KW[other]) * both_PW).sum(1)
    windows_P = both_PW.sum(1)
    near_P = (windows_P >= LEAST_WINDOWS) & (bits_P <= MOST_BITS * windows_P)
    for pair in zip(one[near_P].tolist(), other[near_P].tolist(), strict=True):
        sets.join(*pair)


def _table(texts: Iterable[str], count: int) -> tuple[NDArray[np.uint64], Bool]:
    """Return K×W hashes, and whether there is one; of the windows that a video has."""
    known = set(map(str, STARTS))
    columns: dict[str, tuple[NDArray[np.uint64], Bool]] = {}
    for row, text in enumerate(texts):
        for part in text.split():
            start, _, digits = part.partition(":")
            if start in known:
                if start not in columns:
                    columns[start] = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
                hash_K, has_K = columns[start]
                hash_K[row], has_K[row] = int(digits, 16), True
    if not columns:
        return np.zeros((count, 0), np.uint64), np.zeros((count, 0), np.bool_)
    found = [columns[start] for start in sorted(columns, key=int)]
    return np.stack([hash_K for hash_K, _ in found], 1), np.stack([has_K for _, has_K in found], 1)
