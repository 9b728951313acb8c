from pathlib import Path

import numpy as np
import pytest

from lawdnet.face.geometry import mouth_box, stage_size, template_px
from lawdnet.face.mask import keep_mask, paste_alpha

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
