"""A trained generator at work: prepare a template once, then render any number of sounds onto it.

Shape letters: B batch, T frames, C feature dimension, H W crop, 33 a matrix that takes frame px to crop px.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lawdnet.audio import load_audio
from lawdnet.audio.base import AudioExtractor, extractor_options, frame_features, make_extractor, windows
from lawdnet.face.align import paste_face, scale_matrix
from lawdnet.face.geometry import stage_size
from lawdnet.face.mask import keep_mask, paste_alpha
from lawdnet.inference.stream import ahead, back_and_forth, ping_pong
from lawdnet.inference.template import Template, network_crop, prepare
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.models.device import images_to_tensor, pick_device
from lawdnet.models.generator import Generator
from lawdnet.models.legacy import load_legacy_generator
from lawdnet.models.saved import find_checkpoint, load_generator
from lawdnet.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Beat, Float32, Rejected, UInt8, no_beat
from lawdnet.video import VideoWriter

OnProgress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""
HEARD_RATE = 48_000
"""Samples per second of the sound in a result; the network hears 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a rendering came to."""

    frames: int
    passed_through: int
    """Frames without a face, shown unchanged."""
    loops: float
    """Lengths of the template that the sound took; beyond 1 it plays back and forth."""
    seconds: float
    """Wall clock time from decoding to the finished file."""
    fps: float
    """Frames per second of wall clock time, end to end."""


@dataclass(frozen=True)
class _Batch:
    """Consecutive frames, with crops of those that have a face."""

    ticks: list[int]
    frames: list[UInt8]
    crops: list[UInt8]


class Engine:
    """Draws the mouth of a template for a sound. Safe to use from several threads.

    Args:
        checkpoint: a run, a stage folder or an epoch folder of it, or a `.pth` of LawDNet 2024.
        device: `auto` (a GPU if there is one), or as torch names them.
        batch_size: frames that the network draws at once.
        mouth_px, audio_feature: for a `.pth` only, which does not tell; see `load_legacy_generator`.
        weights_dir: looked in first for the weights of the audio features.
        beat: called whenever any work gets on, for a watchdog.

    Raises:
        ValueError: no such checkpoint, a damaged one, or features that this installation computes otherwise.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        device: str = "auto",
        batch_size: int = 8,
        mouth_px: int | None = None,
        audio_feature: str | None = None,
        weights_dir: Path | None = None,
        beat: Beat = no_beat,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size}, give at least 1")
        self.device = pick_device(device)
        self.batch_size, self.beat = batch_size, beat
        generator, meta = open_generator(Path(checkpoint), mouth_px=mouth_px, audio_feature=audio_feature)
        self.generator: torch.nn.Module = generator.to(self.device).eval()
        self.mouth_px, self.crop_width = int(meta["mouth_px"]), int(meta["crop_width"])
        self.extractor = _extractor(meta, weights_dir)
        if self.extractor.feature_dim != generator.config.audio_dim:
            found, wanted = self.extractor.feature_dim, generator.config.audio_dim
            raise ValueError(f"{checkpoint}: hears {wanted} {self.extractor.name} values a frame, not {found}")
        self._bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self._keep_HW = torch.from_numpy(keep_mask(*stage_size(self.mouth_px)).copy()).to(self.device)

    def prepare(self, video: Path, source: LandmarkSource, *, face: str = "largest") -> Template:
        """Finds the face of a video and chooses its references; the result can be kept and used again.

        Args:
            video: any video.
            source: finds its faces.
            face: whose, of several; `largest` or a number (0 is the largest).

        Raises:
            Rejected: see `lawdnet.inference.template.prepare`.
        """
        with _named(video):
            return prepare(
                Path(video), source, mouth_px=self.mouth_px, crop_width=self.crop_width, face=face, beat=self.beat
            )

    def frames(self, template: Template, wave: Float32) -> Iterator[UInt8]:
        """The pictures that go with a sound, one for each begun 1/25 s of it, streamed.

        Args:
            template: prepared by an engine with the same mouth and crop size.
            wave: 16 kHz mono in [-1, 1].

        Yields:
            H×W×3 uint8 RGB of the template's size. Frames without a face are the template's own.

        Raises:
            ValueError: the wave is empty, or the template is of another size.
        """
        if template.reference_5HW3.shape[1:3] != stage_size(self.mouth_px):
            raise ValueError(f"{template.path}: prepared for another network; prepare it with this engine")
        return self._draw_all(template, self.hear(wave))

    def hear(self, wave: Float32) -> Float32:
        """T×C×5 feature windows of a 16 kHz mono wave, T = ceil(samples / 640)."""
        if wave.ndim != 1 or not len(wave):
            raise ValueError(f"the sound has shape {wave.shape}, expected mono samples and at least one")
        return windows(frame_features(self.extractor, wave, num_frames(wave), beat=self.beat))

    def render(
        self, template: Template, audio: Path | Float32, out: Path, on_progress: OnProgress | None = None
    ) -> Summary:
        """Writes an MP4 of the template saying `audio`, with that sound (48 kHz mono from a file).

        Args:
            audio: any file with sound, or a 16 kHz mono wave in [-1, 1].
            out: appears when it is complete; an existing file is replaced.

        Raises:
            Rejected: the sound cannot be read.
            ValueError: as `frames`, or `out` is the template or the sound, or no name for an MP4.
        """
        began = time.perf_counter()
        _check_out(out, template.path, audio)
        wave = _load(audio, SAMPLE_RATE) if isinstance(audio, Path) else audio
        sound, rate = (_load(audio, HEARD_RATE), HEARD_RATE) if isinstance(audio, Path) else (audio, SAMPLE_RATE)
        total = num_frames(wave)
        with (
            closing(ahead(self.frames(template, wave), self.batch_size)) as drawn,
            VideoWriter(out, height=template.height, width=template.width, audio=sound, sample_rate=rate) as writer,
        ):
            for done, frame_HW3 in enumerate(drawn, 1):
                writer.write(frame_HW3)
                if on_progress:
                    on_progress(done, total)
        seconds, usable_T = time.perf_counter() - began, template.usable_T
        shown = np.fromiter(islice(ping_pong(len(usable_T)), total), np.int64)
        return Summary(
            frames=writer.num_frames,
            passed_through=int((~usable_T[shown]).sum()),
            loops=total / len(usable_T),
            seconds=seconds,
            fps=total / seconds,
        )

    def _draw_all(self, template: Template, audio_TC5: Float32) -> Iterator[UInt8]:
        reference_15HW = images_to_tensor(template.reference_5HW3, self.device).flatten(0, 1)
        start = 0
        for batch in ahead(self._batches(template, len(audio_TC5)), 2):
            self.beat()
            audio_BC5 = audio_TC5[start : start + len(batch.ticks)]
            yield from self._draw(template, batch, reference_15HW, audio_BC5)
            start += len(batch.ticks)

    def _batches(self, template: Template, total: int) -> Iterator[_Batch]:
        """The template's frames in order, cut out and ready for the network; the last batch may be smaller."""
        usable_T = template.usable_T
        shown = islice(back_and_forth(template.path, len(usable_T)), total)
        while taken := list(islice(shown, self.batch_size)):
            crops = [
                network_crop(frame_HW3, template.matrix_T33[tick], self.crop_width, self.mouth_px)
                for tick, frame_HW3 in taken
                if usable_T[tick]
            ]
            yield _Batch([tick for tick, _ in taken], [frame for _, frame in taken], crops)

    def _draw(self, template: Template, batch: _Batch, reference_15HW: Tensor, audio_BC5: Float32) -> Iterator[UInt8]:
        usable_B = template.usable_T[batch.ticks]
        made = self.complete(batch.crops, reference_15HW, audio_BC5[usable_B]) if batch.crops else ()
        faces: Iterator[UInt8] = iter(made)
        height, width = stage_size(self.mouth_px)
        for tick, frame_HW3, usable in zip(batch.ticks, batch.frames, usable_B, strict=True):
            if usable:
                matrix_33 = scale_matrix(template.matrix_T33[tick], self.crop_width, width)
                frame_HW3 = paste_face(frame_HW3, next(faces), matrix_33, paste_alpha(height, width))
            yield frame_HW3

    @torch.inference_mode()
    def complete(self, crops: list[UInt8], reference_15HW: Tensor, audio_BC5: Float32) -> UInt8:
        """The network's answer for B crops of one person.

        Args:
            crops: B pictures H×W×3 at the network's size; the mouth is hidden here.
            reference_15HW: five references, on the engine's device, in [0, 1].
            audio_BC5: feature windows.

        Returns:
            B×H×W×3 uint8.
        """
        source_B3HW = images_to_tensor(np.stack(crops), self.device) * self._keep_HW
        reference_B15HW = reference_15HW.expand(len(crops), -1, -1, -1)
        audio = torch.from_numpy(audio_BC5).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            made_B3HW = self.generator(source_B3HW, reference_B15HW, audio)
        pictures: UInt8 = (made_B3HW.float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return pictures


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """With several inputs a refusal must say which one it is about."""
    try:
        yield
    except Rejected as error:
        raise Rejected(error.reason, f"{path}: {error.detail}") from error


def _load(path: Path, rate: int) -> Float32:
    with _named(path):
        return load_audio(path, rate=rate)


def _check_out(out: Path, video: Path, audio: Path | Float32) -> None:
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: the result is an MP4; name it .mp4")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name a file in it")
    inputs = [video, audio] if isinstance(audio, Path) else [video]
    if out.exists() and any(out.samefile(path) for path in inputs):
        raise ValueError(f"{out}: is an input; name another file for the result")


def num_frames(wave: Float32) -> int:
    """Frames that a 16 kHz wave lasts; one that has begun counts."""
    return -(-len(wave) // SAMPLES_PER_FRAME)


def _extractor(meta: Mapping[str, Any], weights_dir: Path | None) -> AudioExtractor:
    """The extractor that the training data were made with, with its options.

    Raises:
        ValueError: its weights are not there, or are others than those.
    """
    name = meta["audio_feature"]
    known = meta.get("features", {}).get(name, {})
    options = dict(known.get("options", {}))
    if "weights_dir" in extractor_options(name):
        options["weights_dir"] = weights_dir
    made = make_extractor(name, **options)
    if known.get("model_sha256") not in (None, made.model_sha256):
        raise ValueError(f"{name}: these weights are not those of the training data (SHA-256 {made.model_sha256}, "
                         f"expected {known['model_sha256']}); name their folder with --weights-dir")  # fmt: skip
    return made


def open_generator(
    checkpoint: Path, *, mouth_px: int | None = None, audio_feature: str | None = None
) -> tuple[Generator, dict[str, Any]]:
    """The generator of a run, a checkpoint or a `.pth` in evaluation mode, and what is known of it.

    Args:
        checkpoint: as of `Engine`.
        mouth_px, audio_feature: as of `Engine`.

    Raises:
        ValueError: no such checkpoint, a damaged one, or something told that it says itself.
    """
    told: dict[str, Any] = {"mouth_px": mouth_px, "audio_feature": audio_feature}
    told = {name: value for name, value in told.items() if value is not None}
    if checkpoint.is_file():
        generator, meta = load_legacy_generator(checkpoint)
        if mouth_px is not None:
            told["crop_width"] = stage_size(mouth_px)[1]
        return generator, meta | told
    if told:
        raise ValueError(f"{', '.join(told)}: {checkpoint} says this itself; leave it out")
    return load_generator(find_checkpoint(checkpoint))
