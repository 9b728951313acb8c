import numpy as np
import pytest

from lawdnet.evaluation.image import MAX_PSNR, psnr, ssim
from lawdnet.types import UInt8


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


@pytest.mark.parametrize("seed", [0, 1])
def test_ssim_equals_the_installed_scikit_image(seed: int) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (33, 47, 3), np.uint8)
    second = np.clip(first + rng.normal(0, 20, first.shape), 0, 255).astype(np.uint8)
    expected = metrics.structural_similarity(
        first, second, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(first, second) == pytest.approx(expected, abs=1e-6)
    assert psnr(first, second) == pytest.approx(metrics.peak_signal_noise_ratio(first, second), abs=1e-9)


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
