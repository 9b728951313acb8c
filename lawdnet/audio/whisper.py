"""Whisper's encoder: features of a network that was trained to transcribe speech, run by CTranslate2.

Shape letters: T rows at 25 Hz, C feature dimension, B chunks, S samples, H hops of 10 ms, F frequencies, M mel bands.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lawdnet.audio.base import Chunking, check_mono, in_chunks
from lawdnet.audio.mel import triangles
from lawdnet.models.device import pick_device
from lawdnet.storage import Location, files_sha256
from lawdnet.types import FPS, SAMPLES_PER_FRAME, Beat, Float32, no_beat
from lawdnet.weights import find_weights, need_package

FILE = "whisper-tiny.en.bin"
WINDOW, HOP, BANDS = 400, 160, 80
HOPS = SAMPLES_PER_FRAME // HOP
WHOLE = 3000
"""Hops that the network sees at once, as it was trained: 30 s."""
SILENT = 100
"""Hops of silence after short audio."""
EMBEDDING = "decoder/embeddings/weight"
"""The variable whose shape is the size of the vocabulary and the width of the network."""
BLOCK = 500
"""Video frames (20 s) whose loudest band is looked for at a time, to bound memory."""


class Whisper:
    """Computes the last hidden states of the encoder of Whisper (Radford et al. 2022, arXiv 2212.04356).

    The network gives a row every 20 ms, centred on 20·i ms; every second one is kept, so row t is centred on 40·t ms,
    as frame t of the video is. Longer audio is cut into pieces of 30 s that overlap by 4 s, shorter audio gets a second
    of silence at its end. The loudest band of the whole file sets the floor of all pieces.

    A row depends on its position in the piece: of the same speech, 5 s later in the file, rows differ by 0.41 (rms, in
    deviations of the feature, measured on real speech). Transcription pads to 30 s, which costs ten times as much for a
    clip of 3 s and changes its rows by 0.16.

    Args:
        model: a Whisper network in CTranslate2's format: the name of a file in `weights_folders`, or an absolute path.
        batch: pieces at once; None means 8 on a GPU and 1 elsewhere.
        weights_dir: searched first for the file.
        device: auto, cpu or cuda.

    Raises:
        ValueError: ctranslate2 is not installed, or the weights are missing or of another kind.
    """

    name = "whisper"
    frame_shift = 1 / FPS

    def __init__(
        self,
        *,
        model: str = FILE,
        batch: int | None = None,
        weights_dir: Location | None = None,
        device: str = "auto",
    ) -> None:
        need_package("ctranslate2", self.name)
        self.file = find_weights(model, weights_dir)
        self._vocabulary, self.feature_dim = _read_sizes(self.file)
        self.model_sha256: str | None = files_sha256([self.file])
        self.batch, self.device = batch, device
        self.chunking = Chunking(rows=WHOLE // HOPS, context=50)

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return T×C rows at 25 Hz for 16 kHz mono audio in [-1, 1], with T = ceil(samples / 640).

        Raises:
            ValueError: the audio is not mono, or the weights cannot be read.
        """
        check_mono(audio)
        rows = -(-len(audio) // SAMPLES_PER_FRAME)
        if rows == 0:
            return np.empty((0, self.feature_dim), np.float32)
        floor = max(log_mel(audio, start, BLOCK * HOPS).max() for start in range(0, rows * HOPS, BLOCK * HOPS)) - 8

        def run(starts: list[int], length: int) -> Float32:
            pieces = [log_mel(audio, start * HOPS, length * HOPS) for start in starts]
            padded_BMH = np.full((len(starts), BANDS, min(WHOLE, length * HOPS + SILENT)), floor, np.float32)
            padded_BMH[:, :, : length * HOPS] = np.maximum(np.stack(pieces), floor)
            return self._network.run(padded_BMH / 4 + 1)[:, : 2 * length : 2]

        batch = self.batch or (8 if self._network.device == "cuda" else 1)
        return in_chunks(run, rows, self.feature_dim, replace(self.chunking, batch=batch), beat)

    @cached_property
    def _network(self) -> _Encoder:
        return _Encoder(self.file, self._vocabulary, pick_device(self.device).type)


class _Encoder:
    """The network, on one thread of a CPU or on a GPU."""

    def __init__(self, file: Path, vocabulary: int, device: str) -> None:
        import ctranslate2

        self.device = device
        self._views = ctranslate2.StorageView
        words = "\n".join(map(str, range(vocabulary)))  # only its length matters: nothing is decoded
        files = {"model.bin": file.read_bytes(), "vocabulary.txt": words.encode(), "config.json": b"{}"}
        try:
            self._network = ctranslate2.models.Whisper(
                str(file), device=device, compute_type="float32", intra_threads=1, files=files
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{file}: cannot be loaded ({str(error).splitlines()[0]})") from error

    def run(self, mel_BMH: NDArray[Any]) -> Float32:
        """Return the encoder's output, B×H/2×C."""
        view = self._views.from_array(np.ascontiguousarray(mel_BMH, np.float32))
        return np.array(self._network.encode(view, to_cpu=True), np.float32)


def log_mel(audio: Float32, start: int, count: int) -> Float32:
    """Return M×count decimal logarithms of the band powers of hops `start` … `start + count - 1`.

    These are the numbers of Whisper's `log_mel_spectrogram` before it clips and scales them; as there, the audio is
    mirrored at its beginning. It is silent after its end.
    """
    first = start * HOP - WINDOW // 2
    at_S = np.arange(first, first + (count - 1) * HOP + WINDOW)
    inside_S = np.abs(at_S) < len(audio)
    samples_S = np.where(inside_S, audio[np.abs(at_S) * inside_S], 0)
    windows_HS = np.lib.stride_tricks.sliding_window_view(samples_S, WINDOW)[::HOP]
    power_HF = np.square(np.abs(np.fft.rfft(windows_HS * _hann(), axis=1)))
    return np.log10(np.maximum(_filters() @ power_HF.T, 1e-10)).astype(np.float32)


@cache
def _hann() -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@cache
def _filters() -> NDArray[np.float64]:
    return triangles(WINDOW, 0.0, 8000.0)


def _read_sizes(file: Path) -> tuple[int, int]:
    """Return the size of the vocabulary and the width of the network, from the beginning of CTranslate2's file.

    Raises:
        ValueError: it is not a Whisper network in this format.
    """
    try:
        with file.open("rb") as content:
            _read(content, "I")
            if _read_text(content) != "WhisperSpec":
                raise ValueError("another kind of network")
            _, variables = _read(content, "I"), _read(content, "I")
            for _ in range(variables):
                name = _read_text(content)
                shape = [_read(content, "I") for _ in range(_read(content, "B"))]
                _read(content, "B")
                content.seek(_read(content, "I"), 1)
                if name == EMBEDDING:
                    return shape[0], shape[1]
            raise ValueError("no vocabulary")
    except (struct.error, ValueError, IndexError) as error:
        raise ValueError(f"{file}: not a Whisper network in CTranslate2's format ({error})") from error


def _read(content: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", content.read(struct.calcsize(kind)))[0])


def _read_text(content: BinaryIO) -> str:
    return content.read(_read(content, "H")).rstrip(b"\0").decode("utf-8")
