import numpy as np
import pytest

from lawdnet.face import geometry
from lawdnet.face.points import ALIGN_POINTS


@pytest.mark.parametrize(("mouth", "size"), [(64, (104, 80)), (128, (208, 160)), (256, (416, 320)), (288, (468, 360))])
def test_stage_sizes_are_the_published_ones_and_fit_the_crop(mouth: int, size: tuple[int, int]) -> None:
    assert geometry.stage_size(mouth) == size
    assert geometry.crop_height(size[1]) == size[0]


def test_mouth_box_is_a_square_of_the_mouth_size_inside_the_crop() -> None:
    height, width = geometry.stage_size(128)
    box = geometry.mouth_box(128)
    assert np.zeros((height, width))[box].shape == (128, 128)
    assert (box[0].start, box[1].start) == (64, 16)


@pytest.mark.parametrize("mouth", [0, -64, 100])
def test_sizes_that_give_no_whole_crop_are_refused(mouth: int) -> None:
    with pytest.raises(ValueError, match=f"mouth_px: {mouth}"):
        geometry.stage_size(mouth)


def test_template_is_mirror_symmetric_about_the_middle_of_the_crop() -> None:
    template = geometry.template_px(320)
    assert template.shape == (len(ALIGN_POINTS), 2)
    np.testing.assert_allclose(template[:5, 0] - 160, 160 - template[9:4:-1, 0], atol=1e-3)
    assert (template >= 0).all()
    assert (template < (320, 416)).all()
