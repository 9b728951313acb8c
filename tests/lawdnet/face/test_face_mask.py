from pathlib import Path

import numpy as np
import pytest

from lawdnet.face.geometry import TEMPLATE_25x2, mouth_box, stage_size, template_px
from lawdnet.face.mask import inside_jaw, keep_mask, paste_alpha
from lawdnet.types import Float32

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "reference" / "golden.npz"
MOUTHS = [32, 64, 128, 256, 288]


@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden numbers beside the repository")
@pytest.mark.parametrize("mouth", [64, 256, 288])
def test_keep_mask_is_the_published_one(mouth: int) -> None:
    height, width = stage_size(mouth)
    golden = np.load(GOLDEN)[f"mask_keep_{height}x{width}"]
    np.testing.assert_allclose(keep_mask(height, width), golden, atol=1e-5)


@pytest.mark.parametrize("mouth", MOUTHS)
def test_keep_mask_hides_the_mouth_and_keeps_the_rim(mouth: int) -> None:
    mask = keep_mask(*stage_size(mouth))
    left, right = np.rint(template_px(mouth * 5 // 4)[-2:]).astype(int)
    assert mask[left[1], left[0] : right[0]].max() < 1e-3
    assert mask[0].min() == 1
    assert mask[:, 0].min() == mask[:, -1].min() == 1
    assert 0 <= mask.min() <= mask.max() <= 1


def test_a_mask_smaller_than_its_canvas_keeps_its_area() -> None:
    """Antialiasing keeps the mean independent of the size."""
    means = [keep_mask(*stage_size(mouth)).mean() for mouth in (8, 16, 256)]
    np.testing.assert_allclose(means, means[-1], atol=0.01)


@pytest.mark.parametrize("mouth", MOUTHS)
def test_paste_alpha_is_opaque_over_the_mouth_and_zero_where_the_frame_was_kept(mouth: int) -> None:
    height, width = stage_size(mouth)
    alpha = paste_alpha(height, width)
    left, right = np.rint(template_px(width)[-2:]).astype(int)
    assert (alpha[left[1], left[0] : right[0] + 1] == 1).all()
    half_in_a_corner = 0.75
    assert alpha[keep_mask(height, width) > half_in_a_corner + 0.01].max() == 0
    assert alpha[mouth_box(mouth)].mean() > 0.5


def test_paste_alpha_has_no_edge_to_see() -> None:
    """The steepest step is a small part of the range, and the ramp starts and ends flat."""
    alpha = paste_alpha(416, 320).astype(np.float64)
    assert np.abs(np.diff(alpha, axis=0)).max() < 0.05
    assert np.abs(np.diff(alpha, axis=1)).max() < 0.05
    assert np.abs(np.diff(alpha[:, 160], n=2)).max() < 0.004


def test_masks_are_shared_and_cannot_be_changed() -> None:
    mask = keep_mask(104, 80)
    assert mask is keep_mask(104, 80)
    assert mask.dtype == paste_alpha(104, 80).dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0] = 5


def jaw(width: int, *, left: float = 0.05, right: float = 0.95) -> Float32:
    """A round jaw line in px of a crop, from ear to ear; its chin is at 1.05 crop widths."""
    angle = np.linspace(np.pi, 0, 17)
    middle, half = (left + right) / 2, (right - left) / 2
    return (np.stack([middle + half * np.cos(angle), 0.5 + 0.55 * np.sin(angle)], 1) * width).astype(np.float32)


@pytest.mark.parametrize("width", [40, 80, 320])
def test_nothing_is_pasted_beside_a_turned_head(width: int) -> None:
    height = round(1.3 * width)
    face = inside_jaw(height, width, jaw(width, right=0.7))
    alpha = paste_alpha(height, width) * face
    row = round(0.7 * width)
    assert alpha[row, round(0.35 * width)] == pytest.approx(1, abs=0.02)
    assert (alpha[:, round(0.74 * width) :] == 0).all()
    assert paste_alpha(height, width)[row, round(0.75 * width)] > 0.5  # which it would have been
    assert np.abs(np.diff(face[row])).max() < 2 / (0.06 * width)  # soft


def test_the_jaw_may_drop_but_not_widen() -> None:
    face = inside_jaw(416, 320, jaw(320))
    assert face[round(1.1 * 320), 160] > 0.9
    assert face[round(1.0 * 320), round(0.92 * 320)] == 0
    assert (face[: round(0.45 * 320), 60:260] == 1).all()  # nothing ends at the ears or at the top


def test_a_jaw_that_was_not_found_limits_nothing() -> None:
    points = jaw(80)
    points[3] = np.nan
    assert (inside_jaw(104, 80, points) == 1).all()


def test_the_mouth_region_lies_in_the_lower_face_and_an_unknown_one_is_refused() -> None:
    mouth, lower = paste_alpha(416, 320, "mouth"), paste_alpha(416, 320)
    assert ((mouth > 0) <= (lower > 0)).all()
    assert (mouth > 0).sum() < 0.5 * (lower > 0).sum()
    lips = TEMPLATE_25x2[-2:].mean(0) * 160 + (160, 208)
    assert mouth[int(lips[1]), int(lips[0])] == pytest.approx(1)
    with pytest.raises(ValueError, match="expected one of lower-face, mouth"):
        paste_alpha(416, 320, "nose")
