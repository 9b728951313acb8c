"""Using a trained generator: prepare a template once, then render it with any audio.

Shape letters: B batch, T frames, C feature dimension, H W frame or crop, h w the generated part of a crop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from lawdnet.audio import load_audio, stream_audio
from lawdnet.audio.base import frame_features, windows
from lawdnet.face.geometry import stage_size
from lawdnet.inference.loading import GeneratorInfo, extractor_of, open_generator
from lawdnet.inference.mouths import Mouths
from lawdnet.inference.silence import silent_frames
from lawdnet.inference.stream import back_and_forth, ping_pong
from lawdnet.inference.template import Template, network_crop, prepare
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.models.device import pick_device
from lawdnet.storage import Location, locate
from lawdnet.tasks.background import ahead
from lawdnet.types import (
    AUDIO_CONTEXT,
    AUDIO_WINDOW,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Beat,
    Bool,
    Float32,
    Rejected,
    UInt8,
    no_beat,
)
from lawdnet.video import VideoWriter

OnProgress = Callable[[int, int], None]
"""Called with the number of frames done and the total."""
OUTPUT_RATE = 48_000
"""Sample rate of the audio in a result; the network uses 16 kHz."""
CRF, PRESET = 17, "veryfast"
"""Of the encoder, by measurement: see docs/decisions.md."""
AHEAD = 4
"""Finished frames that wait for the encoder."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of one rendered video."""

    frames: int
    passed_through: int
    """Number of frames without a face, which are shown unchanged."""
    loops: float
    """Length of the audio in lengths of the template; beyond 1 the template plays back and forth."""
    seconds: float
    """Wall clock time from decoding to the finished file."""
    fps: float
    """Frames per second of wall clock time, end to end."""


@dataclass(frozen=True)
class _Frame:
    """A frame of the template, its crop if it has a face, and what is said in it."""

    tick: int
    image_HW3: UInt8
    """Its own: the mouth is pasted into it."""
    crop_HW3: UInt8 | None
    audio_C5: Float32
    still: bool


class Engine:
    """Generates the mouth of a template for given audio. Safe to use from several threads.

    Args:
        checkpoint: a run, a stage folder or an epoch folder of it, or a `.pth` of LawDNet 2024; local or remote.
        device: `auto` (a GPU if there is one), or a torch device.
        batch_size: number of frames that the network generates at once.
        region: what is pasted: `lower-face`, or `mouth`, which changes less of the frame and is faster.
        match_colour: give the mouth the colour that the frame has along the seam.
        mouth_px, audio_feature: for a `.pth` only, which does not contain them; see `load_legacy_generator`.
        weights_dir: folder that is searched first for the weights of the audio feature.
        beat: called whenever the work makes progress, for a watchdog.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or this installation computes its audio feature
        otherwise.
    """

    def __init__(
        self,
        checkpoint: str | Location,
        *,
        device: str = "auto",
        batch_size: int = 8,
        region: str = "lower-face",
        match_colour: bool = True,
        mouth_px: int | None = None,
        audio_feature: str | None = None,
        weights_dir: Location | None = None,
        beat: Beat = no_beat,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        self.device = pick_device(device)
        self.batch_size = batch_size
        self.beat = beat
        generator, meta = open_generator(locate(checkpoint), mouth_px=mouth_px, audio_feature=audio_feature)
        info = GeneratorInfo.from_meta(meta)
        self.mouth_px = info.mouth_px
        self.crop_width = info.crop_width
        self.extractor = extractor_of(info, weights_dir)
        if self.extractor.feature_dim != generator.config.audio_dim:
            needed = f"needs {generator.config.audio_dim} {self.extractor.name} values per frame"
            raise ValueError(f"{checkpoint}: {needed}, not {self.extractor.feature_dim}")
        self._mouths = Mouths(
            generator.to(self.device).eval().requires_grad_(False),
            mouth_px=self.mouth_px,
            crop_width=self.crop_width,
            region=region,
            match_colour=match_colour,
        )

    def prepare(self, video: Path, source: LandmarkSource, *, face: str = "largest") -> Template:
        """Find the face of a video and choose its references; the result can be kept and used again.

        Args:
            video: any video.
            source: finds the faces of the video.
            face: which of several faces: `largest`, or a number (0 is the largest).

        Raises:
            Rejected: see `lawdnet.inference.template.prepare`.
        """
        with _named(video):
            return prepare(
                Path(video), source, mouth_px=self.mouth_px, crop_width=self.crop_width, face=face, beat=self.beat
            )

    def frames(
        self,
        template: Template,
        waveform: Float32,
        *,
        start: int = 0,
        stop: int | None = None,
        still_silence: bool = False,
    ) -> Iterator[UInt8]:
        """Stream the frames for a waveform, one for every 1/25 s of it that has begun.

        Args:
            template: prepared by an engine with the same mouth and crop size.
            waveform: 16 kHz mono in [-1, 1].
            start, stop: the first frame to yield, and the one after the last, as in a slice of all frames.
            still_silence: show the mouth at rest in silent frames; it is generated once per frame of the template.

        Yields:
            H×W×3 uint8 RGB of the template's size. Frames without a face are the template's own.

        Raises:
            ValueError: the waveform is empty, or the template was prepared for another size.
        """
        self._check(template)
        audio_TC5 = self.audio_windows(waveform)
        still_T = silent_frames(waveform) if still_silence else np.zeros(len(audio_TC5), bool)
        if still_T.any():
            audio_TC5 = audio_TC5.copy()
            audio_TC5[still_T] = self.silent_window()
        return self._stream(template, audio_TC5[start:stop], still_T[start:stop], start)

    def draw(self, template: Template, shown: list[tuple[int, UInt8]], audio_BC5: Float32) -> list[UInt8]:
        """Generate single frames, for whoever decides which frame comes next only when it is due.

        Args:
            template: as for `frames`.
            shown: B ticks of the template, with its frames H×W×3, which are changed.
            audio_BC5: feature windows.

        Returns:
            B images, as `frames` yields them.

        Raises:
            ValueError: the template was prepared for another size.
        """
        self._check(template)
        frames = [self._frame(template, *one, audio, False) for one, audio in zip(shown, audio_BC5, strict=True)]
        return [self._pasted(template, frame, mouth) for frame, mouth in self._completed(template, frames)]

    def silent_window(self) -> Float32:
        """Return the C×5 feature window of silence."""
        silence = np.zeros(AUDIO_WINDOW * SAMPLES_PER_FRAME, np.float32)
        return np.asarray(self.audio_windows(silence)[AUDIO_CONTEXT])

    def audio_windows(self, waveform: Float32) -> Float32:
        """Return the T×C×5 feature windows of a 16 kHz mono waveform, T = ceil(samples / 640)."""
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"the audio has shape {waveform.shape}, expected mono samples and at least one")
        return windows(frame_features(self.extractor, waveform, num_frames(waveform), beat=self.beat))

    def render(
        self,
        template: Template,
        audio: Path | Float32,
        out: Path,
        on_progress: OnProgress | None = None,
        *,
        still_silence: bool = False,
    ) -> Summary:
        """Write an MP4 of the template speaking `audio`, with that audio (48 kHz mono from a file).

        Args:
            audio: any file with audio, or a 16 kHz mono waveform in [-1, 1].
            out: appears when it is complete; an existing file is replaced.
            on_progress: called after every frame.
            still_silence: see `frames`.

        Raises:
            Rejected: the audio cannot be read.
            ValueError: see `frames`; or `out` is the template or the audio, or is not named .mp4.
        """
        began = time.perf_counter()
        _check_out(out, template.path, audio)
        waveform = _load(audio) if isinstance(audio, Path) else audio
        total = num_frames(waveform)
        with (
            closing(ahead(self.frames(template, waveform, still_silence=still_silence), AHEAD)) as drawn,
            VideoWriter(
                out,
                height=template.height,
                width=template.width,
                audio=_heard(audio) if isinstance(audio, Path) else audio,
                sample_rate=OUTPUT_RATE if isinstance(audio, Path) else SAMPLE_RATE,
                crf=CRF,
                preset=PRESET,
            ) as writer,
        ):
            for done, frame_HW3 in enumerate(drawn, 1):
                writer.write(frame_HW3)
                if on_progress:
                    on_progress(done, total)
        seconds = time.perf_counter() - began
        usable_T = template.usable_T
        shown = np.fromiter(islice(ping_pong(len(usable_T)), total), np.int64)
        return Summary(
            frames=writer.num_frames,
            passed_through=int((~usable_T[shown]).sum()),
            loops=total / len(usable_T),
            seconds=seconds,
            fps=total / seconds,
        )

    def _stream(self, template: Template, audio_TC5: Float32, still_T: Bool, start: int) -> Iterator[UInt8]:
        """Decode and crop in one thread, generate in another, and paste in the caller's."""
        with (
            closing(ahead(self._batches(template, audio_TC5, still_T, start), 1)) as batches,
            closing(ahead((self._completed(template, batch) for batch in batches), 1)) as completed,
        ):
            for batch in completed:
                self.beat()
                for frame, mouth_hw3 in batch:
                    yield self._pasted(template, frame, mouth_hw3)

    def _batches(self, template: Template, audio_TC5: Float32, still_T: Bool, start: int) -> Iterator[list[_Frame]]:
        """Yield the template's frames in order; the last batch may be smaller."""
        length = len(template.matrix_T33)
        first = start % max(1, 2 * length - 2)  # then the order repeats
        shown = islice(back_and_forth(template.path, length), first, None)
        said = zip(audio_TC5, still_T.tolist(), strict=True)
        while taken := list(islice(said, self.batch_size)):
            yield [self._frame(template, *next(shown), *one) for one in taken]

    def _frame(self, template: Template, tick: int, image_HW3: UInt8, audio_C5: Float32, still: bool) -> _Frame:
        matrix_33 = template.matrix_T33[tick]
        has_face = bool(np.isfinite(matrix_33).all())
        crop_HW3 = network_crop(image_HW3, matrix_33, self.crop_width, self.mouth_px) if has_face else None
        return _Frame(tick, image_HW3, crop_HW3, audio_C5, still)

    def _completed(self, template: Template, frames: list[_Frame]) -> list[tuple[_Frame, UInt8 | None]]:
        """Return the frames with their mouths."""
        faces = [(frame, frame.crop_HW3) for frame in frames if frame.crop_HW3 is not None]
        made: Iterator[UInt8] = iter(())
        if faces:
            # views of rows stack with the channels last, which networks would round differently
            windows_BC5 = np.ascontiguousarray(np.stack([frame.audio_C5 for frame, _ in faces]))
            still_B = np.array([frame.still for frame, _ in faces])
            ticks, crops = [frame.tick for frame, _ in faces], [crop for _, crop in faces]
            made = iter(self._mouths.complete(template, ticks, crops, windows_BC5, still_B))
        return [(frame, None if frame.crop_HW3 is None else next(made)) for frame in frames]

    def _pasted(self, template: Template, frame: _Frame, mouth_hw3: UInt8 | None) -> UInt8:
        if mouth_hw3 is not None and frame.crop_HW3 is not None:
            self._mouths.paste(template, frame.tick, frame.image_HW3, frame.crop_HW3, mouth_hw3)
        return frame.image_HW3

    def _check(self, template: Template) -> None:
        if template.reference_5HW3.shape[1:3] != stage_size(self.mouth_px):
            raise ValueError(f"{template.path}: prepared for another network; prepare it with this engine")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to a rejection, which with several inputs must say which one it is about."""
    try:
        yield
    except Rejected as error:
        raise Rejected(error.reason, f"{path}: {error.detail}") from error


def _load(path: Path) -> Float32:
    with _named(path):
        return load_audio(path)


def _heard(path: Path) -> Iterator[Float32]:
    """The audio of the result, which is read as it is written."""
    with _named(path):
        yield from stream_audio(path, rate=OUTPUT_RATE)


def _check_out(out: Path, video: Path, audio: Path | Float32) -> None:
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: the result is an MP4; name it .mp4")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name a file in it")
    inputs = [video, audio] if isinstance(audio, Path) else [video]
    if out.exists() and any(out.samefile(path) for path in inputs):
        raise ValueError(f"{out}: is an input; choose another file for the result")


def num_frames(waveform: Float32) -> int:
    """Return the number of frames that a 16 kHz waveform lasts; one that has begun counts."""
    return -(-len(waveform) // SAMPLES_PER_FRAME)
