"""Mozilla DeepSpeech 0.1.0, the audio features of the published LawDNet; its frozen graph runs in TensorFlow.

Shape letters: R rows at 50 Hz, M cepstral coefficients, D inputs of the network for a row, B chunks, L rows of a chunk.
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

from lawdnet.audio.base import Chunking, check_mono, in_chunks
from lawdnet.audio.mfcc import Float64, mfcc
from lawdnet.models.device import pick_device
from lawdnet.networks import Network
from lawdnet.storage import Location, files_sha256
from lawdnet.types import FPS, Beat, Float32, no_beat
from lawdnet.weights import find_weights, need_package

COEFFICIENTS = 26
CONTEXT = 9
"""Rows before and after a row that the network also sees."""
WINDOW = 2 * CONTEXT + 1
FILE = "output_graph.pb"
PUBLISHED = (
    "it is part of deepspeech-0.1.0-models.tar.gz, published at"
    " https://github.com/mozilla/DeepSpeech/releases/tag/v0.1.0"
)

logger = logging.getLogger(__name__)


class DeepSpeech:
    """Computes the outputs of DeepSpeech 0.1.0 before the softmax: 29 characters, trained on English.

    The network gets 26 MFCC of every second 10 ms row, 19 rows at a time, normalised to mean 0 and deviation 1 over the
    whole file; every second row of its 50 Hz output is kept. Row t is centred on 40·t + 12.5 ms.

    Audio of more than 20 s goes through the network in chunks of 20 s that overlap by 5 s, normalised with the
    statistics of the whole file. The LSTM runs in both directions from end to end, so a row differs from whole-file
    processing by what the LSTM still remembers after 2.5 s.

    Args:
        file: name of the frozen graph.
        batch: chunks at once, if the graph allows more than one.
        weights_dir: the folder searched first for the graph (`find_weights`).
        device: auto, cpu or cuda.

    Raises:
        ValueError: TensorFlow is not installed, or the file is missing.
    """

    name = "deepspeech"
    feature_dim = 29
    frame_shift = 1 / FPS

    def __init__(
        self, *, file: str = FILE, batch: int = 4, weights_dir: Location | None = None, device: str = "auto"
    ) -> None:
        need_package("tensorflow", self.name)
        self.path = find_weights(file, weights_dir)
        self.model_sha256: str | None = files_sha256([self.path])
        self.device = device
        self.chunking = Chunking(rows=1000, context=125, batch=batch)
        self.calls = 1
        self.networks = {"speech": Network(lambda input_BLD: self._graph(input_BLD), batch)}

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return ceil(R/2)×29 rows at 25 Hz for 16 kHz mono audio in [-1, 1].

        Raises:
            ValueError: the audio is not mono, or the file is not DeepSpeech's graph.
        """
        check_mono(audio)
        rows_RM = mfcc(audio, COEFFICIENTS, beat)[::2]
        if len(rows_RM) == 0:
            return np.empty((0, self.feature_dim), np.float32)
        mean, deviation = _statistics(rows_RM)
        padded_RM = np.pad(rows_RM, ((CONTEXT, CONTEXT), (0, 0)))

        def run(starts: list[int], length: int) -> Float32:
            chunks = [padded_RM[start : start + length + 2 * CONTEXT] for start in starts]
            input_BLD = np.stack([(_with_context(chunk) - mean) / deviation for chunk in chunks], dtype=np.float32)
            return np.asarray(self.networks["speech"].compute(input_BLD))

        return in_chunks(run, len(rows_RM), self.feature_dim, self.chunking, beat, self.calls)[::2].copy()

    @cached_property
    def _graph(self) -> _FrozenGraph:
        return _FrozenGraph(self.path, pick_device(self.device).type)


def import_tensorflow() -> Any:
    """Import TensorFlow without its start-up messages, and so that it works together with torch."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # torch's CUDA builds bring triton. If triton is imported after TensorFlow, as transformers and torch.compile do,
    # its LLVM crashes the process (segmentation fault); the other way round both work.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    return importlib.import_module("tensorflow")


class _FrozenGraph:
    """The published graph in its own session."""

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

    def __call__(self, input_BLD: Float32) -> Float32:
        """Return B×L×29 outputs before the softmax; a graph may take only so many chunks at once."""
        most = int((self._input.shape[0] if self._input.shape.rank else None) or len(input_BLD))
        parts = [input_BLD[start : start + most] for start in range(0, len(input_BLD), most)]
        return np.concatenate([self._run(part_BLD) for part_BLD in parts])

    def _run(self, input_BLD: Float32) -> Float32:
        count, length = input_BLD.shape[:2]
        feed = {self._input: input_BLD, self._lengths: [length] * count}
        logits_LBC: Float32 = self._session.run(self._logits, feed)
        expected = (length, count, DeepSpeech.feature_dim)
        if logits_LBC.shape != expected:
            raise ValueError(f"the logits of the frozen graph have shape {logits_LBC.shape}, expected {expected}")
        return logits_LBC.swapaxes(0, 1)


def _session_options(tf: Any, device: str) -> Any:
    """Use one thread per core of this process (Ray sets OMP_NUM_THREADS), and take GPU memory as needed."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    options.gpu_options.allow_growth = True
    if device == "cpu":
        options.device_count["GPU"] = 0
    return options


def _with_context(padded_RM: Float64) -> Float64:
    """Join every row of L with its neighbours, oldest first: (L + 18)×M → L×D."""
    window_LMW = np.lib.stride_tricks.sliding_window_view(padded_RM, WINDOW, axis=0)
    return window_LMW.swapaxes(1, 2).reshape(len(window_LMW), -1)


def _statistics(rows_RM: Float64) -> tuple[float, float]:
    """Return mean and deviation of `_with_context` for the whole file, without computing that matrix."""
    index_R = np.arange(len(rows_RM))
    times_R = 1 + np.minimum(index_R, CONTEXT) + np.minimum(index_R[::-1], CONTEXT)
    total = len(rows_RM) * WINDOW * COEFFICIENTS
    mean = float(times_R @ rows_RM.sum(1)) / total
    empty = total - int(times_R.sum()) * COEFFICIENTS
    variance = (float(times_R @ ((rows_RM - mean) ** 2).sum(1)) + empty * mean**2) / total
    return mean, float(np.sqrt(variance)) or 1.0
