"""Files of drawn talking heads: a video with audio, and its landmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.face.align import crop_face, fit_all
from lawdnet.landmarks.openface import read_csv
from lawdnet.synthetic import TalkingHead, make_identity, make_motion, make_speech, write_corpus, write_talking_head
from lawdnet.video import decode, probe


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "a head.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=1.0)
    return path


def test_video_audio_and_landmarks_are_of_one_length(clip: Path) -> None:
    video = probe(clip)
    assert (video.num_frames, video.height, video.width, video.fps) == (25, 320, 256, 25)
    landmarks = read_csv(clip.with_suffix(".csv"))
    assert landmarks.valid_T.tolist() == [True] * 25
    assert len(load_audio(clip, num_frames=25)) == 16_000


def test_the_files_contain_what_was_drawn(clip: Path) -> None:
    head, speech, poses = TalkingHead(make_identity(1)), make_speech(1.0, 3), make_motion(2, 25)
    written = read_csv(clip.with_suffix(".csv")).points_T68x2
    for t, decoded in decode(clip):
        frame, points = head.draw(poses[t], float(speech.opening_T[t]), float(speech.spread_T[t]))
        np.testing.assert_allclose(written[t], points, atol=2e-3)
        assert np.abs(decoded.astype(float) - frame).mean() < 4
    audio = load_audio(clip, num_frames=25)
    assert np.corrcoef(audio, speech.audio_S)[0, 1] > 0.95


def test_other_speech_is_the_same_clip_dubbed(clip: Path, tmp_path: Path) -> None:
    dubbed = tmp_path / "dubbed.mp4"
    write_talking_head(dubbed, identity=1, motion=2, speech=99, seconds=1.0)
    one, two = (read_csv(path.with_suffix(".csv")).points_T68x2 for path in (clip, dubbed))
    np.testing.assert_array_equal(one[:, 17:48], two[:, 17:48])
    assert np.abs(one[:, 48:] - two[:, 48:]).max() > 2


def test_a_corpus_has_distinct_people_and_is_reproducible(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "one", videos=2, seconds=0.4, seed=5)
    again = write_corpus(tmp_path / "two", videos=2, seconds=0.4, seed=5)
    assert [path.name for path in first] == ["drawn_000.mp4", "drawn_001.mp4"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    faces = []
    for path in first:
        matrix = fit_all(read_csv(path.with_suffix(".csv")).points_T68x2, 40)[0]
        faces.append(crop_face(next(iter(decode(path)))[1], matrix, 40))
    assert np.abs(faces[0].astype(float) - faces[1]).mean() > 8


@pytest.mark.parametrize("size", [(321, 256), (32, 256)])
def test_a_size_that_cannot_be_encoded_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size"):
        write_talking_head(tmp_path / "a.mp4", identity=0, motion=0, speech=0, seconds=1, size=size)
    assert not list(tmp_path.iterdir())


def test_no_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="videos"):
        write_corpus(tmp_path, videos=0, seconds=1, seed=0)
