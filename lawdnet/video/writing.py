"""Encode and mux: RGB frames and mono audio to H.264 and AAC in an MP4.

Shape letters: H W frame height and width; arrays are RGB uint8.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from lawdnet.types import FPS, SAMPLE_RATE, Float32, UInt8

BT709 = 1
"""BT.709 in FFmpeg's enumerations of colour spaces, primaries and transfer curves."""
AAC_FRAME = 1024
"""Samples in one AAC packet."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def add_h264(
    container: OutputContainer, height: int, width: int, fps: Fraction, options: dict[str, str]
) -> VideoStream:
    """Add a stream of H.264 (yuv420p, BT.709) whose size is even; `ToYuv` makes its frames."""
    stream: VideoStream = container.add_stream("libx264", rate=fps, options=options)
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.color_range, context.colorspace = ColorRange.MPEG, BT709
    context.color_primaries = context.color_trc = BT709
    return stream


class ToYuv:
    """Converts RGB images to frames of yuv420p, BT.709; odd sizes grow by repeating the last row or column."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, image_HW3: UInt8) -> VideoFrame:
        """Convert H×W×3 uint8."""
        height, width = image_HW3.shape[:2]
        if height % 2 or width % 2:
            image_HW3 = np.pad(image_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return self._reformatter.reformat(
            VideoFrame.from_numpy_buffer(np.ascontiguousarray(image_HW3), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            threads=1,
        )


class VideoWriter:
    """Writes an MP4 (H.264 yuv420p, BT.709, AAC) frame by frame; use it as a context manager.

    The file appears under its name when the block succeeds; when it fails, no file appears. H.264 (yuv420p) needs even
    sizes: an odd height or width is extended by repeating the last row or column.

    Args:
        path: any file name; missing folders are created, an existing file is replaced.
        height, width: size of the frames in px.
        audio: mono samples in [-1, 1], as one array or as consecutive pieces; samples after the last frame are dropped.
        sample_rate: of the audio, Hz.
        fps: frames per second.
        crf: quality from 0 (lossless) to 51; 18 is visually lossless.
        preset: x264's trade-off of time for size.

    Raises:
        ValueError: a size below 2 px, audio that is not one-dimensional or has a sample rate that AAC does not
            support, or no frame written.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        audio: Float32 | Iterator[Float32] | None = None,
        sample_rate: int = SAMPLE_RATE,
        fps: float | Fraction = FPS,
        crf: int = 18,
        preset: str = "fast",
    ) -> None:
        if min(height, width) < 2:
            raise ValueError(f"{path}: frames of {height}×{width} px cannot be encoded; they must be at least 2×2")
        if isinstance(audio, np.ndarray) and audio.ndim != 1:
            raise ValueError(f"{path}: audio has shape {audio.shape}, expected one dimension (mono)")
        if audio is not None and sample_rate not in AAC_RATES:
            raise ValueError(f"{path}: sample rate {sample_rate} Hz, expected one of {AAC_RATES}")
        self.path, self.height, self.width = path, height, width
        self.num_frames = 0
        self._audio = _pieces(audio) if isinstance(audio, np.ndarray) else audio
        self._heard: Float32 = np.empty(0, np.float32)
        self._sample_rate, self._fps = sample_rate, Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": preset}
        self._samples_written = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.absolute().with_name(f".{uuid.uuid4().hex}.tmp")
        # A name and not a file object, because +faststart opens the file again; an absolute path is never
        # taken for a protocol.
        self._container = av.open(str(self._partial), "w", format="mp4", container_options={"movflags": "+faststart"})
        self._video_stream = add_h264(self._container, self.height, self.width, self._fps, self._options)
        self._to_yuv = ToYuv()
        if self._audio is not None:
            self._audio_stream = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
        return self

    def write(self, frame_HW3: UInt8) -> None:
        """Add a frame.

        Raises:
            ValueError: the array is not uint8 RGB of the writer's size.
        """
        if frame_HW3.shape != (self.height, self.width, 3) or frame_HW3.dtype != np.uint8:
            got = f"{frame_HW3.dtype} {frame_HW3.shape}"
            raise ValueError(f"frame {self.num_frames}: {got}, expected uint8 ({self.height}, {self.width}, 3)")
        frame = self._to_yuv(frame_HW3)
        frame.pts, frame.time_base = self.num_frames, 1 / self._fps
        self._container.mux(self._video_stream.encode(frame))
        self.num_frames += 1
        self._write_audio(AAC_FRAME)

    def _write_audio(self, min_samples: int) -> None:
        """Encode audio up to the end of the last frame, in AAC packets of at least `min_samples` samples."""
        end = int(self.num_frames * self._sample_rate / self._fps)
        while self._audio is not None and (wanted := min(AAC_FRAME, end - self._samples_written)) >= min_samples:
            while len(self._heard) < wanted and (piece := next(self._audio, None)) is not None:
                self._heard = np.concatenate([self._heard, piece])
            if len(self._heard) < min_samples:
                return
            chunk, self._heard = self._heard[:wanted], self._heard[wanted:]
            samples = np.clip(chunk[None], -1, 1, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._sample_rate, self._samples_written
            frame.time_base = Fraction(1, self._sample_rate)
            self._container.mux(self._audio_stream.encode(frame))
            self._samples_written += len(chunk)

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise ValueError(f"{self.path}: no frame was written")
        self._write_audio(1)
        self._container.mux(self._video_stream.encode())
        if self._audio is not None:
            self._container.mux(self._audio_stream.encode())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._container:
                if kind is None:
                    self._finish()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def _pieces(audio_S: Float32) -> Iterator[Float32]:
    """Cut audio into pieces, as a copy of the whole could be large."""
    return (audio_S[start : start + AAC_FRAME] for start in range(0, len(audio_S), AAC_FRAME))


def write_video(path: Path, frames: Iterable[UInt8], audio: Float32 | None = None, **options: Any) -> int:
    """Write frames (H×W×3 uint8 RGB, all of one size) and audio as an MP4.

    Args:
        path: any file name; see `VideoWriter` for this, `audio` and the options.
        frames: at least one frame; they are read one at a time.

    Returns:
        The number of frames written.

    Raises:
        ValueError: as `VideoWriter`.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frame to write")
    with VideoWriter(path, height=first.shape[0], width=first.shape[1], audio=audio, **options) as writer:
        for frame in itertools.chain([first], frames):
            writer.write(frame)
    return writer.num_frames
