"""lawdnet.audio.deepspeech: the published windowing, and a frozen graph read by the real loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import DeepSpeech, make_extractor
from tests.support.tiny_networks import deepspeech_output, deepspeech_weights, need, tiny, write_graph

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "reference" / "golden.npz"


def pcm(samples: int) -> np.ndarray:
    loud = 4000 * (1 + np.sin(np.arange(samples) / 4000))
    return (np.random.default_rng(0).normal(size=samples) * loud).clip(-32768, 32767).astype(np.int16)


def published_input(samples: np.ndarray) -> np.ndarray:
    """Return windows of 19 rows over the MFCC of the package that the published code used, computed step by step."""
    peer = pytest.importorskip("python_speech_features", reason="python_speech_features is not installed")
    rows = peer.mfcc(samples, 16_000, numcep=26)[::2]
    padded = np.concatenate([np.zeros((9, 26)), rows, np.zeros((9, 26))])
    seen = np.stack([padded[t : t + 19].ravel() for t in range(len(rows))])
    return (seen - seen.mean()) / seen.std()


@pytest.mark.parametrize("frames", [1, 2, 9, 60])
def test_features_are_every_second_row_of_the_published_logits(tmp_path: Path, frames: int) -> None:
    samples = pcm(640 * frames)
    values = tiny("deepspeech", tmp_path).extract((samples / 32768).astype(np.float32))
    expected = deepspeech_output(published_input(samples))[::2]
    assert values.shape == (frames, 29) == expected.shape
    np.testing.assert_allclose(values, expected, atol=2e-4)


def test_the_network_sees_the_published_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there")
    golden = np.load(GOLDEN)
    extractor = tiny("deepspeech", tmp_path)
    seen = []
    network = type(extractor._graph)
    monkeypatch.setattr(
        network, "__call__", lambda self, x: (seen.append(x), np.zeros((*x.shape[:2], 29), np.float32))[1]
    )
    extractor.extract((golden["mfcc_wave_int16"] / 32768).astype(np.float32))
    np.testing.assert_allclose(seen[0][0], golden["deepspeech_input"], atol=1e-5)


def test_a_graph_of_batch_one_gets_one_chunk_at_a_time(tmp_path: Path) -> None:
    need("tensorflow")
    write_graph(tmp_path / "one.pb", deepspeech_weights(), batch=1)
    write_graph(tmp_path / "output_graph.pb", deepspeech_weights())
    audio = (pcm(640 * 700) / 32768).astype(np.float32)
    names = ("one.pb", "output_graph.pb")
    one, many = (make_extractor("deepspeech", weights_dir=tmp_path, file=name).extract(audio) for name in names)
    np.testing.assert_allclose(one, many, atol=1e-4)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorflow is not installed; .*-e '\.\[deepspeech\]'"):
        DeepSpeech()
    monkeypatch.undo()
    need("tensorflow")
    with pytest.raises(
        ValueError, match=r"output_graph.pb: not found in .*mozilla/DeepSpeech/releases/download/v0.1.0"
    ):
        DeepSpeech(weights_dir=tmp_path)
    (tmp_path / "output_graph.pb").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"output_graph.pb: not DeepSpeech 0.1.0's frozen graph"):
        DeepSpeech(weights_dir=tmp_path).extract(np.zeros(6400, np.float32))
    write_graph(tmp_path / "output_graph.pb", deepspeech_weights()[:, :28])
    with pytest.raises(ValueError, match=r"shape \(20, 1, 28\), expected \(20, 1, 29\)"):
        DeepSpeech(weights_dir=tmp_path, device="cpu").extract(np.zeros(6400, np.float32))
