import numpy as np
import pytest

from lawdnet.evaluation.image import MAX_PSNR, lmd, psnr, ssim
from lawdnet.types import Float32, UInt8


def pair() -> tuple[UInt8, UInt8]:
    y, x = np.mgrid[:40, :48]
    waves = [127 + 100 * np.sin(x / 5 + k) * np.cos(y / 4 - k) for k in range(3)]
    first = np.stack(waves, -1).astype(np.uint8)
    second = np.clip(first.astype(int) + (x * 7 + y * 3)[..., None] % 23 - 11, 0, 255).astype(np.uint8)
    return first, second


def test_psnr_and_ssim_equal_scikit_image() -> None:
    """Numbers of scikit-image 0.25.2 with the options that the docstring of `ssim` names."""
    assert psnr(*pair()) == pytest.approx(31.69411824585798, abs=1e-9)
    assert ssim(*pair()) == pytest.approx(0.953075990845389, abs=1e-6)


def test_equal_images_have_the_best_values() -> None:
    first, _ = pair()
    assert psnr(first, first.copy()) == MAX_PSNR
    assert ssim(first, first.copy()) == pytest.approx(1, abs=1e-6)


def test_the_smallest_difference_is_below_the_best_value() -> None:
    first = np.zeros((2160, 3840, 3), np.uint8)
    second = first.copy()
    second[0, 0, 0] = 1
    assert psnr(first, second) < MAX_PSNR + 1e-9
    assert psnr(first, 255 - first) == pytest.approx(0)


def test_ssim_of_opposite_images_is_low() -> None:
    first, _ = pair()
    assert ssim(first, 255 - first) < 0


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_images_must_match(measure: object) -> None:
    first, second = pair()
    with pytest.raises(ValueError, match="expected uint8 of equal size"):
        measure(first, second[:-1])  # type: ignore[operator]
    with pytest.raises(ValueError, match="expected uint8 of equal size"):
        measure(first, second.astype(np.float32))  # type: ignore[operator]


def test_ssim_needs_room_for_its_window() -> None:
    small = np.zeros((10, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="11×11"):
        ssim(small, small)


def faces(frames: int) -> Float32:
    points = np.random.default_rng(0).uniform(0, 100, (frames, 68, 2))
    points[:, 36], points[:, 45] = (10, 20), (50, 20)
    return points.astype(np.float32)


def test_lmd_is_the_mouths_distance_in_eye_distances() -> None:
    real = faces(3)
    moved = real.copy()
    moved[:, 48:] += (6, 8)
    assert lmd(real, moved) == pytest.approx(10 / 40)
    assert lmd(3 * real, 3 * moved) == pytest.approx(10 / 40)
    moved[:, :48] += 100  # the rest of the face does not count
    assert lmd(real, moved) == pytest.approx(10 / 40)
    assert lmd(real, real) == 0


def test_lmd_leaves_out_frames_without_a_face() -> None:
    real = faces(3)
    moved = real + np.float32(4)
    real[1], moved[2] = np.nan, np.nan
    assert lmd(real, moved) == pytest.approx(np.hypot(4, 4) / 40)
    assert np.isnan(lmd(real[1:2], moved[1:2]))
    with pytest.raises(ValueError, match="expected equal shapes T×68×2"):
        lmd(real, moved[:2])
