"""Using a trained generator: prepare a template once, then render it with any audio.

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
from lawdnet.inference.stream import back_and_forth, ping_pong
from lawdnet.inference.template import Template, network_crop, prepare
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.models.device import images_to_tensor, pick_device
from lawdnet.models.generator import Generator
from lawdnet.models.legacy import load_legacy_generator
from lawdnet.models.saved import find_checkpoint, load_generator
from lawdnet.tasks.background import ahead
from lawdnet.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Beat, Float32, Rejected, UInt8, no_beat
from lawdnet.video import VideoWriter

OnProgress = Callable[[int, int], None]
"""Called with the number of frames done and the total."""
OUTPUT_RATE = 48_000
"""Sample rate of the audio in a result; the network uses 16 kHz."""


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


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """What inference needs to know about a generator."""

    mouth_px: int
    """Size of the mouth square in px."""
    crop_width: int
    """Width in px of the crops in the training data."""
    audio_feature: str
    features: Mapping[str, Mapping[str, Any]]
    """Feature of the training data → `options` and `model_sha256` of its extractor; empty for a `.pth`."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> GeneratorInfo:
        """Return the part of a checkpoint's metadata that inference needs."""
        return cls(
            mouth_px=int(meta["mouth_px"]),
            crop_width=int(meta["crop_width"]),
            audio_feature=meta["audio_feature"],
            features=meta.get("features", {}),
        )


@dataclass(frozen=True)
class _Batch:
    """Consecutive frames, with the crops of those that have a face."""

    ticks: list[int]
    frames: list[UInt8]
    crops: list[UInt8]


class Engine:
    """Generates the mouth of a template for given audio. Safe to use from several threads.

    Args:
        checkpoint: a run, a stage folder or an epoch folder of it, or a `.pth` of LawDNet 2024.
        device: `auto` (a GPU if there is one), or a torch device.
        batch_size: number of frames that the network generates at once.
        mouth_px, audio_feature: for a `.pth` only, which does not contain them; see `load_legacy_generator`.
        weights_dir: folder that is searched first for the weights of the audio feature.
        beat: called whenever the work makes progress, for a watchdog.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or this installation computes its audio feature
        otherwise.
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
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        self.device = pick_device(device)
        self.batch_size = batch_size
        self.beat = beat
        generator, meta = open_generator(Path(checkpoint), mouth_px=mouth_px, audio_feature=audio_feature)
        info = GeneratorInfo.from_meta(meta)
        self.generator: torch.nn.Module = generator.to(self.device).eval()
        self.mouth_px = info.mouth_px
        self.crop_width = info.crop_width
        self.extractor = _extractor(info, weights_dir)
        if self.extractor.feature_dim != generator.config.audio_dim:
            needed = f"needs {generator.config.audio_dim} {self.extractor.name} values per frame"
            raise ValueError(f"{checkpoint}: {needed}, not {self.extractor.feature_dim}")
        self._bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self._keep_HW = torch.from_numpy(keep_mask(*stage_size(self.mouth_px)).copy()).to(self.device)

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

    def frames(self, template: Template, waveform: Float32) -> Iterator[UInt8]:
        """Stream the frames for a waveform, one for every 1/25 s of it that has begun.

        Args:
            template: prepared by an engine with the same mouth and crop size.
            waveform: 16 kHz mono in [-1, 1].

        Yields:
            H×W×3 uint8 RGB of the template's size. Frames without a face are the template's own.

        Raises:
            ValueError: the waveform is empty, or the template was prepared for another size.
        """
        self._check(template)
        return self._generate_all(template, self.audio_windows(waveform))

    def draw(self, template: Template, shown: list[tuple[int, UInt8]], audio_BC5: Float32) -> list[UInt8]:
        """Draw single frames, for whoever decides which frame comes next only when it is due; see `live`.

        Args:
            template: as for `frames`.
            shown: B ticks of the template, with its frames H×W×3.
            audio_BC5: feature windows.

        Returns:
            B images, as `frames` yields them.

        Raises:
            ValueError: the template was prepared for another size.
        """
        self._check(template)
        reference_15HW = images_to_tensor(template.reference_5HW3, self.device).flatten(0, 1)
        return list(self._generate(template, self._batch(template, shown), reference_15HW, audio_BC5))

    def audio_windows(self, waveform: Float32) -> Float32:
        """Return the T×C×5 feature windows of a 16 kHz mono waveform, T = ceil(samples / 640)."""
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"the audio has shape {waveform.shape}, expected mono samples and at least one")
        return windows(frame_features(self.extractor, waveform, num_frames(waveform), beat=self.beat))

    def render(
        self, template: Template, audio: Path | Float32, out: Path, on_progress: OnProgress | None = None
    ) -> Summary:
        """Write an MP4 of the template speaking `audio`, with that audio (48 kHz mono from a file).

        Args:
            audio: any file with audio, or a 16 kHz mono waveform in [-1, 1].
            out: appears when it is complete; an existing file is replaced.

        Raises:
            Rejected: the audio cannot be read.
            ValueError: see `frames`; or `out` is the template or the audio, or is not named .mp4.
        """
        began = time.perf_counter()
        _check_out(out, template.path, audio)
        waveform = _load(audio, SAMPLE_RATE) if isinstance(audio, Path) else audio
        if isinstance(audio, Path):
            output, rate = _load(audio, OUTPUT_RATE), OUTPUT_RATE
        else:
            output, rate = audio, SAMPLE_RATE
        total = num_frames(waveform)
        with (
            closing(ahead(self.frames(template, waveform), self.batch_size)) as drawn,
            VideoWriter(out, height=template.height, width=template.width, audio=output, sample_rate=rate) as writer,
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

    def _generate_all(self, template: Template, audio_TC5: Float32) -> Iterator[UInt8]:
        reference_15HW = images_to_tensor(template.reference_5HW3, self.device).flatten(0, 1)
        start = 0
        for batch in ahead(self._batches(template, len(audio_TC5)), 2):
            self.beat()
            audio_BC5 = audio_TC5[start : start + len(batch.ticks)]
            yield from self._generate(template, batch, reference_15HW, audio_BC5)
            start += len(batch.ticks)

    def _batches(self, template: Template, total: int) -> Iterator[_Batch]:
        """Yield the template's frames in order, cropped for the network; the last batch may be smaller."""
        shown = islice(back_and_forth(template.path, len(template.matrix_T33)), total)
        while taken := list(islice(shown, self.batch_size)):
            yield self._batch(template, taken)

    def _batch(self, template: Template, shown: list[tuple[int, UInt8]]) -> _Batch:
        crops = [
            network_crop(frame_HW3, template.matrix_T33[tick], self.crop_width, self.mouth_px)
            for tick, frame_HW3 in shown
            if template.usable_T[tick]
        ]
        return _Batch([tick for tick, _ in shown], [frame for _, frame in shown], crops)

    def _check(self, template: Template) -> None:
        if template.reference_5HW3.shape[1:3] != stage_size(self.mouth_px):
            raise ValueError(f"{template.path}: prepared for another network; prepare it with this engine")

    def _generate(
        self, template: Template, batch: _Batch, reference_15HW: Tensor, audio_BC5: Float32
    ) -> Iterator[UInt8]:
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
        """Return the network's output for B crops of one person.

        Args:
            crops: B images H×W×3 at the network's size; the mouth is hidden here.
            reference_15HW: five references on the engine's device, in [0, 1].
            audio_BC5: feature windows.

        Returns:
            B×H×W×3 uint8.
        """
        source_B3HW = images_to_tensor(np.stack(crops), self.device) * self._keep_HW
        reference_B15HW = reference_15HW.expand(len(crops), -1, -1, -1)
        audio = torch.from_numpy(audio_BC5).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            made_B3HW = self.generator(source_B3HW, reference_B15HW, audio)
        images: UInt8 = (made_B3HW.float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return images


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to a rejection, which with several inputs must say which one it is about."""
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
        raise ValueError(f"{out}: is an input; choose another file for the result")


def num_frames(waveform: Float32) -> int:
    """Return the number of frames that a 16 kHz waveform lasts; one that has begun counts."""
    return -(-len(waveform) // SAMPLES_PER_FRAME)


def _extractor(info: GeneratorInfo, weights_dir: Path | None) -> AudioExtractor:
    """Return the extractor that the training data were made with, with its options.

    Raises:
        ValueError: its weights are missing, or differ from those of the training data.
    """
    name = info.audio_feature
    known = info.features.get(name, {})
    options = dict(known.get("options", {}))
    if "weights_dir" in extractor_options(name):
        options["weights_dir"] = weights_dir
    extractor = make_extractor(name, **options)
    if known.get("model_sha256") not in (None, extractor.model_sha256):
        found = f"SHA-256 {extractor.model_sha256}, expected {known['model_sha256']}"
        hint = "give the folder with the right ones with --weights-dir"
        raise ValueError(f"{name}: these weights are not those of the training data ({found}); {hint}")
    return extractor


def open_generator(
    checkpoint: Path, *, mouth_px: int | None = None, audio_feature: str | None = None
) -> tuple[Generator, Mapping[str, Any]]:
    """Open the generator of a run, a checkpoint or a `.pth`, in evaluation mode; return it with its metadata.

    Args:
        checkpoint: see `Engine`.
        mouth_px, audio_feature: see `Engine`.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or an argument was given that the checkpoint contains.
    """
    told = {"mouth_px": mouth_px, "audio_feature": audio_feature}
    told = {name: value for name, value in told.items() if value is not None}
    if checkpoint.is_file():
        generator, meta = load_legacy_generator(checkpoint)
        if mouth_px is not None:
            told["crop_width"] = stage_size(mouth_px)[1]
    elif told:
        raise ValueError(f"{', '.join(told)}: {checkpoint} contains this already; leave it out")
    else:
        generator, meta = load_generator(find_checkpoint(checkpoint))
    return generator, meta | told
