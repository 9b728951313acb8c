"""Which videos are held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from lawdnet.types import Bool


def split_draw(name: str) -> float:
    """Return a number in [0, 1) that depends on this name alone, whatever other videos there are.

    Args:
        name: the name of a group, or the SHA-256 of a video that stands alone.
    """
    return int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:8], 16) / 2**32


def split_videos(names: Mapping[str, str], val_fraction: float) -> dict[str, str]:
    """Return the split of every video: key → `train` or `val`. Videos of one name are on one side.

    Where chance would hold out none or all of two or more names, the one with the smallest draw changes sides. A
    single one is for training.

    Args:
        names: key of a video → what its side is drawn from; see `split_draw`.
        val_fraction: share of the names to hold out; 0 holds out none.
    """
    is_val = held_out(names.values(), len(names), val_fraction)
    return {key: "val" if val else "train" for key, val in zip(names, is_val.tolist(), strict=True)}


def held_out(names: Iterable[str], count: int, val_fraction: float) -> Bool:
    """Return for each of so many names whether it is held out; see `split_videos`."""
    draws = np.fromiter(map(split_draw, names), np.float64, count)
    if not len(draws) or draws.min() == draws.max():
        return np.zeros(len(draws), np.bool_)
    is_val: Bool = draws < val_fraction
    if val_fraction and is_val.min() == is_val.max():
        is_val[draws == draws.min()] ^= True
    return is_val
