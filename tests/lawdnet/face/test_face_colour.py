import numpy as np
import pytest

from lawdnet.face.colour import MAX_SHIFT, match_colour
from lawdnet.face.mask import paste_alpha
from lawdnet.types import Float32, UInt8

HEIGHT, WIDTH = 104, 80


def skin(seed: int = 0) -> UInt8:
    """Smooth, of medium brightness."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    wave = 130 + 20 * np.sin(x / 9 + seed) + 15 * np.cos(y / 7)
    return np.stack([wave, wave * 0.8, wave * 0.7], -1).astype(np.uint8)


def seam_difference(made: UInt8, true: UInt8, alpha: Float32) -> float:
    seam = (alpha > 0.1) & (alpha < 0.9)
    return float(np.abs((made.astype(float) - true)[seam].mean(0)).max())


def test_a_tint_is_removed_and_the_pattern_stays() -> None:
    true, alpha = skin(), paste_alpha(HEIGHT, WIDTH)
    tinted = np.clip(true.astype(int) + np.array([9, -6, 4]), 0, 255).astype(np.uint8)
    matched = match_colour(tinted, true, alpha)
    assert seam_difference(tinted, true, alpha) > 5
    assert seam_difference(matched, true, alpha) < 0.6
    assert np.abs(matched.astype(int) - true).max() <= 2


def test_contrast_is_matched() -> None:
    true, alpha = skin(), paste_alpha(HEIGHT, WIDTH)
    mean = true[alpha > 0].mean(0)
    flat = ((true - mean) * 0.9 + mean).round().astype(np.uint8)
    matched = match_colour(flat, true, alpha)
    assert np.abs(matched.astype(int) - true).mean() < 0.5 * np.abs(flat.astype(int) - true).mean()


def test_what_matches_already_is_the_same_array() -> None:
    made = skin()
    assert match_colour(made, skin(), paste_alpha(HEIGHT, WIDTH)) is made


def test_an_open_mouth_does_not_change_the_colour() -> None:
    true, alpha = skin(), paste_alpha(HEIGHT, WIDTH)
    made = true.copy()
    made[alpha > 0.95] = (60, 10, 10)
    assert match_colour(made, true, alpha) is made


@pytest.mark.parametrize("made", [np.zeros((HEIGHT, WIDTH, 3), np.uint8), 255 - skin()])
def test_garbage_is_left_alone(made: UInt8) -> None:
    assert match_colour(made, skin(), paste_alpha(HEIGHT, WIDTH)) is made


def test_no_seam_and_extreme_tints_are_harmless() -> None:
    made, true = skin(), skin()
    assert match_colour(made, true, np.ones((HEIGHT, WIDTH), np.float32)) is made
    bright = np.clip(true.astype(int) + 30, 0, 255).astype(np.uint8)
    change = match_colour(bright, true, paste_alpha(HEIGHT, WIDTH)).astype(int) - bright
    assert np.abs(change).max() <= MAX_SHIFT + 5
