"""Videos that a user may have and training must not see: each is a row with a reason, or scores let `select` drop it.

Faces are found by the real network, where ../shared has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.rules import parse_rules
from lawdnet.data.selection import choose
from lawdnet.synthetic import TalkingHead, make_identity, make_motion, make_speech
from lawdnet.types import UInt8
from lawdnet.video import VideoWriter
from pipelines.build.build import build
from tests.support.in_process import map_in_process
from tests.support.real_weights import real_weights

FRAMES = 63
Frames = Iterator[UInt8]
VOICE = make_speech(FRAMES / 25, 3)
RULES = ["mouth_motion>=0.01", "face_px>=60", "abs(yaw)<=45"]
"""What docs/landmarks.md advises against them."""


def talking(size: tuple[int, int] = (160, 128), identity: int = 1) -> Frames:
    """A drawn head, which is a cartoon, who speaks."""
    head = TalkingHead(make_identity(identity), size)
    for pose, opening, spread in zip(make_motion(2, FRAMES), VOICE.opening_T, VOICE.spread_T, strict=True):
        yield head.draw(pose, float(opening), float(spread))[0]


def statue() -> Frames:
    """A face that never moves, under a voice: a statue, a photograph, a voice-over."""
    return iter([next(talking())] * FRAMES)


def photo_on_the_wall() -> Frames:
    """The same in the corner of a room; the camera trembles."""
    photo = next(talking())
    for shift in np.random.default_rng(0).integers(0, 3, (FRAMES, 2)):
        room = np.full((288, 352, 3), (120, 110, 90), np.uint8)
        y, x = 40 + shift
        room[y : y + 160, x : x + 128] = photo
        yield room


def smiley() -> Frames:
    image = np.full((200, 200, 3), 255, np.uint8)
    cv2.circle(image, (100, 100), 80, (255, 220, 0), -1)
    for x in (70, 130):
        cv2.circle(image, (x, 80), 10, (0, 0, 0), -1)
    cv2.ellipse(image, (100, 115), (40, 25), 0, 0, 180, (0, 0, 0), 5)
    return iter([image] * FRAMES)


def landscape() -> Frames:
    """A voice-over without the speaker in view."""
    hills = np.zeros((160, 240, 3), np.uint8)
    hills[:90], hills[90:] = (120, 170, 230), (60, 120, 50)
    return iter([np.roll(hills, shift, 1) for shift in range(FRAMES)])


def two_people() -> Frames:
    for left, right in zip(talking(), talking(identity=4), strict=True):
        yield np.concatenate([left, np.full((160, 40, 3), 90, np.uint8), right], 1)


def scaled(factor: float, size: tuple[int, int]) -> Frames:
    """The head at another size, in the middle of a frame of this height and width, or of what fits into it."""
    for image in talking():
        face = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        face = face[: size[0], : size[1]]
        frame = np.full((*size, 3), 90, np.uint8)
        y, x = ((whole - part) // 2 for whole, part in zip(size, face.shape, strict=False))
        frame[y : y + face.shape[0], x : x + face.shape[1]] = face
        yield frame


def mask() -> Frames:
    """A plain mask from nose to chin."""
    for image in talking():
        cv2.ellipse(image, (64, 108), (34, 30), 0, 0, 360, (200, 220, 230), -1)
        yield image


SCENES: dict[str, tuple[Callable[[], Frames], dict[str, Any]]] = {
    "talking": (talking, {}),
    "statue": (statue, {}),
    "photo on the wall": (photo_on_the_wall, {}),
    "smiley": (smiley, {}),
    "landscape": (landscape, {}),
    "mask": (mask, {}),
    "two people": (two_people, {}),
    "160 px": (lambda: scaled(1.0, (160, 160)), {}),
    "tiny face": (lambda: scaled(0.4, (288, 352)), {}),
    "15 fps": (talking, {"fps": 15}),
}


def film(path: Path, frames: Frames, fps: int = 25) -> None:
    first = next(frames)
    height, width = first.shape[:2]
    every = [first, *frames]
    shown = [every[round(tick * 25 / fps)] for tick in range(FRAMES * fps // 25)]
    with VideoWriter(path, height=height, width=width, fps=fps, audio=VOICE.audio_S, sample_rate=16_000) as writer:
        for image in shown:
            writer.write(image)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    weights = real_weights("face_landmarker")
    folder = tmp_path_factory.mktemp("odd")
    for name, (scene, options) in SCENES.items():
        film(folder / f"{name}.mp4", scene(), **options)
    config = BuildConfig(crop_width=80, val_fraction=0.0, near_duplicates="keep", face="all")
    return build(
        folder, tmp_path_factory.mktemp("out") / "dataset", config, weights_dir=weights, execute=map_in_process
    )


def paths(dataset: Dataset, *rules: str) -> set[str]:
    """Names of the videos of which something is left by the rules."""
    named = {row["video_id"]: row["path"].removesuffix(".mp4") for row in dataset.videos().to_pylist()}
    return {named[name] for name in choose(dataset, parse_rules(rules)).kept["video_id"].to_pylist()}


def scores(dataset: Dataset, name: str) -> dict[str, float]:
    """The scores of a video's first segment."""
    (video_id,) = (row["video_id"] for row in dataset.videos().to_pylist() if row["path"] == f"{name}.mp4")
    row = next(row for row in dataset.index().to_pylist() if row["video_id"] == video_id)
    return {key.removeprefix("score_"): value for key, value in row.items() if key.startswith("score_")}


def test_what_has_no_face_is_a_row_with_a_reason(dataset: Dataset) -> None:
    refused = {row["path"]: row["reason"] for row in dataset.videos().to_pylist() if row["status"] != "accepted"}
    assert refused == {"landscape.mp4": "no_face", "smiley.mp4": "no_face"}


def test_a_face_that_does_not_speak_can_be_dropped(dataset: Dataset) -> None:
    silent = {"statue", "photo on the wall", "mask"}
    assert silent <= paths(dataset)
    assert paths(dataset, "mouth_motion>=0.01") == paths(dataset) - silent
    assert paths(dataset, *RULES) == {"talking", "two people", "160 px", "15 fps"}


def test_small_frames_and_other_rates_are_used(dataset: Dataset) -> None:
    """At 15 fps the clip is as long, and the mouth moves as much; a face in 160 px is as large as it is."""
    usual = scores(dataset, "talking")
    for name in ("160 px", "15 fps"):
        found = scores(dataset, name)
        assert found["face_px"] == pytest.approx(usual["face_px"], rel=0.02)
        assert found["mouth_motion"] == pytest.approx(usual["mouth_motion"], rel=0.1)
    assert scores(dataset, "tiny face")["face_px"] == pytest.approx(0.4 * usual["face_px"], rel=0.02)


def test_each_of_two_people_is_there(dataset: Dataset) -> None:
    """Who of them speaks is decided by a sync network (--face sync), or by hand (--face NUMBER)."""
    rows = [row for row in dataset.index().to_pylist() if row["segment_id"].startswith("two_people")]
    assert len({row["track"] for row in rows}) == 2
    assert {row["start_frame"] for row in rows} == {0}


@pytest.mark.slow
def test_4k_is_used(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    film(tmp_path / "source" / "4k.mp4", scaled(10.0, (2160, 3840)))
    config = BuildConfig(crop_width=320, val_fraction=0.0)
    weights = real_weights("face_landmarker")
    dataset = build(tmp_path / "source", tmp_path / "dataset", config, weights_dir=weights, execute=map_in_process)
    assert len(dataset.segments()) == 1
    assert scores(dataset, "4k")["face_px"] == pytest.approx(770, rel=0.05)
