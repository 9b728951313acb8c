"""Networks that only wait, as a CPU does for a GPU, around the real code that prepares their input.

Importing this module registers a landmark source and an audio extractor. One file stands for the device: whoever
computes holds its lock, and notes there from when to when.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import numpy as np

from lawdnet.audio.base import EXTRACTORS, Chunking, in_chunks
from lawdnet.landmarks.base import BATCH, SOURCES
from lawdnet.landmarks.fan import HEATMAP_PX, FaceAlignment, crop_square
from lawdnet.networks import Network
from lawdnet.types import FPS, SAMPLES_PER_FRAME, Beat, Float32, UInt8, no_beat
from pipelines.build.task import VideoTask, networks_of

FACES, SPEECH = "stand-in-faces", "stand-in-speech"
SPEECH_SHARE = 0.1
"""The speech network's part of a frame's time on the device; the face detector takes half of the rest."""


def wait(device: str, seconds: float) -> None:
    """Take the device for so long, and note when; a device that needs no time is not noted."""
    if not seconds:
        return
    with Path(device).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.time()
        time.sleep(seconds)
        file.write(f"{began} {time.time()}\n")


class StandInFaces(FaceAlignment):
    """Shrinks and cuts frames as face-alignment does, waits, and finds one face, always in the same place.

    Args:
        points: .npy file with its points, 68×2 px of the frame.
        device: the file that stands for the device.
        ms: milliseconds that the device needs for a frame, speech included.
    """

    name = FACES

    def __init__(self, *, points: str, device: str, ms: float) -> None:
        self.points_68x2, self._file = np.load(points), device
        self._seconds = ms / 1000 * (1 - SPEECH_SHARE) / 2
        self.detector, self.detect_px, self.min_score, self.min_px, self.batch = "sfd", 640, 0.5, 24, 16
        self.calls = 1
        self.networks = {"detect": Network(self._boxes, BATCH), "align": Network(self._peaks, self.batch)}

    @property
    def model_sha256(self) -> None:
        """There are no weights."""
        return None

    def _boxes(self, small_BHW3: UInt8) -> list[Float32]:
        wait(self._file, self._seconds * len(small_BHW3))
        return [self._box[None]] * len(small_BHW3)

    def _peaks(self, crops_BHW3: UInt8) -> list[Float32]:
        wait(self._file, self._seconds * len(crops_BHW3))
        square = crop_square(self._box)
        offset_68x2 = self.points_68x2 + 0.5 - (square.x, square.y)
        return [offset_68x2 * HEATMAP_PX / square.side + HEATMAP_PX / 2 - 0.5] * len(crops_BHW3)

    @property
    def _box(self) -> Float32:
        """The frames must not be shrunk: then a box is in their px."""
        return np.array([*self.points_68x2.min(0), *self.points_68x2.max(0), 1], np.float32)


class StandInSpeech:
    """Sends chunks as Whisper does, waits, and gives zeros."""

    name, feature_dim, frame_shift, model_sha256 = SPEECH, 32, 1 / FPS, None
    chunking = Chunking(rows=400, context=50)

    def __init__(self, *, device: str, ms: float) -> None:
        self._file, self._seconds = device, ms / 1000 * SPEECH_SHARE
        self.calls = 1
        self.networks = {"speech": Network(self._rows, 8)}

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return T×32 rows."""

        def run(starts: list[int], length: int) -> Float32:
            mel_BML = np.zeros((len(starts), 80, 4 * length), np.float32)
            return np.asarray(self.networks["speech"].compute(mel_BML))

        return in_chunks(run, -(-len(audio) // SAMPLES_PER_FRAME), 32, self.chunking, beat, self.calls)

    def _rows(self, mel_BML: Float32) -> Float32:
        rows = mel_BML.shape[2] // 4
        wait(self._file, self._seconds * rows * len(mel_BML))
        return np.zeros((len(mel_BML), rows, 32), np.float32)


SOURCES[FACES] = StandInFaces
EXTRACTORS[SPEECH] = StandInSpeech


class StandInTask(VideoTask):
    """A task whose workers import this module."""


def networks(job: object) -> dict[str, Network]:
    """The networks of a build, in a process that imports this module."""
    return networks_of(job)  # type: ignore[arg-type]
