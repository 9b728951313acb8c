"""Encode and mux: RGB pictures and a mono wave to H.264 + AAC in an MP4.

Shape letters: H W picture height and width; arrays are RGB uint8.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from lawdnet.types import FPS, SAMPLE_RATE, Float32, UInt8

BT709 = 1
"""The value of BT.709 in FFmpeg's enumerations of colour spaces, primaries and transfer curves."""
AAC_FRAME = 1024
"""Samples in one packet of AAC."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class VideoWriter:
    """Writes an MP4 (H.264 yuv420p, BT.709, AAC) as a stream of pictures; use it as a context manager.

    The file appears under its name when the block ends well, and not at all when it does not. H.264 (yuv420p)
    needs even sizes: an odd height or width grows by one repeated row or column.

    Args:
        path: any file name; missing folders are made, an existing file is replaced.
        height, width: of the pictures, px.
        audio: mono wave in [-1, 1]; what goes beyond the last picture is left out.
        sample_rate: of the wave, Hz.
        fps: pictures per second.
        crf: quality from 0 (lossless) to 51; 18 is visually lossless.
        preset: x264's trade of time for size.

    Raises:
        ValueError: a size below 2 px, a wave that is not one-dimensional or of a rate that AAC does not know, or no
            picture written.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        audio: Float32 | None = None,
        sample_rate: int = SAMPLE_RATE,
        fps: float | Fraction = FPS,
        crf: int = 18,
        preset: str = "fast",
    ) -> None:
        if min(height, width) < 2:
            raise ValueError(f"{path}: pictures of {height}×{width} px cannot be encoded, 2×2 is the least")
        if audio is not None and audio.ndim != 1:
            raise ValueError(f"{path}: audio has shape {audio.shape}, expected one dimension (mono)")
        if audio is not None and sample_rate not in AAC_RATES:
            raise ValueError(f"{path}: sample rate {sample_rate} Hz, expected one of {AAC_RATES}")
        self.path, self.height, self.width = path, height, width
        self.num_frames = 0
        self._audio = None if audio is None else np.clip(audio, -1, 1, dtype=np.float32)
        self._sample_rate, self._fps = sample_rate, Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": preset}
        self._heard = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.absolute().with_name(f".{uuid.uuid4().hex}.tmp")
        # +faststart opens the file again by its name, so this is no file object; an absolute path is never
        # taken for a protocol.
        self._container = av.open(str(self._partial), "w", format="mp4", container_options={"movflags": "+faststart"})
        self._video = self._container.add_stream("libx264", rate=self._fps, options=self._options)
        self._video.width, self._video.height = self.width + self.width % 2, self.height + self.height % 2
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, BT709
        context.color_primaries = context.color_trc = BT709
        self._to_yuv = VideoReformatter()
        if self._audio is not None:
            self._sound = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
        return self

    def write(self, frame_HW3: UInt8) -> None:
        """Add a picture (uint8 RGB of the writer's size); raises ValueError for any other array."""
        if frame_HW3.shape != (self.height, self.width, 3) or frame_HW3.dtype != np.uint8:
            got = f"{frame_HW3.dtype} {frame_HW3.shape}"
            raise ValueError(f"frame {self.num_frames}: {got}, expected uint8 ({self.height}, {self.width}, 3)")
        if self.height % 2 or self.width % 2:
            frame_HW3 = np.pad(frame_HW3, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = self._to_yuv.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            threads=1,
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self._fps
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1
        self._write_audio(AAC_FRAME)

    def _write_audio(self, least: int) -> None:
        """Encode sound up to the end of the last picture, in whole AAC frames of at least `least` samples."""
        if self._audio is None:
            return
        end = min(len(self._audio), int(self.num_frames * self._sample_rate / self._fps))
        while end - self._heard >= least:
            chunk = self._audio[None, self._heard : min(self._heard + AAC_FRAME, end)]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._sample_rate, self._heard
            frame.time_base = Fraction(1, self._sample_rate)
            self._container.mux(self._sound.encode(frame))
            self._heard += chunk.shape[1]

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise ValueError(f"{self.path}: no picture was written")
        self._write_audio(1)
        self._container.mux(self._video.encode())
        if self._audio is not None:
            self._container.mux(self._sound.encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._container:
                if kind is None:
                    self._finish()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_video(path: Path, frames: Iterable[UInt8], audio: Float32 | None = None, **options: Any) -> int:
    """Write pictures (H×W×3 uint8 RGB, all of one size) and a wave as an MP4.

    Args:
        path: any file name; see `VideoWriter` for this, `audio` and the options.
        frames: at least one picture; read one at a time.

    Returns:
        The number of frames written.

    Raises:
        ValueError: as `VideoWriter`.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no picture to write")
    with VideoWriter(path, height=first.shape[0], width=first.shape[1], audio=audio, **options) as writer:
        for frame in itertools.chain([first], frames):
            writer.write(frame)
    return writer.num_frames
