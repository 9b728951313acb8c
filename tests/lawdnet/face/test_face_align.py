"""Images come from a formula, so that the expected content of a crop is known at any sub-pixel position."""

import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lawdnet.face import align
from lawdnet.face.geometry import TEMPLATE_25x2, crop_height, template_px
from lawdnet.face.mask import paste_alpha
from lawdnet.face.points import ALIGN_POINTS
from lawdnet.types import Float32

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
GOLDEN = SHARED / "reference" / "golden.npz"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no golden numbers beside the repository")
WIDTH, HEIGHT = 80, crop_height(80)
POSES = list(product((0.2, 0.45, 0.7, 1.0, 1.6, 4.0), (0, 12, 90)))


def image(x: NDArray[np.float64], y: NDArray[np.float64], wavelength: float) -> NDArray[np.float32]:
    """Return a smooth colour image at the given positions."""
    u, v = 2 * np.pi * x / wavelength, 2 * np.pi * y / wavelength
    channels = [np.sin(u + 0.4) * np.cos(0.7 * v), np.sin(v + 1), np.cos(0.6 * (u + v))]
    return (127 + 100 * np.stack(channels, -1)).astype(np.float32)


def grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return x, y


def pose(scale: float, degrees: float, centre: tuple[float, float]) -> Float32:
    """Return the matrix frame px → crop px that maps `centre` to the middle of the crop."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3, dtype=np.float32)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([WIDTH / 2, HEIGHT / 2]) - linear @ centre
    return matrix


def scene(scale: float, degrees: float) -> tuple[NDArray[np.float32], Float32, float]:
    """Return a frame with room around the crop, its matrix, and the wavelength of its content."""
    side, wavelength = int(1.8 * HEIGHT / scale), 30 * max(1 / scale, 1)
    frame = image(*grid(side, side), wavelength)
    return frame, pose(scale, degrees, (side / 2 + 0.3, side / 2 - 0.2)), wavelength


def drift(expected: NDArray[np.float32], got: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the (x, y) shift in px between two images, by least squares on the gradient."""
    dy, dx = np.gradient(expected.astype(np.float64), axis=(0, 1))
    gradient = np.stack([dx.ravel(), dy.ravel()], 1)
    shift, *_ = np.linalg.lstsq(gradient, (expected.astype(np.float64) - got).ravel(), rcond=None)
    return np.abs(shift)


def face_68(matrix: Float32, crop_width: int) -> Float32:
    """Return points that `matrix` maps exactly to the template."""
    points = np.zeros((68, 2), np.float32)
    points[ALIGN_POINTS] = align.transform_points(template_px(crop_width), np.linalg.inv(matrix))
    return points


@needs_golden
def test_template_is_the_published_one() -> None:
    np.testing.assert_allclose(TEMPLATE_25x2, np.load(GOLDEN)["align_template_25_normalised"], rtol=1e-6)


@needs_golden
@pytest.mark.parametrize("width", [320, 360])
def test_matrices_are_the_published_ones(width: int) -> None:
    golden = np.load(GOLDEN)
    matrices = align.fit_all(golden["align_landmarks"], width)
    np.testing.assert_allclose(matrices[:, :2, :2], golden[f"align_matrix_{width}"][:, :2, :2], atol=1e-5)
    np.testing.assert_allclose(matrices, golden[f"align_matrix_{width}"], atol=1e-3)


@pytest.mark.parametrize(("scale", "degrees"), POSES)
def test_fit_recovers_a_known_pose(scale: float, degrees: float) -> None:
    matrix = pose(scale, degrees, (1500, 700))
    np.testing.assert_allclose(align.fit_all(face_68(matrix, WIDTH)[None], WIDTH)[0], matrix, rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 512.3, 1e30])
def test_points_without_a_pose_give_nan(bad: float) -> None:
    good = face_68(pose(0.5, 5, (300, 300)), WIDTH)
    matrices = align.fit_all(np.stack([good, np.full_like(good, bad), good]), WIDTH)
    np.testing.assert_array_equal(np.isnan(matrices).all((1, 2)), [False, True, False])
    assert np.isfinite(matrices[[0, 2]]).all()


def test_fit_of_no_frames_is_empty() -> None:
    assert align.fit_all(np.zeros((0, 68, 2), np.float32), WIDTH).shape == (0, 3, 3)


def test_transform_takes_one_matrix_or_one_per_frame() -> None:
    matrices = np.stack([pose(0.5, 10, (40, 50)), pose(2, -30, (90, 20))])
    points = np.random.default_rng(0).uniform(0, 500, (2, 68, 2)).astype(np.float32)
    each = align.transform_points(points, matrices)
    homogeneous = np.concatenate([points, np.ones((2, 68, 1))], -1)
    np.testing.assert_allclose(each[1], (homogeneous[1] @ matrices[1].T)[:, :2], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(align.transform_points(points, matrices[0])[0], each[0])
    np.testing.assert_array_equal(align.transform_points(points[1, 7], matrices[1]), each[1, 7])


def test_scaled_matrix_keeps_the_outline_of_the_crop() -> None:
    """The corners of the crop, half a px outside the centres of the corner px, must stay its corners."""
    matrix = pose(0.8, 20, (200, 300))
    corners = np.array([(-0.5, -0.5), (WIDTH - 0.5, HEIGHT - 0.5)])
    in_frame = align.transform_points(corners, np.linalg.inv(matrix))
    bigger = align.transform_points(in_frame, align.scale_matrix(matrix, WIDTH, 4 * WIDTH))
    np.testing.assert_allclose(bigger, [(-0.5, -0.5), (4 * WIDTH - 0.5, 4 * HEIGHT - 0.5)], atol=1e-2)


@pytest.mark.parametrize(("scale", "degrees"), POSES)
def test_crop_shows_what_the_matrix_says(scale: float, degrees: float) -> None:
    frame, matrix, wavelength = scene(scale, degrees)
    crop = align.crop_face(frame, matrix, WIDTH)
    places = align.transform_points(np.stack(grid(HEIGHT, WIDTH), -1), np.linalg.inv(matrix.astype(np.float64)))
    expected = image(places[..., 0], places[..., 1], wavelength)
    assert crop.shape == (HEIGHT, WIDTH, 3)
    assert drift(expected, crop).max() < 0.01
    np.testing.assert_allclose(crop, expected, atol=2)


@pytest.mark.parametrize(("scale", "degrees"), POSES)
def test_pasting_a_crop_back_gives_the_frame(scale: float, degrees: float) -> None:
    frame, matrix, _ = scene(scale, degrees)
    pasted = align.paste_face(
        frame, align.crop_face(frame, matrix, WIDTH), matrix, np.ones((HEIGHT, WIDTH), np.float32)
    )
    middle, radius = len(frame) // 2, int(0.4 * WIDTH / scale)
    inner = np.s_[middle - radius : middle + radius, middle - radius : middle + radius]
    assert drift(frame[inner], pasted[inner]).max() < 0.02
    np.testing.assert_allclose(pasted[inner], frame[inner], atol=4)


def test_uint8_images_stay_uint8_and_the_frame_is_not_changed() -> None:
    frame = scene(0.45, 12)[0].astype(np.uint8)
    before, matrix = frame.copy(), scene(0.45, 12)[1]
    crop = align.crop_face(frame, matrix, WIDTH)
    pasted = align.paste_face(frame, 255 - crop, matrix, paste_alpha(HEIGHT, WIDTH))
    assert crop.dtype == pasted.dtype == np.uint8
    assert (pasted != frame).any()
    np.testing.assert_array_equal(frame, before)


def test_fine_detail_is_averaged_where_a_large_face_is_shrunk() -> None:
    """A checkerboard of single px must become grey, not a random pattern of black and white."""
    checkers = (np.indices((700, 700)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    crop = align.crop_face(checkers, pose(0.2, 8, (350, 350)), WIDTH)
    assert np.abs(crop.astype(int) - 127).max() < 40


def test_a_face_four_times_the_crop_is_pasted_without_holes() -> None:
    frame = np.zeros((4 * HEIGHT, 4 * WIDTH, 3), np.uint8)
    matrix = pose(0.25, 3, (2 * WIDTH, 2 * HEIGHT))
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    pasted = align.paste_face(frame, white, matrix, np.ones((HEIGHT, WIDTH), np.float32))
    places = align.transform_points(np.stack(grid(*frame.shape[:2]), -1), matrix)
    inside = ((places > 0) & (places < (WIDTH - 1, HEIGHT - 1))).all(-1)
    assert inside.mean() > 0.8
    assert (pasted[inside] == 255).all()


@pytest.mark.parametrize(("scale", "degrees"), POSES)
def test_pixels_without_opacity_are_untouched_bit_for_bit(scale: float, degrees: float) -> None:
    side = int(1.8 * HEIGHT / scale)
    frame = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    matrix = pose(scale, degrees, (side / 2, side / 2))
    alpha = np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[40:60, 30:50] = 1
    pasted = align.paste_face(frame, np.full((HEIGHT, WIDTH, 3), 7, np.uint8), matrix, alpha)
    places = align.transform_points(np.stack(grid(side, side), -1), matrix)
    reach = max(1, 2 * scale)
    opaque = ((places > (30, 40)) & (places < (49, 59))).all(-1) if scale <= 1 else np.zeros(1, bool)
    outside = ~((places > (30 - reach, 40 - reach)) & (places < (49 + reach, 59 + reach))).all(-1)
    np.testing.assert_array_equal(pasted[outside], frame[outside])
    assert (pasted[opaque.nonzero()] == 7).all()
    assert (pasted != frame).any()


def test_outside_a_turned_opaque_crop_nothing_changes() -> None:
    frame = np.full((300, 300, 3), 50, np.uint8)
    matrix = pose(0.5, 30, (150, 150))
    opaque = np.ones((HEIGHT, WIDTH), np.float32)
    pasted = align.paste_face(frame, np.full((HEIGHT, WIDTH, 3), 250, np.uint8), matrix, opaque)
    places = align.transform_points(np.stack(grid(300, 300), -1), matrix)
    outside = ((places < -1) | (places > (WIDTH, HEIGHT))).any(-1)
    assert (pasted[outside] == 50).all()
    assert (pasted[~outside] > 50).mean() > 0.98


def test_the_soft_edge_of_an_enlarged_crop_is_not_cut_off() -> None:
    """One opaque px, enlarged 10 times: its opacity falls linearly to 0 at 10 px from its centre."""
    alpha = np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[50, 40] = 1
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    pasted = align.paste_face(np.zeros((1200, 900, 3), np.uint8), white, pose(0.1, 0, (400, 520)), alpha)
    distance = np.abs(np.arange(900) - 400)
    np.testing.assert_allclose(pasted[500, :, 0], 255 * np.clip(1 - distance / 10, 0, 1), atol=1)


def test_every_value_survives_where_alpha_is_zero_inside_the_region() -> None:
    frame = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    alpha = np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[0, 0] = alpha[15, 15] = 1
    crop = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    pasted = align.paste_face(frame, crop, np.eye(3, dtype=np.float32), alpha)
    expected = frame.copy()
    expected[0, 0] = expected[15, 15] = 200
    np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("centre", [(0, 0), (119, 0), (0, 99), (119, 99), (60, -5)])
def test_a_face_partly_outside_repeats_the_edge_and_pastes_what_is_inside(
    scale: float, centre: tuple[float, float]
) -> None:
    frame = np.random.default_rng(2).integers(0, 100, (100, 120, 3), dtype=np.uint8)
    frame[:10], frame[-10:], frame[:, :10], frame[:, -10:] = (255,) * 4
    matrix = pose(scale, 0, centre)
    crop = align.crop_face(frame, matrix, WIDTH)
    places = align.transform_points(np.stack(grid(HEIGHT, WIDTH), -1), np.linalg.inv(matrix))
    beyond = ((places < -1) | (places > (120, 100))).any(-1)
    assert beyond.any()
    assert (crop[beyond] == 255).all()
    alpha = np.ones((HEIGHT, WIDTH), np.float32)
    pasted = align.paste_face(frame, np.full_like(crop, 9), matrix, alpha)
    nearest = tuple(np.clip(np.rint(centre), 0, (119, 99)).astype(int)[::-1])
    assert (pasted[nearest] == 9).all()


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("centre", [(-5000, 50), (5000, 50), (60, -5000), (60, 5000)])
def test_a_face_wholly_outside_crops_the_edge_and_pastes_nothing(scale: float, centre: tuple[float, float]) -> None:
    frame = np.full((100, 120, 3), 33, np.uint8)
    matrix = pose(scale, 15, centre)
    crop = align.crop_face(frame, matrix, WIDTH)
    assert (crop == 33).all()
    pasted = align.paste_face(frame, 0 * crop, matrix, np.ones((HEIGHT, WIDTH), np.float32))
    np.testing.assert_array_equal(pasted, frame)


def test_pasting_nothing_changes_nothing() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    crop, alpha = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.float32)
    np.testing.assert_array_equal(align.paste_face(frame, crop, pose(1, 0, (100, 100)), alpha), frame)


@pytest.mark.parametrize("matrix", [np.full((3, 3), np.nan), np.zeros((3, 3)), np.eye(2)])
def test_a_matrix_without_inverse_is_refused(matrix: NDArray[np.float64]) -> None:
    frame, crop = np.zeros((50, 50, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ValueError, match="matrix"):
        align.crop_face(frame, matrix.astype(np.float32), WIDTH)
    with pytest.raises(ValueError, match="matrix"):
        align.paste_face(frame, crop, matrix.astype(np.float32), np.ones((HEIGHT, WIDTH), np.float32))


def test_alpha_of_another_size_is_refused() -> None:
    frame, crop = np.zeros((50, 50, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ValueError, match="alpha"):
        align.paste_face(frame, crop, np.eye(3, dtype=np.float32), np.ones((5, 5), np.float32))


def test_cropping_costs_as_much_as_the_crop_not_as_the_frame() -> None:
    """A 4K frame takes no longer than a small one, because only the region is read."""

    def seconds(side: int) -> float:
        frame = np.zeros((side, side, 3), np.uint8)
        matrix = pose(0.8, 5, (side / 2, side / 2))
        times = []
        for _ in range(15):
            start = time.perf_counter()
            align.crop_face(frame, matrix, WIDTH)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(4000) < 5 * seconds(300) + 1e-3
