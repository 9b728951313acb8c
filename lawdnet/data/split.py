"""Which videos are held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


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
    draws = {name: split_draw(name) for name in names.values()}
    if len(draws) == 1:
        return dict.fromkeys(names, "train")
    sides = {name: "val" if draw < val_fraction else "train" for name, draw in draws.items()}
    if val_fraction and len(set(sides.values())) == 1:
        smallest = min(draws, key=lambda name: draws[name])
        sides[smallest] = "train" if sides[smallest] == "val" else "val"
    return {key: sides[name] for key, name in names.items()}
