"""Mozilla DeepSpeech 0.1.0: what the published LawDNet hears. Its frozen graph runs in TensorFlow.

Shape letters: R rows at 50 Hz, M cepstral coefficients, D numbers the network sees at once, B pieces, L rows of one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lawdnet.audio.base import Pieces, check_mono, in_pieces
from lawdnet.audio.mfcc import Float64, mfcc
from lawdnet.models.device import pick_device
from lawdnet.storage import files_sha256
from lawdnet.types import FPS, Beat, Float32, no_beat
from lawdnet.weights import find_weights, need_package

COEFFICIENTS = 26
CONTEXT = 9
"""Rows on either side that the network sees with a row."""
SEEN = 2 * CONTEXT + 1
FILE = "output_graph.pb"
PUBLISHED = (
    "it is in deepspeech-0.1.0-models.tar.gz, published at https://github.com/mozilla/DeepSpeech/releases/tag/v0.1.0"
)

logger = logging.getLogger(__name__)


class DeepSpeech:
    """Values before the softmax of DeepSpeech 0.1.0: 29 characters, English speech.

    26 MFCC of every second 10 ms row, 19 rows at a time, the whole file's matrix normalised to mean 0 and
    deviation 1; every second row of the network's 50 Hz output is kept. Row t is centred on 40·t + 12.5 ms.

    Sound of more than 20 s goes through the network in pieces of 20 s that overlap by 5 s, normalised by the whole
    file's statistics. The LSTM runs in both directions from end to end, so a row differs from whole-file processing
    by what an LSTM still remembers after 2.5 s.

    Args:
        file: name of the frozen graph.
        batch: pieces at once, where the graph allows more than one.
        weights_dir: where the graph is looked for first (`find_weights`).
        device: auto, cpu or cuda.

    Raises:
        ValueError: TensorFlow is not installed, or the file is not there.
    """

    name = "deepspeech"
    feature_dim = 29
    frame_shift = 1 / FPS

    def __init__(
        self, *, file: str = FILE, batch: int = 4, weights_dir: Path | None = None, device: str = "auto"
    ) -> None:
        need_package("tensorflow", self.name)
        self.path = find_weights(file, weights_dir, hint=PUBLISHED)
        self.model_sha256: str | None = files_sha256([self.path])
        self.device = device
        self.pieces = Pieces(rows=1000, context=125, batch=batch)

    def extract(self, wave: Float32, beat: Beat = no_beat) -> Float32:
        """A 16 kHz mono wave in [-1, 1] as ceil(R/2)×29 rows at 25 Hz.

        Raises:
            ValueError: the wave is not mono, or the file is not DeepSpeech's graph.
        """
        check_mono(wave)
        rows_RM = mfcc(wave, COEFFICIENTS, beat)[::2]
        if len(rows_RM) == 0:
            return np.empty((0, self.feature_dim), np.float32)
        mean, deviation = _statistics(rows_RM)
        padded_RM = np.pad(rows_RM, ((CONTEXT, CONTEXT), (0, 0)))

        def run(starts: list[int], length: int) -> Float32:
            parts = [padded_RM[start : start + length + 2 * CONTEXT] for start in starts]
            return self._graph(np.stack([(_seen(part) - mean) / deviation for part in parts]))

        pieces = Pieces(rows=self.pieces.rows, context=self.pieces.context, batch=self._graph.batch(self.pieces.batch))
        return in_pieces(run, len(rows_RM), self.feature_dim, pieces, beat)[::2].copy()

    @cached_property
    def _graph(self) -> _FrozenGraph:
        return _FrozenGraph(self.path, pick_device(self.device).type)


def import_tensorflow() -> Any:
    """TensorFlow without its screenful of start-up notes, beside torch."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # torch's CUDA builds bring triton, whose LLVM ends the process (a segmentation fault) when it comes after
    # TensorFlow's: transformers and torch.compile load it late. The other way round both live.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    return importlib.import_module("tensorflow")


class _FrozenGraph:
    """The published graph in a session of its own."""

    def __init__(self, path: Path, device: str) -> None:
        tf = import_tensorflow()
        graph = tf.Graph()
        definition = tf.compat.v1.GraphDef()
        try:
            definition.ParseFromString(path.read_bytes())
            with graph.as_default():
                tf.import_graph_def(definition, name="")
            names = ("input_node:0", "input_lengths:0", "logits:0")
            self._input, self._lengths, self._logits = map(graph.get_tensor_by_name, names)
        except Exception as error:  # protobuf and TensorFlow raise many kinds
            logger.debug("%s", path, exc_info=error)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path}: not DeepSpeech 0.1.0's frozen graph ({reason}); {PUBLISHED}") from None
        self._session = tf.compat.v1.Session(graph=graph, config=_session_options(tf, device))

    def batch(self, wanted: int) -> int:
        """Pieces the graph takes at once."""
        fixed = self._input.shape[0] if self._input.shape.rank else None
        return wanted if fixed is None else int(fixed)

    def __call__(self, input_BLD: Float32) -> Float32:
        """Inputs as B×L×29 values before the softmax."""
        count, length = input_BLD.shape[:2]
        feed = {self._input: input_BLD.astype(np.float32), self._lengths: [length] * count}
        logits_LBC: Float32 = self._session.run(self._logits, feed)
        expected = (length, count, DeepSpeech.feature_dim)
        if logits_LBC.shape != expected:
            raise ValueError(f"logits of the frozen graph have the shape {logits_LBC.shape}, expected {expected}")
        return logits_LBC.swapaxes(0, 1)


def _session_options(tf: Any, device: str) -> Any:
    """One thread per core that this process may use (Ray sets OMP_NUM_THREADS), GPU memory as it is needed."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    options.gpu_options.allow_growth = True
    if device == "cpu":
        options.device_count["GPU"] = 0
    return options


def _seen(padded_RM: Float64) -> Float64:
    """(L + 18)×M rows as L×D: every row with its neighbours, oldest first."""
    seen_LMS = np.lib.stride_tricks.sliding_window_view(padded_RM, SEEN, axis=0)
    return seen_LMS.swapaxes(1, 2).reshape(len(seen_LMS), -1)


def _statistics(rows_RM: Float64) -> tuple[float, float]:
    """Mean and deviation of the matrix that `_seen` makes of the whole file, without making it."""
    at_R = np.arange(len(rows_RM))
    times_R = 1 + np.minimum(at_R, CONTEXT) + np.minimum(at_R[::-1], CONTEXT)
    total = len(rows_RM) * SEEN * COEFFICIENTS
    mean = float(times_R @ rows_RM.sum(1)) / total
    empty = total - int(times_R.sum()) * COEFFICIENTS
    variance = (float(times_R @ ((rows_RM - mean) ** 2).sum(1)) + empty * mean**2) / total
    return mean, float(np.sqrt(variance)) or 1.0
