"""A fragmented MP4, made of pieces that can be sent while the rest is still being drawn.

Every fragment can be played when it has arrived; what was cut off by a lost connection plays up to there.
Shape letters: H W frame height and width; arrays are RGB uint8.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError

from lawdnet.types import FPS, Float32, UInt8
from lawdnet.video.writing import AAC_RATES, ToYuv, add_h264

FRAGMENT_SECONDS = 0.2
KEY_FRAMES = 2 * FPS
"""Frames from one key frame to the next: 2 s."""
AAC = "mp4a.40.2"
MOVFLAGS = "frag_keyframe+empty_moov+default_base_moof+delay_moov"
"""`delay_moov` sends the index with the first fragment. It then has an edit list, without which the delay of the AAC
encoder (1024 samples) would be heard: audio and video would begin that much after time zero."""


class FragmentWriter:
    """Encodes frames at 25 fps and their audio (H.264, AAC) to a fragmented MP4; `write` and `finish` return bytes.

    The encoder looks at no later frame, so what is written leaves with its fragment.

    Args:
        height, width: of the frames in px; an odd size grows by one.
        sample_rate: of the mono audio, Hz; a multiple of 25.
        crf, preset: x264's quality and trade-off of time for size.
        fragment_seconds: length of a fragment. A shorter one arrives earlier and costs about 400 bytes more per second
            for each additional fragment.

    Raises:
        ValueError: frames below 2×2 px, or a sample rate that AAC does not have.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        sample_rate: int,
        crf: int = 20,
        preset: str = "veryfast",
        fragment_seconds: float = FRAGMENT_SECONDS,
    ) -> None:
        if min(height, width) < 2:
            raise ValueError(f"frames of {height}×{width} px cannot be encoded; they must be at least 2×2")
        if sample_rate not in AAC_RATES or sample_rate % FPS:
            raise ValueError(f"sample rate {sample_rate} Hz, expected one of {AAC_RATES}")
        self.height, self.width, self.sample_rate = height, width, sample_rate
        self.num_frames = 0
        self._sink = _Sink()
        options = {"movflags": MOVFLAGS, "frag_duration": str(round(fragment_seconds * 1e6))}
        self._container = av.open(self._sink, "w", format="mp4", container_options=options)
        encoding = {"crf": str(crf), "preset": preset, "tune": "zerolatency"}
        self._video = add_h264(self._container, height, width, Fraction(FPS), encoding)
        self._video.codec_context.gop_size = KEY_FRAMES
        self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._to_yuv = ToYuv()
        self._container.start_encoding()
        self.mime = f'video/mp4; codecs="{_h264_name(self._video.codec_context.extradata or b"")}, {AAC}"'
        """The type that browsers ask for (`MediaSource.isTypeSupported`)."""

    def write(self, frame_HW3: UInt8, audio: Float32) -> bytes:
        """Add a frame and the audio of its 1/25 s; return the bytes that became ready, often none.

        Raises:
            ValueError: the frame is not uint8 RGB of the writer's size, or the audio not 1/25 s long.
        """
        expected = (self.height, self.width, 3), (self.sample_rate // FPS,)
        if (frame_HW3.shape, audio.shape) != expected or frame_HW3.dtype != np.uint8:
            got = f"{frame_HW3.dtype} {frame_HW3.shape} with audio {audio.shape}"
            raise ValueError(f"frame {self.num_frames}: {got}, expected uint8 {expected[0]} with audio {expected[1]}")
        sound = av.AudioFrame.from_ndarray(np.clip(audio[None], -1, 1, dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = self.sample_rate, Fraction(1, self.sample_rate)
        sound.pts = self.num_frames * len(audio)
        self._container.mux(self._audio.encode(sound))
        frame = self._to_yuv(frame_HW3)
        frame.pts, frame.time_base = self.num_frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1
        return self._sink.take()

    def finish(self) -> bytes:
        """End the file and return its last bytes; no frame can follow.

        Raises:
            ValueError: no frame was written.
        """
        if self.num_frames == 0:
            self.close()
            raise ValueError("no frame was written")
        self._container.mux(self._audio.encode())
        self._container.mux(self._video.encode())
        self.close()
        return self._sink.take()

    def close(self) -> None:
        """Free the encoders; what was not returned yet is lost."""
        try:
            self._container.close()
        except FFmpegError:  # a file without a frame has no end
            self._sink.take()


class _Sink:
    """A file that can only be written, in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _h264_name(extradata: bytes) -> str:
    """Return `avc1.PPCCLL` (RFC 6381): profile, constraints and level, the first bytes of the parameter set."""
    at = extradata.index(b"\x67") + 1  # the header of a sequence parameter set
    return f"avc1.{extradata[at : at + 3].hex()}"
