"""Small media files whose pictures tell their own index and whose sound is known sample by sample."""

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
    """A picture whose upper half spells index in 8 bars, and whose lower half is white when bright."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    bars = [255 * (index >> bit & 1) for bit in range(BITS)]
    picture[: HEIGHT // 2] = np.repeat(bars, WIDTH // BITS)[None, :, None]
    picture[HEIGHT // 2 :] = 255 if bright else 0
    return picture


def read_barcode(picture: np.ndarray) -> int:
    bars = picture[HEIGHT // 4, WIDTH // BITS // 2 :: WIDTH // BITS, 1] > 127
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
        pictures: Sequence[np.ndarray] | None = None,
        codec: str = "libx264rgb",
        pix_fmt: str = "rgb24",
        setup: Callable[[Any], None] | None = None,
        convert: dict[str, Any] | None = None,
        sound: np.ndarray | None = None,
        sound_codec: str = "pcm_s16le",
        sound_rate: int = 16_000,
        sound_start: float = 0.0,
        sound_gap: float = 0.0,
        layout: str = "mono",
        options: dict[str, str] | None = None,
    ) -> Path:
        """Pictures at the given times (s), and planar sound (channels × samples) from sound_start (s) on.

        After its first 1024 samples the sound pauses for sound_gap (s), by its time stamps alone.
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
                video.height, video.width = (HEIGHT, WIDTH) if pictures is None else pictures[0].shape[:2]
                video.pix_fmt = pix_fmt
                video.codec_context.time_base = TIME_BASE
                if setup:
                    setup(video)
            if sound is not None:
                audio = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
            for index, time in enumerate(times):
                picture = barcode(index) if pictures is None else pictures[index % len(pictures)]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame = VideoReformatter().reformat(frame, format=pix_fmt, **(convert or {}))
                frame.pts, frame.time_base = round(Fraction(time) / TIME_BASE), TIME_BASE
                packets += video.encode(frame)
            packets += video.encode() if len(times) else []
            if sound is not None:
                packets += _encode_sound(audio, sound, sound_rate, sound_start, sound_gap, layout)
            for packet in packets:
                container.mux(packet)
        return path


def _encode_sound(audio: Any, sound: np.ndarray, rate: int, start: float, gap: float, layout: str) -> list[Any]:
    packets = []
    for at in range(0, sound.shape[1], 1024):
        part = np.ascontiguousarray(sound[:, at : at + 1024], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = (
            rate,
            Fraction(1, rate),
            at + round((start + gap * (at > 0)) * rate),
        )
        packets += audio.encode(frame)
    return [*packets, *audio.encode()]
