"""The feature whisper: the numbers of transformers' network, pieces of long audio, files that are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import frame_features, load_audio, make_extractor, whisper
from lawdnet.audio.whisper import HOPS, WHOLE, Whisper, log_mel
from lawdnet.types import SAMPLES_PER_FRAME
from tests.support.real_weights import people, real_weights
from tests.support.tiny_networks import need, write_whisper

FILE = "whisper-tiny.en.bin"
SECOND = 16_000


def noise(seconds: float) -> np.ndarray:
    random = np.random.default_rng(0).normal(size=round(seconds * SECOND))
    return (0.1 * random * np.sin(np.arange(len(random)) / 3000)).astype(np.float32)


def test_the_rows_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ctranslate2")
    monkeypatch.setattr(whisper, "SILENT", WHOLE)  # transformers pads to 30 s
    model = write_whisper(tmp_path / FILE)
    import torch
    import transformers

    extractor = make_extractor("whisper", weights_dir=tmp_path, device="cpu")
    audio = noise(5.01)
    inputs = transformers.WhisperFeatureExtractor()(audio, sampling_rate=SECOND, return_tensors="pt")["input_features"]
    with torch.no_grad():
        (rows_RC,) = model.model.encoder(inputs).last_hidden_state.numpy()
    found_TC = frame_features(extractor, audio, 125)
    assert found_TC.shape == (125, extractor.feature_dim) == (125, 32)
    np.testing.assert_allclose(found_TC, rows_RC[:250:2], atol=1e-5)


def test_pieces_begin_and_end_within_their_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is 30 s long, and what is kept of it is at least 2 s from where it is cut."""
    need("ctranslate2")
    write_whisper(tmp_path / FILE)
    extractor = Whisper(weights_dir=tmp_path, device="cpu")
    seen: list[np.ndarray] = []

    class Counting:
        device = "cpu"

        def run(self, mel_BMH: np.ndarray) -> np.ndarray:
            seen.append(mel_BMH)
            return np.repeat(np.arange(WHOLE // 2, dtype=np.float32)[None, :, None], 32, 2)

    monkeypatch.setitem(extractor.__dict__, "_network", Counting())
    values = extractor.extract(noise(65))[:, 0] / 2
    assert [mel.shape for mel in seen] == [(1, 80, WHOLE)] * 3
    assert len(values) == 65 * 25
    cuts = np.flatnonzero(np.diff(values) != 1) + 1
    assert len(cuts) == 2
    for cut in cuts:
        assert values[cut - 1] < WHOLE // HOPS - 49
        assert values[cut] >= 50


def test_part_of_the_spectrum_is_that_of_the_whole() -> None:
    audio = noise(3)
    whole = log_mel(audio, 0, 320)
    np.testing.assert_array_equal(log_mel(audio, 7, 100), whole[:, 7:107])
    assert whole.shape == (80, 320)
    assert (whole[:, 303:] == -10).all(), "it is silent after its end"


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x06\0\0\0\x03\0ab\0", b"\x06\0\0\0\x0c\0WhisperSpec\0\x03\0\0\0"]
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    need("ctranslate2")
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"whisper-tiny\.en\.bin: "):
        Whisper(weights_dir=tmp_path)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    need("ctranslate2")
    write_whisper(tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"whisper-tiny\.en\.bin: "):
        Whisper(weights_dir=tmp_path, device="cpu").extract(noise(1))


def test_real_speech_gives_the_same_rows_in_other_pieces() -> None:
    """The published network: rows follow speech, and another cut of the pieces changes them by a stated part."""
    need("ctranslate2")
    folder = real_weights("whisper_tiny_en")
    extractor = Whisper(weights_dir=folder, device="cpu")
    assert extractor.feature_dim == 384
    (clip,) = people("p05")
    audio = np.resize(load_audio(clip), 40 * SECOND)
    rows_TC = frame_features(extractor, audio, 1000)
    cut = 5 * 25
    other_TC = frame_features(extractor, audio[cut * SAMPLES_PER_FRAME :], 1000 - cut)
    difference_TC = (rows_TC[cut:] - other_TC)[50:-50]
    relative = np.sqrt(np.square(difference_TC).mean() / rows_TC.var(axis=0).mean())
    assert 0.3 < relative < 0.5
    silent_TC = frame_features(extractor, 0 * audio[: 2 * SECOND], 50)
    assert rows_TC[:50].std(0).mean() > 2 * silent_TC.std(0).mean()
