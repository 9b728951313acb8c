"""Other looks of a sample: mirrored, and in other light."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.data.augment import Look, draw_look
from lawdnet.data.lips import lip_points, lip_shapes
from lawdnet.face.points import MIRRORED_MOUTH, MOUTH
from lawdnet.types import Float32

SAME = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
MIRROR = Look(is_mirrored=True, table_256x3=SAME)
WIDTH = 80


@pytest.fixture
def landmarks_T68x2() -> Float32:
    return np.random.default_rng(0).uniform(0, WIDTH, (7, 68, 2)).astype(np.float32)


def test_in_a_mirror_lips_are_those_of_the_mirrored_image(landmarks_T68x2: Float32) -> None:
    mirrored = landmarks_T68x2.copy()
    mirrored[:, MOUTH] = mirrored[:, MOUTH][:, MIRRORED_MOUTH]
    mirrored[..., 0] = WIDTH - 1 - mirrored[..., 0]
    np.testing.assert_allclose(MIRROR.lips(lip_points(landmarks_T68x2, WIDTH)), lip_points(mirrored, WIDTH), atol=1e-3)
    np.testing.assert_allclose(MIRROR.lips(lip_shapes(landmarks_T68x2)), lip_shapes(mirrored), atol=1e-2)


def test_twice_in_a_mirror_is_the_same(landmarks_T68x2: Float32) -> None:
    lips = lip_shapes(landmarks_T68x2)
    np.testing.assert_array_equal(MIRROR.lips(MIRROR.lips(lips)), lips)
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 8, 6, 3), np.uint8)
    np.testing.assert_array_equal(MIRROR.images(images), images[..., ::-1, :])
    np.testing.assert_array_equal(MIRROR.images(MIRROR.images(images)), images)


def test_light_changes_every_image_of_a_sample_alike() -> None:
    look = draw_look(np.random.default_rng(3))
    image = np.random.default_rng(1).integers(0, 256, (8, 6, 3), np.uint8)
    changed = look.images(np.stack([image, image]))
    np.testing.assert_array_equal(changed[0], changed[1])
    np.testing.assert_array_equal(changed[0], look.images(image))
    assert (np.diff(look.table_256x3.astype(int), axis=0) >= 0).all(), "brighter stays brighter"


def test_looks_differ_and_stay_plausible() -> None:
    looks = [draw_look(np.random.default_rng(seed)) for seed in range(200)]
    assert 60 < sum(look.is_mirrored for look in looks) < 140
    grey = np.array([look.table_256x3[128].mean() for look in looks])
    assert 100 < np.median(grey) < 156
    assert grey.std() > 15
    assert all(np.ptp(look.table_256x3[128].astype(int)) < 110 for look in looks)


def test_the_same_seed_gives_the_same_look() -> None:
    one, other = (draw_look(np.random.default_rng([4, 5])) for _ in range(2))
    assert one.is_mirrored == other.is_mirrored
    np.testing.assert_array_equal(one.table_256x3, other.table_256x3)
