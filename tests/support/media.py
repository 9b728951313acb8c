"""Small media files whose frames show their own index and whose audio is known sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

HEIGHT, WIDTH, BITS = 48, 64, 8
TIME_BASE = Fraction(1, 120_000)


def barcode(index: int, *, bright: bool = False) -> np.ndarray:
    """Draw a frame whose upper half encodes the index in 8 bars, and whose lower half is white if bright."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    bars = [255 * (index >> bit & 1) for bit in range(BITS)]
    image[: HEIGHT // 2] = np.repeat(bars, WIDTH // BITS)[None, :, None]
    image[HEIGHT // 2 :] = 255 if bright else 0
    return image


def read_barcode(image: np.ndarray) -> int:
    bars = image[HEIGHT // 4, WIDTH // BITS // 2 :: WIDTH // BITS, 1] > 127
    return int(sum(1 << bit for bit, on in enumerate(bars) if on))


class Media:
    """Writes test files into one folder."""

    barcode = staticmethod(barcode)
    read = staticmethod(read_barcode)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        name: str = "clip.mkv",
        *,
        times: Sequence[Fraction | float] = (),
        frames: Sequence[np.ndarray] | None = None,
        codec: str = "libx264rgb",
        pix_fmt: str = "rgb24",
        setup: Callable[[Any], None] | None = None,
        convert: dict[str, Any] | None = None,
        audio: np.ndarray | None = None,
        audio_codec: str = "pcm_s16le",
        audio_rate: int = 16_000,
        audio_start: float = 0.0,
        audio_gap: float = 0.0,
        layout: str = "mono",
        options: dict[str, str] | None = None,
    ) -> Path:
        """Write frames at the given times (s), and planar audio (channels × samples) that starts at audio_start (s).

        After its first 1024 samples the audio pauses for audio_gap (s); only the time stamps show the pause.
        """
        path = self.folder / name
        kind = path.suffix[1:].replace("mkv", "matroska")
        with (
            path.open("wb+") as file,
            av.open(file, "w", format=kind, container_options=options or {}) as container,
        ):
            packets = []
            if len(times):
                video = container.add_stream(codec, rate=25, options={"crf": "0"} if "264" in codec else {})
                video.height, video.width = (HEIGHT, WIDTH) if frames is None else frames[0].shape[:2]
                video.pix_fmt = pix_fmt
                video.codec_context.time_base = TIME_BASE
                if setup:
                    setup(video)
            if audio is not None:
                audio_stream = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
            for index, time in enumerate(times):
                image = barcode(index) if frames is None else frames[index % len(frames)]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = VideoReformatter().reformat(frame, format=pix_fmt, **(convert or {}))
                frame.pts, frame.time_base = round(Fraction(time) / TIME_BASE), TIME_BASE
                packets += video.encode(frame)
            packets += video.encode() if len(times) else []
            if audio is not None:
                packets += _encode_audio(audio_stream, audio, audio_rate, audio_start, audio_gap, layout)
            for packet in packets:
                container.mux(packet)
        return path


def _encode_audio(stream: Any, audio: np.ndarray, rate: int, start: float, gap: float, layout: str) -> list[Any]:
    packets = []
    for at in range(0, audio.shape[1], 1024):
        part = np.ascontiguousarray(audio[:, at : at + 1024], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = at + round((start + gap * (at > 0)) * rate)
        packets += stream.encode(frame)
    return [*packets, *stream.encode()]
