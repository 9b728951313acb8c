"""Scores of a segment: signs, ranges and what each reacts to."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.data.quality import (
    ImageScores,
    audio_scores,
    face_angles,
    image_scores,
    segment_scores,
)
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.lips import LOWER, UPPER
from lawdnet.face.points import OUTER_EYE_CORNERS
from lawdnet.synthetic import Pose, TalkingHead, make_identity, make_speech

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
NAMES = {"face_px", "scale_change", "face_share", "sharpness", "yaw", "pitch", "roll", "mouth_motion", "brightness",
         "loudness", "speech_ratio", "silence"}  # fmt: skip
SECONDS = np.arange(5 * 16_000) / 16_000
EYES_CANONICAL, NOSE_CANONICAL = [(-4.446, -2.664, 3.173), (4.446, -2.664, 3.173)], [(0, 1.127, 7.476)]
MOUTH_CANONICAL = [(-2.456, 4.343, 4.284), (2.456, 4.343, 4.284)]


def measure(pose: Pose, seed: int = 3, width: int = 320) -> ImageScores:
    frame, points = TalkingHead(make_identity(seed), (480, 400)).draw(pose, 0.3, 0.0)
    matrix = fit_all(points[None], width)[0]
    return image_scores(crop_face(frame, matrix, width), transform_points(points, matrix), matrix)


def turned(yaw: float, pitch: float) -> np.ndarray:
    """68 points of which only those that matter are set: MediaPipe's head, y down, turned by degrees."""
    points = np.array([*EYES_CANONICAL, *NOSE_CANONICAL, *MOUTH_CANONICAL])
    a, b = math.radians(yaw), math.radians(pitch)
    x, y, z = points.T
    x, z = x * math.cos(a) + z * math.sin(a), z * math.cos(a) - x * math.sin(a)
    y = y * math.cos(b) - z * math.sin(b)  # looking up lifts what is in front
    result = np.zeros((68, 2), np.float32)
    result[[36, 45, 30, 48, 54]] = np.column_stack([x, y])
    return result


@pytest.mark.parametrize("angle", [-60, -20, 0, 20, 60])
def test_angles_are_those_of_the_model_head(angle: float) -> None:
    assert face_angles(turned(angle, 0))[0] == pytest.approx(angle, abs=0.1)
    yaw, pitch = face_angles(turned(0, angle))
    assert (yaw, pitch) == pytest.approx((0, angle), abs=0.1)


@pytest.mark.parametrize("share", [-0.3, 0.3])
def test_drawn_heads_turn_the_documented_way(share: float) -> None:
    straight = measure(Pose(tick=0))
    assert abs(straight.yaw) < 2
    assert abs(straight.pitch) < 8
    degrees = math.degrees(math.atan(share))
    assert measure(Pose(tick=0, yaw=share)).yaw == pytest.approx(degrees, abs=4)
    # drawn heads nod down for a positive pitch; the score is positive for up
    assert straight.pitch - measure(Pose(tick=0, pitch=share)).pitch == pytest.approx(degrees, abs=5)
    assert measure(Pose(tick=0, roll=share)).roll == pytest.approx(math.degrees(share), abs=2)


def test_roll_is_clockwise_in_the_frame_and_gone_from_the_crop() -> None:
    frame, points = TalkingHead(make_identity(3), (480, 400)).draw(Pose(tick=0), 0.3, 0.0)
    clockwise = cv2.getRotationMatrix2D((200, 240), -20, 1)  # cv2's own sign is the other way round
    leaning = np.asarray(points @ clockwise[:, :2].T + clockwise[:, 2], np.float32)
    assert leaning[27, 0] > points[27, 0]  # the top of the nose moves to the right of the image
    matrix = fit_all(leaning[None], 320)[0]
    turned_frame = cv2.warpAffine(frame, clockwise, (400, 480))
    scores = image_scores(crop_face(turned_frame, matrix, 320), transform_points(leaning, matrix), matrix)
    assert scores.roll == pytest.approx(20, abs=2)
    assert abs(scores.yaw) < 2


def test_sharpness_falls_with_blur_and_compares_across_widths() -> None:
    frame, points = TalkingHead(make_identity(3), (960, 800)).draw(Pose(tick=0), 0.3, 0.0)
    found = {}
    for blur in (0, 3, 8):
        for width in (160, 320, 480):
            matrix = fit_all(points[None], width)[0]
            picture = cv2.GaussianBlur(frame, (0, 0), blur) if blur else frame
            crop = crop_face(picture, matrix, width)
            found[blur, width] = image_scores(crop, transform_points(points, matrix), matrix).sharpness
    for width in (160, 320, 480):
        assert found[0, width] > 2 * found[3, width] > 4 * found[8, width] > 0
    for blur, tolerance in ((0, 0.35), (3, 0.2), (8, 0.1)):  # a narrow crop cannot hold the finest detail
        assert found[blur, 160] == pytest.approx(found[blur, 480], rel=tolerance)


def test_brightness_is_the_luma_of_the_face() -> None:
    matrix, points = np.eye(3, dtype=np.float32), np.zeros((68, 2), np.float32)
    crop = np.full((416, 320, 3), (255, 0, 0), np.uint8)
    crop[:48] = crop[:, :60] = 0  # above the brows and beside the cheeks nothing counts
    scores = image_scores(crop, points, matrix)
    assert scores.brightness == pytest.approx(0.299 * 255, abs=1)
    assert scores.sharpness == 0
    assert np.isfinite(scores).all()


def test_a_segment_has_every_score_by_its_contract() -> None:
    pictures = [ImageScores(float(10 * t), 100.0, 0.0, 0.0, -float(t)) for t in range(20)]
    pictures[7] = pictures[7]._replace(yaw=-80.0, sharpness=1e6, brightness=120.0)
    matrices = np.stack([np.diag([s, s, 1]) for s in np.linspace(0.5, 1.0, 20)]).astype(np.float32)
    detected = np.arange(20) >= 5
    points = np.random.default_rng(0).uniform(0, 99, (1, 68, 2)).repeat(20, 0)
    points[:, [*UPPER, *LOWER]] = (50, 50)
    points[:, OUTER_EYE_CORNERS] = ((10, 9), (90, 9))
    points[10:, list(LOWER), 1] += 8  # a tenth of the eye distance, in half of the frames
    still, silent = np.float32(points[:1]).repeat(20, 0), np.zeros(20 * 640, np.float32)
    assert segment_scores(pictures, still, matrices, detected, silent, 320)["mouth_motion"] == 0
    assert segment_scores(pictures, still * 0, matrices, detected, silent, 320)["mouth_motion"] == 0
    scores = segment_scores(pictures, np.float32(points), matrices, detected, silent, 320)
    assert scores["mouth_motion"] == pytest.approx(0.05)
    assert scores.keys() == NAMES
    assert all(type(value) is float for value in scores.values())
    assert np.isfinite(list(scores.values())).all()
    assert scores["face_share"] == 0.75
    assert scores["scale_change"] == pytest.approx(2)
    assert scores["face_px"] == pytest.approx(320 / 0.75)
    assert scores["brightness"] == pytest.approx(101)
    assert scores["yaw"] == 0  # one frame in twenty may be a slip of the landmarks
    assert scores["roll"] == -18
    assert scores["sharpness"] == pytest.approx(105)


def tone(hz: float, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * SECONDS)


def noise(exponent: float, level: float = 0.1) -> np.ndarray:
    """White (0), pink (0.5) or brown (1)."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(SECONDS)))
    wave = np.fft.irfft(spectrum / np.maximum(1, np.arange(len(spectrum))) ** exponent)
    return level * wave / wave.std()


@pytest.mark.parametrize(
    "wave",
    [noise(0), noise(0.5), noise(1), tone(150), tone(440), tone(3000), tone(440) + noise(0, 0.01),
     tone(50) + 0.2 * tone(150), np.full(len(SECONDS), 0.5), (np.arange(len(SECONDS)) % 2000 == 0) * 1.0],
    ids=["white", "pink", "brown", "tone 150", "tone 440", "tone 3000", "tone in noise", "hum", "constant", "clicks"],
)  # fmt: skip
def test_what_is_no_voice_is_no_speech(wave: np.ndarray) -> None:
    assert audio_scores(wave.astype(np.float32))["speech_ratio"] < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_drawn_speech_is_speech(seed: int) -> None:
    wave = make_speech(5, seed).audio_S
    assert audio_scores(wave)["speech_ratio"] > 0.6
    assert audio_scores(wave * 0.3)["speech_ratio"] == pytest.approx(audio_scores(wave)["speech_ratio"], abs=0.1)
    noisy = wave + noise(0, float(wave.std()) * 0.1).astype(np.float32)
    assert audio_scores(noisy)["speech_ratio"] > 0.6


def test_real_speech_and_the_silence_in_it() -> None:
    path = SHARED / "media" / "speech_eng.wav"
    if not path.exists():
        pytest.skip("no shared/media beside the repository")
    wave = load_audio(path)
    scores = audio_scores(wave)
    assert 0.75 < scores["speech_ratio"] < 0.95
    assert 0.05 < scores["silence"] < 0.15
    assert scores["loudness"] == pytest.approx(-19.1, abs=0.1)
    half = np.concatenate([wave[: 10 * 16_000], np.zeros(10 * 16_000, np.float32)])
    assert audio_scores(half)["silence"] == pytest.approx(0.5 + audio_scores(wave[: 10 * 16_000])["silence"] / 2)
    assert audio_scores(half)["speech_ratio"] < 0.5


def test_levels_in_dbfs() -> None:
    silence = audio_scores(np.zeros(54 * 640, np.float32))
    assert silence == {"loudness": -100.0, "speech_ratio": 0.0, "silence": 1.0}
    assert audio_scores(np.sign(tone(100) + 1e-9).astype(np.float32))["loudness"] == pytest.approx(0, abs=0.1)
    assert audio_scores(tone(1000, 1.0).astype(np.float32))["loudness"] == pytest.approx(-3.01, abs=0.01)
    for level, share in ((-49, 0.0), (-51, 1.0)):
        wave = tone(1000, math.sqrt(2) * 10 ** (level / 20)).astype(np.float32)
        assert audio_scores(wave)["silence"] == share
    assert np.isfinite(list(audio_scores(np.ones(1, np.float32)).values())).all()
