"""What every audio extractor guarantees: one finite row per frame, at the right time, in chunks of bounded size."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.audio import AudioExtractor, frame_features, mel
from lawdnet.audio.base import Chunking
from lawdnet.types import FPS, SAMPLES_PER_FRAME, Rejected, RejectReason
from tests.support.tiny_networks import NAMES, tiny

CENTRE = {"mel": 0.0, "deepspeech": 0.3125, "deepspeech2": 0.0, "hubert": 0.0, "whisper": 0.0}
"""Video frames by which the centre of a row is later than the time of its frame."""
TOLERANCE = {"mel": 0.0, "deepspeech": 1e-3, "deepspeech2": 1e-3, "hubert": 0.02, "whisper": 0.1}
"""Largest difference between chunks and the whole: root mean square, in deviations of the feature over time."""
CHUNKINGS = {
    "deepspeech": Chunking(rows=90, context=25, batch=3),
    "deepspeech2": Chunking(rows=90, context=30, batch=3),
    "hubert": Chunking(rows=60, context=15),
    "whisper": Chunking(rows=60, context=15),
}


@pytest.fixture(scope="module", params=NAMES)
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioExtractor:
    return tiny(request.param, tmp_path_factory.mktemp(request.param))


def noise(frames: int, seed: int = 0) -> np.ndarray:
    """Return noise whose loudness and spectrum vary as in speech."""
    random = np.random.default_rng(seed).normal(size=SAMPLES_PER_FRAME * frames)
    dark = np.convolve(random, np.ones(8) / 8, "same")
    time = np.arange(len(random)) / 16_000
    return (0.1 * (random * np.sin(9 * time) ** 2 + 2 * dark * np.cos(13 * time) ** 2)).astype(np.float32)


def test_every_video_gets_exactly_its_rows(extractor: AudioExtractor) -> None:
    for frames in (1, 2, 3, 53, 54, 55, 100, 288):
        values = frame_features(extractor, noise(frames), frames)
        assert values.shape == (frames, extractor.feature_dim)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert extractor.frame_shift == 1 / FPS


def test_any_number_of_samples_is_covered(extractor: AudioExtractor) -> None:
    for samples in (1, 2, 160, 161, 399, 400, 401, 639, 641, 1279, 5000, 5001):
        values = extractor.extract(noise(9)[:samples])
        assert np.isfinite(values).all()
        assert abs(len(values) - samples / SAMPLES_PER_FRAME) <= 1.5
    assert extractor.extract(noise(1)[:0]).shape == (0, extractor.feature_dim)
    with pytest.raises(Rejected) as caught:
        frame_features(extractor, noise(50), 60)
    assert caught.value.reason is RejectReason.FEATURE_LENGTH
    with pytest.raises(ValueError, match="mono"):
        extractor.extract(np.zeros((2, 640), np.float32))


@pytest.mark.parametrize("frames", [1, 60])
def test_silence_and_extremes_are_finite(extractor: AudioExtractor, frames: int) -> None:
    samples = SAMPLES_PER_FRAME * frames
    square = np.where(np.arange(samples) // 40 % 2, 1, -1)
    impulse = np.eye(1, samples)[0]
    for audio in (0 * square, 0 * square + 0.5, 0 * square - 1, square, impulse, square * 1e-30):
        values = frame_features(extractor, audio.astype(np.float32), frames)
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 1e4


def test_a_click_lands_on_its_frame(extractor: AudioExtractor) -> None:
    quiet = 0.02 * noise(100)
    rows = np.arange(100)
    offsets = []
    for at in np.arange(30, 70, 2.75):
        audio = quiet.copy()
        sample = round(at * SAMPLES_PER_FRAME)
        audio[sample - 16 : sample + 16] += 0.9 * (-1) ** np.arange(32)
        # Statistics of the whole file change every row a little; the median removes that.
        change = extractor.extract(audio)[:100] - extractor.extract(quiet)[:100]
        power = ((change - np.median(change, axis=0)) ** 2).sum(1)
        near = np.abs(rows - at) < 5
        offsets.append((power * rows)[near].sum() / power[near].sum() - at)
    assert abs(np.mean(offsets)) <= 0.5
    assert np.mean(offsets) == pytest.approx(-CENTRE[extractor.name], abs=0.12)
    assert np.abs(offsets).max() < 1


def test_chunks_give_the_same_rows_as_the_whole(extractor: AudioExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(300)
    whole = extractor.extract(audio)
    if extractor.name == "mel":
        monkeypatch.setattr(mel, "BLOCK", 45)
    else:
        monkeypatch.setattr(extractor, "chunking", CHUNKINGS[extractor.name])
    beats: list[None] = []
    chunks = extractor.extract(audio, lambda: beats.append(None))
    difference = np.sqrt(((chunks - whole) ** 2).mean() / whole.var(axis=0).mean())
    assert difference <= TOLERANCE[extractor.name]
    assert len(beats) >= 5


def test_chunks_have_equal_length_and_are_few_at_a_time(
    extractor: AudioExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if extractor.name == "mel":
        return  # a block is a slice of the audio; there is no network
    monkeypatch.setattr(extractor, "chunking", CHUNKINGS[extractor.name])
    where = type(extractor._graph) if extractor.name == "deepspeech" else type(extractor._network)
    method = {"deepspeech": "__call__", "whisper": "forward"}.get(extractor.name, "run")
    original = getattr(where, method)
    shapes = []
    monkeypatch.setattr(where, method, lambda self, x, *rest: (shapes.append(x.shape), original(self, x, *rest))[1])
    extractor.extract(noise(300))
    assert len({shape[1] for shape in shapes}) == 1
    assert max(shape[0] for shape in shapes) == CHUNKINGS[extractor.name].batch
    assert len(shapes) > 2


def test_the_weights_have_a_fingerprint(extractor: AudioExtractor) -> None:
    if extractor.name == "mel":
        assert extractor.model_sha256 is None
    else:
        assert extractor.model_sha256 is not None
        assert len(extractor.model_sha256) == 64
