"""Perceptual hashes: what a re-encoding changes is little, what another video changes is much."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from lawdnet.data.near_duplicates import (
    MOST_NEIGHBOURS,
    PROJECTION,
    SAMPLED,
    STARTS,
    MotionHasher,
    encode,
    near_duplicates,
)
from lawdnet.synthetic import TalkingHead, make_identity, make_motion
from lawdnet.types import UInt8


def crops(motion: int, ticks: int = 75) -> list[UInt8]:
    """One person; the crops do not follow the face, which is more motion than in a dataset."""
    head = TalkingHead(make_identity(1), (104, 80))
    opening = np.random.default_rng(motion).uniform(0, 1, ticks)
    return [head.draw(pose, float(opening[t]), 0.0)[0] for t, pose in enumerate(make_motion(motion, ticks))]


def hashed(images: list[UInt8], first: int = 0) -> str:
    hasher = MotionHasher()
    for tick, image in enumerate(images, first):
        hasher.see(tick, image)
    return encode([hasher])


def compressed(image: UInt8, tick: int) -> UInt8:
    """Half as large, then as a JPEG of low quality, and of another brightness that flickers."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    image = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    return np.clip(image.astype(np.int16) + 6 * (tick // 12 % 3), 0, 255).astype(np.uint8)


def test_a_re_encoding_is_found_and_another_take_of_the_person_is_not() -> None:
    take, other = crops(1), crops(2)
    hashes = {
        "take": hashed(take),
        "other": hashed(other),
        "copy": hashed([compressed(image, tick) for tick, image in enumerate(take)]),
    }
    assert hashes["copy"] != hashes["take"]
    assert near_duplicates(hashes) == {"copy": "take"}


def test_windows_begin_where_the_thumbnails_are_complete() -> None:
    take = crops(1)
    assert [part.partition(":")[0] for part in hashed(take).split()] == ["0", "12", "24"]
    assert [part.partition(":")[0] for part in hashed(take, first=5).split()] == ["12", "24"]
    assert hashed(take, first=230).startswith("240:"), "and later, where the first seconds show no face"
    assert hashed(take[:48]) == ""
    assert max(SAMPLED) == max(STARTS) + 48


def test_a_face_that_does_not_move_has_no_hash() -> None:
    """Otherwise all stills would be near-duplicates of each other."""
    still = crops(1)[0]
    assert hashed([still] * 75) == ""
    noisy = [np.clip(still + np.random.default_rng(t).normal(0, 3, still.shape), 0, 255) for t in range(75)]
    assert hashed([image.astype(np.uint8) for image in noisy]) == ""


def test_the_first_face_counts_where_there_are_two() -> None:
    one, two = MotionHasher(), MotionHasher()
    for tick, (image, other) in enumerate(zip(crops(1), crops(2), strict=True)):
        if tick >= 12:
            one.see(tick, image)
        two.see(tick, other)
    assert encode([one, two]) == " ".join([hashed(crops(2)).split()[0], *hashed(crops(1)).split()[1:]])


def test_the_hash_is_the_same_for_ever() -> None:
    """Stored hashes are compared with those of later builds."""
    assert hashlib.sha256(PROJECTION.astype(np.int8).tobytes()).hexdigest()[:16] == "a0a39956745aae10"
    noise = np.random.RandomState(1).randint(0, 256, (49, 16, 16, 3)).astype(np.uint8)
    assert hashed(list(noise)) == "0:8779f3b06348e614"


def text(*hashes: int) -> str:
    return " ".join(f"{start}:{value:016x}" for start, value in zip(STARTS, hashes, strict=False))


def flipped(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        (text(0, 0), text(flipped(0, 16, 32), flipped(1, 17, 33)), True),  # three bits: a band is always equal
        (text(0, 0), text(flipped(*range(10)), flipped(*range(10))), True),
        (text(0, 0), text(flipped(*range(10)), flipped(*range(11))), False),
        (text(0, 0), text(0, flipped(*range(20))), True),  # the mean counts
        (text(0, 0), text(0, 0, 2**64 - 1), True),  # what only one has does not
        (text(0), text(0), False),  # one window is too little
        ("", "", False),
        (text(0, 0), "24:0000000000000000 36:0000000000000000", False),  # nothing at the same time
    ],
)
def test_what_is_near(one: str, other: str, is_near: bool) -> None:
    assert near_duplicates({"one": one, "other": other}) == ({"other": "one"} if is_near else {})


def test_many_copies_are_one_and_what_is_compared_is_limited() -> None:
    random = np.random.RandomState(0)
    copies = {
        f"copy {i}": text(*(flipped(*random.choice(64, 2, replace=False).tolist()) for _ in range(3)))
        for i in range(300)
    }
    assert near_duplicates(copies) == dict.fromkeys(list(copies)[1:], "copy 0")
    # all share one band, and nothing else: a video further away than the limit is not looked at
    crowd = {f"{i}": text(*((int(h) & ~0xFFFF) for h in random.randint(0, 2**63, 2))) for i in range(MOST_NEIGHBOURS)}
    near = {"first": text(0, 0), **crowd, "last": text(*[flipped(16, 32, 48, 17)] * 2)}
    assert near_duplicates(near) == {}
    del near["0"]
    assert near_duplicates(near) == {"last": "first"}
