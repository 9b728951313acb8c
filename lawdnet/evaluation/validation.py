"""How good a network is on people that it was not trained on, in sums that add up over workers.

Every worker takes its part of `plan`, and `validate` (or `validate_sync`) returns sums; `merge` adds the workers' sums
and `metrics` turns them into metrics. A segment is always measured in the same way: the window, the references and the
batches follow from the seed and the segment's id, so epochs, workers and runs can be compared.

A generator is measured by what `lawdnet infer` would show: its output pasted into the crop. It is compared with the
truth (`truth_…`: the result of a perfect generator) and with a mouth that ignores the audio (`baseline_…`: each clip
shows the mouth of its first reference). A useful value lies between the baseline's and the truth's; a metric that
could not be measured honestly is missing.

Shape letters: T frames of the window, N frames of a clip (9), K references (5), H W crop, C feature dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lawdnet.audio.base import windows
from lawdnet.audio.mel import FLOOR_DB, TOP_DB
from lawdnet.data.manifest import SegmentRef
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.schema import FEATURES, from_rows, read_segment
from lawdnet.data.segments import encode_jpeg
from lawdnet.evaluation.image import psnr, ssim
from lawdnet.evaluation.mouth import MEASURABLE, mouth_opening_from_pixels
from lawdnet.evaluation.plan import WINDOW_CLIPS, OnSegment, Sums, choose, merge, plan
from lawdnet.evaluation.protocol import correlate
from lawdnet.evaluation.sync import SyncScorer
from lawdnet.evaluation.sync_validation import offsets, sync_metrics, validate_sync
from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.face.lips import lip_gap
from lawdnet.face.mask import keep_mask, paste_alpha
from lawdnet.models.device import images_to_tensor
from lawdnet.storage import locate
from lawdnet.types import CLIP_FRAMES, NUM_LANDMARKS, Bool, Float32, UInt8

__all__ = ["OnSegment", "Sums", "merge", "metrics", "offsets", "plan", "validate", "validate_sync"]

SHARE_MEASURABLE = 0.5
"""Least share of segments with a measurable mouth; fewer would be a choice of lucky ones."""
MOUTH_MIN_WIDTH = 32
"""Width in px of the narrowest crop in which a mouth is measured."""
QUIET_DB = -70.0
"""Level in dB of the loudest mel band below which nobody speaks; drawn speech is silent far below."""
JPEG_QUALITY = 95
"""Quality of stored crops: generated, true and copied mouths are compressed alike before the sync network."""


def validate(
    generator: nn.Module,
    refs: Sequence[SegmentRef],
    *,
    mouth_px: int,
    audio: str,
    stored_width: int,
    device: torch.device | str = "cpu",
    scorer: SyncScorer | None = None,
    seed: int = 0,
    on_segment: OnSegment | None = None,
) -> Sums:
    """Measure a generator on segments; its training mode is restored afterwards.

    Args:
        generator: on `device`; called with masked sources, references and audio as in training.
        refs: result of `plan`.
        mouth_px: mouth size that it was trained for.
        audio: the stored feature that it needs.
        stored_width: width of the dataset's crops in px.
        scorer: a sync network that needs a stored feature. The one that the generator was trained against flatters it.
        seed: seed of the windows and references.

    Returns:
        Sums for `metrics`.

    Raises:
        ValueError: the sync network needs the waveform, which a dataset does not contain.
    """
    if scorer and scorer.feature is None:
        hint = "use a sync network of ours, or `lawdnet compare` on videos"
        raise ValueError(f"{scorer.name} needs the waveform, which a dataset does not contain; {hint}")
    was_training = generator.training
    parts = []
    generator.eval()
    try:
        for done, ref in enumerate(refs, 1):
            window = _open(ref, mouth_px, audio, scorer, stored_width, seed)
            parts.append(_measure(_shown(generator, window, torch.device(device)), window, scorer))
            if on_segment:
                on_segment(done, len(refs))
    finally:
        generator.train(was_training)
    return merge(parts)


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Consecutive frames of a segment, with what is needed to generate and to measure them."""

    mouth_px: int
    truth_THW3: UInt8
    reference_KHW3: list[UInt8]
    """References of each clip."""
    audio_TC5: Float32
    landmarks_T68x2: Float32
    """In stored crop px."""
    features: dict[str, Float32]
    """Features that metrics need, T rows each."""


def _open(
    ref: SegmentRef, mouth_px: int, audio: str, scorer: SyncScorer | None, stored_width: int, seed: int
) -> _Window:
    needed = {"mel"} | ({scorer.feature} if scorer and scorer.feature else set())
    columns = ["frames_jpeg", "landmarks", *sorted({FEATURES + name for name in needed | {audio}})]
    table = read_segment(locate(ref.path), ref.row_group, columns)
    jpegs = table["frames_jpeg"][0].values
    height, width = stage_size(mouth_px)
    start, references = choose(ref, seed)
    span = slice(start, start + WINDOW_CLIPS * CLIP_FRAMES)

    def images(frames: Iterable[int]) -> UInt8:
        return np.stack([decode_jpeg(jpegs[f].as_py(), height, width, stored_width=stored_width) for f in frames])

    return _Window(
        mouth_px=mouth_px,
        truth_THW3=images(range(span.start, span.stop)),
        reference_KHW3=[images(row) for row in references],
        audio_TC5=windows(from_rows(table[FEATURES + audio]))[span],
        landmarks_T68x2=from_rows(table["landmarks"]).reshape(-1, NUM_LANDMARKS, 2)[span],
        features={n: from_rows(table[FEATURES + n])[span].copy() for n in needed if FEATURES + n in table.column_names},
    )


@torch.inference_mode()
def _shown(generator: nn.Module, window: _Window, device: torch.device) -> dict[str, UInt8]:
    """Return T×H×W×3 of what one would see: from the generator (""), and from the mouth that ignores the audio."""
    height, width = stage_size(window.mouth_px)
    keep_HW = torch.from_numpy(keep_mask(height, width).copy()).to(device)
    alpha_HW1 = paste_alpha(height, width)[..., None]
    rows: dict[str, list[UInt8]] = {"": [], "baseline_": []}
    for clip, reference_KHW3 in enumerate(window.reference_KHW3):
        span = slice(clip * CLIP_FRAMES, (clip + 1) * CLIP_FRAMES)
        true_NHW3 = window.truth_THW3[span]
        reference_15HW = images_to_tensor(reference_KHW3, device).flatten(0, 1)
        made_N3HW = generator(
            images_to_tensor(true_NHW3, device) * keep_HW,
            reference_15HW.expand(CLIP_FRAMES, -1, -1, -1),
            torch.from_numpy(window.audio_TC5[span]).to(device),
        )
        made_NHW3 = made_N3HW.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy() * 255
        for name, pasted in (("", made_NHW3), ("baseline_", reference_KHW3[0])):
            rows[name].append(np.rint(alpha_HW1 * pasted + (1 - alpha_HW1) * true_NHW3).astype(np.uint8))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _measure(shown: dict[str, UInt8], window: _Window, scorer: SyncScorer | None) -> Sums:
    sums: Sums = {"segments": 1, "frames": len(window.truth_THW3)}
    for name, images_THW3 in shown.items():
        sums |= {name + key: value for key, value in _image_sums(images_THW3, window).items()}
    everything = shown | {"truth_": window.truth_THW3}
    sums |= _mouth_sums(everything, window)
    if scorer:
        for name, images_THW3 in everything.items():
            sums |= {name + key: value for key, value in _sync_sums(images_THW3, window, scorer).items()}
    return sums


def _image_sums(shown_THW3: UInt8, window: _Window) -> Sums:
    box = mouth_box(window.mouth_px)
    pairs = [
        (np.ascontiguousarray(truth_HW3[box]), np.ascontiguousarray(image_HW3[box]))
        for truth_HW3, image_HW3 in zip(window.truth_THW3, shown_THW3, strict=True)
    ]
    error = sum(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs)
    return {
        "psnr": sum(psnr(a, b) for a, b in pairs),
        "ssim": sum(ssim(a, b) for a, b in pairs),
        "pixel": error / 255,
    }


def _mouth_sums(shown: Mapping[str, UInt8], window: _Window) -> Sums:
    """Return sums of squares and products of openings about their means, and the opening while nobody speaks."""
    if window.truth_THW3.shape[2] < MOUTH_MIN_WIDTH:
        return {}
    opening = {name: np.array([mouth_opening_from_pixels(p) for p in rows]) for name, rows in shown.items()}
    gap_T = lip_gap(window.landmarks_T68x2)
    if correlate(opening["truth_"], gap_T) < MEASURABLE or not np.isfinite(gap_T).all():
        return {}
    quiet_T = _quiet(window)
    sums: Sums = {"mouth_segments": 1, "quiet_frames": int(quiet_T.sum())}
    for name, opening_T in opening.items():
        against_T = gap_T if name == "truth_" else opening["truth_"]
        first, second = opening_T - opening_T.mean(), against_T - against_T.mean(dtype=np.float64)
        sums |= {
            f"{name}mouth_xx": float(first @ first),
            f"{name}mouth_xy": float(first @ second),
            f"{name}mouth_yy": float(second @ second),
            f"{name}silence": float(opening_T[quiet_T].sum()),
        }
    return sums


def _quiet(window: _Window) -> Bool:
    """Whether nobody speaks, for T frames; False everywhere if there are no mel features to tell."""
    if "mel" not in window.features:
        return np.zeros(len(window.truth_THW3), bool)
    loudest_T = window.features["mel"].max(1)
    return np.asarray(FLOOR_DB + (loudest_T + 1) / 2 * (TOP_DB - FLOOR_DB) < QUIET_DB)


def _sync_sums(shown_THW3: UInt8, window: _Window, scorer: SyncScorer) -> Sums:
    jpegs = [encode_jpeg(image_HW3, JPEG_QUALITY) for image_HW3 in shown_THW3]
    found = scorer(jpegs, window.landmarks_T68x2, window.features, None)
    return {
        "sync_segments": 1,
        "sync_distance": found["sync_distance"],
        "sync_confidence": found["sync_confidence"],
        "sync_in_time": float(abs(found["sync_offset"]) <= 1),
    }


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics (`lawdnet.training.gates.VALIDATION_METRICS`) behind merged sums, without those not measured.

    A correlation is over all frames of all segments, about each segment's own means, as people's mouths differ in size.
    The truth's correlation is that of pixels and landmarks, the most that this measurement can show.
    """
    if not sums.get("segments"):
        return {}
    return sync_metrics(sums) if "choices" in sums else _generator_metrics(sums)


def _generator_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    found = {"segments": sums["segments"], "frames": sums["frames"]}
    is_measurable = sums.get("mouth_segments", 0) >= SHARE_MEASURABLE * sums["segments"]
    for name in ("", "truth_", "baseline_"):
        found |= _means(sums, name, ("psnr", "ssim", "pixel"), "frames")
        if is_measurable:
            size = (sums[f"{name}mouth_xx"] * sums[f"{name}mouth_yy"]) ** 0.5
            found[f"{name}mouth_correlation"] = sums[f"{name}mouth_xy"] / size if size else 0.0
            if sums["quiet_frames"]:
                found |= _means(sums, name, ("silence",), "quiet_frames")
        found |= _means(sums, name, ("sync_distance", "sync_confidence", "sync_in_time"), f"{name}sync_segments")
    return found


def _means(sums: Mapping[str, float], row: str, names: Iterable[str], count: str) -> dict[str, float]:
    return {row + name: sums[row + name] / sums[count] for name in names if row + name in sums}
