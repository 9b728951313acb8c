from __future__ import annotations

import numpy as np

from lawdnet.data.lips import lip_shapes


def faces(frames: int = 12, seed: int = 0) -> np.ndarray:
    """Faces whose mouths move, the eyes 100 px apart."""
    rng = np.random.default_rng(seed)
    points = np.repeat(rng.uniform(0, 200, (1, 68, 2)), frames, 0)
    points[:, 48:] += rng.normal(0, 3, (frames, 20, 2))
    points[:, 36], points[:, 45] = (50, 80), (150, 80)
    return points.astype(np.float32)


def test_lip_shapes_are_deviations_from_the_mean_in_usual_ones() -> None:
    shapes = lip_shapes(faces())
    assert shapes.shape == (12, 40)
    np.testing.assert_allclose(shapes.mean(0), 0, atol=1e-5)
    assert 0.8 < shapes.std() < 1.2  # 3 px of 100


def test_lip_shapes_do_not_depend_on_where_and_how_large_a_face_is() -> None:
    points = faces()
    np.testing.assert_allclose(lip_shapes(points * 2.5 + (40, -7)), lip_shapes(points), atol=1e-4)


def test_an_open_mouth_has_its_lower_lip_below_the_mean() -> None:
    points = faces()
    points[6:, 66, 1] += 20
    column = 2 * (66 - 48) + 1
    assert (lip_shapes(points)[6:, column] > 1).all()
    assert (lip_shapes(points)[:6, column] < -1).all()
