"""The mouth's opening is read off images, for anyone, at any training size, blurred or dim."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from lawdnet.evaluation.mouth import mouth_opening_from_pixels
from lawdnet.face.align import crop_face, fit_all
from lawdnet.synthetic import Identity, TalkingHead, make_identity, make_motion, make_speech
from lawdnet.types import Float32, UInt8

WIDTHS = (40, 80, 120, 160)
PEOPLE = [make_identity(seed) for seed in (0, 4, 11)] + [
    replace(make_identity(1), beard="full", hair=(30, 24, 22)),
    replace(make_identity(13), beard="full", hair=(30, 24, 22), skin=(108, 70, 52), lip=(108, 44, 34)),
]


def drawn(who: Identity) -> tuple[Float32, dict[int, list[UInt8]]]:
    """Openings, and the aligned crops at every width, over five seconds of one person speaking."""
    head, speech, poses = TalkingHead(who), make_speech(5, who.seed + 50), make_motion(who.seed + 9, 125)
    crops: dict[int, list[UInt8]] = {width: [] for width in WIDTHS}
    for t in range(0, 125, 3):
        frame, points = head.draw(poses[t], float(speech.opening_T[t]), float(speech.spread_T[t]))
        for width in WIDTHS:
            crops[width].append(crop_face(frame, fit_all(points[None], width)[0], width))
    return speech.opening_T[::3], crops


@pytest.fixture(scope="module", params=PEOPLE, ids=["a", "b", "c", "black beard", "dark skin, black beard"])
def person(request: pytest.FixtureRequest) -> tuple[Float32, dict[int, list[UInt8]]]:
    return drawn(request.param)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("blur", [0, 1])
def test_follows_the_opening(person: tuple[Float32, dict[int, list[UInt8]]], width: int, blur: int) -> None:
    opening, crops = person
    pictures = [cv2.GaussianBlur(crop, (0, 0), 1) if blur else crop for crop in crops[width]]
    seen = [mouth_opening_from_pixels(np.asarray(picture, np.uint8)) for picture in pictures]
    assert np.corrcoef(opening, seen)[0, 1] > 0.98


def test_is_near_zero_when_shut_and_clear_of_it_when_open(person: tuple[Float32, dict[int, list[UInt8]]]) -> None:
    opening, crops = person
    seen = np.array([mouth_opening_from_pixels(crop) for crop in crops[120]])
    assert seen[opening == 0].max() < 0.05
    assert seen[opening > 0.6].min() > 0.07


def test_does_not_depend_on_the_light(person: tuple[Float32, dict[int, list[UInt8]]]) -> None:
    opening, crops = person
    crop = crops[80][int(np.argmax(opening))]
    dim = (crop * 0.7).astype(np.uint8)
    assert mouth_opening_from_pixels(dim) == pytest.approx(mouth_opening_from_pixels(crop), rel=0.03)


def test_changes_smoothly() -> None:
    """Small steps of the mouth make small steps of the measure: there is no threshold to cross."""
    head = TalkingHead(replace(make_identity(3), beard="none", grain=0.0))
    pose = make_motion(0, 1)[0]
    seen = []
    for opening in np.linspace(0, 1, 101):
        frame, points = head.draw(pose, float(opening), 0.0)
        seen.append(mouth_opening_from_pixels(crop_face(frame, fit_all(points[None], 80)[0], 80)))
    assert np.abs(np.diff(seen)).max() < 0.06 * (seen[-1] - seen[0])


@pytest.mark.parametrize("shape", [(104, 80), (104, 80, 4), (80, 80, 3), (26, 20, 3)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        mouth_opening_from_pixels(np.zeros(shape, np.uint8))
