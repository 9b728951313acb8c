"""How good a network is on people that it was not trained on, in sums that add up over workers.

Every worker takes its part of `plan`, and `validate` (or `validate_sync`) returns sums; `merge` adds the workers' sums
and `metrics` turns them into metrics. A segment is always measured in the same way: the window, the references and the
batches follow from the seed and the segment's id, so epochs, workers and runs can be compared.

A generator is measured by what `lawdnet infer` would show: its output pasted into the crop. It is compared with the
truth (`truth_…`: the result of a perfect generator) and with a mouth that ignores the audio (`baseline_…`: each clip
shows the mouth of its first reference). A useful value lies between the baseline's and the truth's; a metric that
could not be measured honestly is missing.

How the mouth moves is measured by landmarks (`motion.py`), in drawn and in real faces. For drawn heads, the pixels give
a second opinion (`mouth.py`), which needs no network.

Shape letters: T frames of the window, A frames of the segment, N frames of a clip (9), K references (5), H W crop,
C feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lawdnet.data.levels import encode_jpeg
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation.choices import accuracies, seed_of
from lawdnet.evaluation.image import psnr, ssim
from lawdnet.evaluation.landmarks import LandmarksByRow, scale_landmarks
from lawdnet.evaluation.motion import REFERENCE_WIDTH, Heard, motion_metrics, motion_sums, row_sums
from lawdnet.evaluation.mouth import MEASURABLE, mouth_opening_from_pixels
from lawdnet.evaluation.plan import WINDOW_CLIPS, OnSegment, Sums, merge, plan
from lawdnet.evaluation.protocol import correlate
from lawdnet.evaluation.speech import mean_level
from lawdnet.evaluation.sync import SyncEncoder, SyncScorer, distance_curve, read_curve
from lawdnet.evaluation.sync_choices import sync_choice_sums
from lawdnet.evaluation.sync_validation import offsets, sync_metrics, validate_sync
from lawdnet.evaluation.window import Window, WindowSpec, open_other, open_window
from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.face.lips import lip_gap
from lawdnet.face.mask import keep_mask, paste_alpha
from lawdnet.models.device import images_to_tensor
from lawdnet.types import CLIP_FRAMES, Landmarks, UInt8

__all__ = ["OnSegment", "Sums", "merge", "metrics", "offsets", "plan", "validate", "validate_sync"]

OnFrames = Callable[[Window, Mapping[str, UInt8]], None]
"""Called with every window and the frames of its rows: "" (generated), `baseline_` and perhaps `cross_`."""

SHARE_MEASURABLE = 0.5
"""Least share of segments with a measurable mouth; fewer would be a choice of lucky ones."""
MOUTH_MIN_WIDTH = 32
"""Width in px of the narrowest crop in which a mouth is measured."""
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
    landmarks: LandmarksByRow | None = None,
    foreign: Mapping[str, SegmentRef] | None = None,
    clips: int = WINDOW_CLIPS,
    seed: int = 0,
    on_segment: OnSegment | None = None,
    on_frames: OnFrames | None = None,
) -> Sums:
    """Measure a generator on segments; its training mode is restored afterwards.

    Args:
        generator: on `device`; called with masked sources, references and audio as in training.
        refs: result of `plan`.
        mouth_px, stored_width: mouth size that it was trained for, and width of the dataset's crops, in px.
        audio: the stored feature that it needs.
        scorer: a sync network that needs a stored feature. The one that the generator was trained against flatters it.
        landmarks: finds the landmarks of generated, true and copied mouths; None if its network is not there. It
            remembers those that do not depend on the generator, for the next call with equal arguments.
        foreign: result of `foreign_segments`. With it, the sync network also chooses between audio (`sync_accuracy_…`),
            and the generator is also driven by another person's audio (`cross_…`), where there is no truth.
        clips, seed: most clips of a segment to measure, each of 9 frames; seed of the windows and references.
        on_segment, on_frames: see `OnSegment` and `OnFrames`.

    Returns:
        Sums for `metrics`.

    Raises:
        ValueError: the sync network needs the waveform, which a dataset does not contain.
    """
    feature = _stored_feature(scorer) if scorer else None
    spec = WindowSpec(
        mouth_px=mouth_px, audio=audio, sync_feature=feature, stored_width=stored_width, seed=seed, clips=clips
    )
    was_training = generator.training
    parts = []
    generator.eval()
    try:
        for done, ref in enumerate(refs, 1):
            window = open_window(ref, spec)
            shown, driven = _shown(generator, window, torch.device(device)), {}
            if foreign is not None:
                window = replace(window, is_judged=True, other=open_other(foreign.get(ref.segment_id), spec))
            if cross := window.driven_by_other():
                driven = {"cross_": _shown(generator, cross, torch.device(device))[""]}
                parts.append(_measure_cross(driven["cross_"], cross, scorer, landmarks))
            parts.append(_measure(shown, window, scorer, landmarks))
            if on_frames:
                on_frames(window, shown | driven)
            if on_segment:
                on_segment(done, len(refs))
    finally:
        generator.train(was_training)
    return merge(parts)


def _stored_feature(scorer: SyncScorer) -> str:
    """Return the dataset's feature that a sync network listens to.

    Raises:
        ValueError: it needs the waveform.
    """
    if scorer.feature is None:
        hint = "use a sync network of ours, or `lawdnet compare` on videos"
        raise ValueError(f"{scorer.name} needs the waveform, which a dataset does not contain; {hint}")
    return scorer.feature


@torch.inference_mode()
def _shown(generator: nn.Module, window: Window, device: torch.device) -> dict[str, UInt8]:
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


def _measure(
    shown: dict[str, UInt8], window: Window, scorer: SyncScorer | None, landmarks: LandmarksByRow | None
) -> Sums:
    sums: Sums = {"segments": 1, "frames": len(window.truth_THW3)}
    for name, images_THW3 in shown.items():
        sums |= {name + key: value for key, value in _image_sums(images_THW3, window).items()}
    everything = shown | {"truth_": window.truth_THW3}
    sums |= _mouth_sums(everything, window)
    if landmarks:
        sums |= _motion_sums(everything, window, landmarks)
    if scorer:
        for name, images_THW3 in everything.items():
            sums |= {name + key: value for key, value in _sync_sums(images_THW3, window, scorer).items()}
    return sums


def _image_sums(shown_THW3: UInt8, window: Window) -> Sums:
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


def _mouth_sums(shown: Mapping[str, UInt8], window: Window) -> Sums:
    """Return sums of squares and products of openings about their means, and the opening while nobody speaks."""
    if window.truth_THW3.shape[2] < MOUTH_MIN_WIDTH:
        return {}
    opening = {name: np.array([mouth_opening_from_pixels(p) for p in rows]) for name, rows in shown.items()}
    gap_T = lip_gap(window.landmarks_T68x2)
    if correlate(opening["truth_"], gap_T) < MEASURABLE or not np.isfinite(gap_T).all():
        return {}
    quiet_T = window.quiet_T
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


def _motion_sums(shown: Mapping[str, UInt8], window: Window, landmarks: LandmarksByRow) -> Sums:
    return motion_sums(_landmarks(shown, window, landmarks), window.points(REFERENCE_WIDTH), _heard(window))


def _landmarks(shown: Mapping[str, UInt8], window: Window, landmarks: LandmarksByRow) -> dict[str, Landmarks]:
    """Return the landmarks of every row in px of a crop `REFERENCE_WIDTH` wide."""
    width = window.truth_THW3.shape[2]
    found = landmarks.find(window.key, shown, window.points(width))
    return {name: scale_landmarks(row, width, REFERENCE_WIDTH) for name, row in found.items()}


def _heard(window: Window) -> Heard:
    level_A = mean_level(window.features["mel"]) if "mel" in window.features else np.empty(0, np.float32)
    seed = seed_of(window.ref.segment_id, window.seed)
    return Heard(quiet_T=window.quiet_T, level_A=level_A, start=window.start, seed=seed)


def _measure_cross(
    shown_THW3: UInt8, cross: Window, scorer: SyncScorer | None, landmarks: LandmarksByRow | None
) -> Sums:
    """Measure mouths that another person's audio drives, without a truth to compare them with."""
    sums: Sums = {}
    if landmarks:
        found = _landmarks({"": shown_THW3}, cross, landmarks)[""]
        sums |= row_sums(found, _heard(cross))
    if scorer:
        sums |= _sync_sums(shown_THW3, cross, scorer)
    return {f"cross_{name}": value for name, value in sums.items()}


def _sync_sums(shown_THW3: UInt8, window: Window, scorer: SyncScorer) -> Sums:
    jpegs = [encode_jpeg(image_HW3, JPEG_QUALITY) for image_HW3 in shown_THW3]
    sums: Sums = {}
    if not window.is_judged:
        features = {name: rows_AC[window.span] for name, rows_AC in window.features.items()}
        found = scorer(jpegs, window.landmarks_T68x2, features, None)
    else:
        found, sums = _judged(jpegs, window, scorer.encoder)
    return sums | {
        "sync_segments": 1,
        "sync_distance": found["sync_distance"],
        "sync_confidence": found["sync_confidence"],
        "sync_in_time": float(abs(found["sync_offset"]) <= 1),
    }


@torch.inference_mode()
def _judged(jpegs: Sequence[bytes], window: Window, encoder: SyncEncoder) -> tuple[dict[str, float], Sums]:
    """Return what `SyncScorer` measures, and sums of choices between audio."""
    faces = encoder.encode_frames(jpegs, window.landmarks_T68x2, 1)
    everywhere = encoder.encode_audio(window.features, None, window.num_frames)
    other = window.other
    foreign = encoder.encode_audio(other.features, None, other.num_frames) if other else None
    own = everywhere[window.start : window.span.stop - CLIP_FRAMES + 1]
    seed = seed_of(window.ref.segment_id, window.seed)
    sums = sync_choice_sums("sync_", encoder, faces, everywhere, foreign, start=window.start, seed=seed)
    return read_curve(distance_curve(faces, own, encoder.distance, encoder.lead)), sums


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
    for name in ("", "truth_", "baseline_", "cross_"):
        found |= _means(sums, name, ("psnr", "ssim", "pixel"), "frames")
        if is_measurable and f"{name}mouth_xx" in sums:
            size = (sums[f"{name}mouth_xx"] * sums[f"{name}mouth_yy"]) ** 0.5
            found[f"{name}mouth_correlation"] = sums[f"{name}mouth_xy"] / size if size else 0.0
            if sums["quiet_frames"]:
                found |= _means(sums, name, ("silence",), "quiet_frames")
        found |= _means(sums, name, ("sync_distance", "sync_confidence", "sync_in_time"), f"{name}sync_segments")
        found |= accuracies(sums, f"{name}sync_", "shifted", f"{name}sync_accuracy")
        found |= accuracies(sums, f"{name}sync_", "foreign", f"{name}sync_foreign")
    return found | motion_metrics(sums)


def _means(sums: Mapping[str, float], row: str, names: Iterable[str], count: str) -> dict[str, float]:
    return {row + name: sums[row + name] / sums[count] for name in names if row + name in sums}
