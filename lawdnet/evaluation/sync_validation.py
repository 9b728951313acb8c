"""How well a sync network tells right from wrong audio for people that it was not trained on.

Shape letters: C feature dimension.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lawdnet.data.sampling import MIN_SHIFT
from lawdnet.data.schema import FEATURES, from_rows, read_segment
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation.choices import SPANS, accuracies, choice_sums, level_score, seed_of
from lawdnet.evaluation.plan import WINDOW_CLIPS, OnSegment, Sums, choose, merge
from lawdnet.evaluation.speech import mean_level
from lawdnet.evaluation.sync import MAX_OFFSET, SyncEncoder, distance_curve, encoder_of, read_curve
from lawdnet.evaluation.sync_choices import sync_choice_sums
from lawdnet.face.lips import lip_gap
from lawdnet.models.syncnet import SyncNet
from lawdnet.storage import locate
from lawdnet.types import CLIP_FRAMES, NUM_LANDMARKS

OFFSET = "offset_at_"
"""Prefix of the sums that count segments by the offset, in frames, at which they were found."""
SAME = 1e-5
"""Distances that differ by less are taken for equal."""


def validate_sync(
    syncnet: SyncNet,
    refs: Sequence[SegmentRef],
    *,
    feature: str,
    device: torch.device | str = "cpu",
    foreign: Mapping[str, SegmentRef] | None = None,
    clips: int = WINDOW_CLIPS,
    seed: int = 0,
    on_segment: OnSegment | None = None,
) -> Sums:
    """Measure a sync network on segments; its training mode is restored afterwards.

    Each mouth must choose between its own audio and audio from elsewhere in its segment, at least 5 frames away (equal
    audio, as in silence, does not count); and each window is searched for its offset, 0 if the dataset is in sync.

    Args:
        feature: the stored feature that the network needs.
        foreign: result of `foreign_segments`, for choices between own and foreign audio.
        clips: most clips of a segment to measure, each of 9 frames.

    Returns:
        Sums for `lawdnet.evaluation.validation.metrics` and `offsets`.
    """
    was_training = syncnet.training
    parts = []
    try:
        for done, ref in enumerate(refs, 1):
            other = (foreign or {}).get(ref.segment_id)
            parts.append(_choices(encoder_of(syncnet, feature, torch.device(device)), ref, feature, other, seed, clips))
            if on_segment:
                on_segment(done, len(refs))
    finally:
        syncnet.train(was_training)
    return merge(parts)


@torch.inference_mode()
def _choices(
    encoder: SyncEncoder, ref: SegmentRef, feature: str, foreign: SegmentRef | None, seed: int, clips: int
) -> Sums:
    table = _read(ref, {feature, "mel"})
    start, references = choose(ref, seed, clips)
    frames = len(references) * CLIP_FRAMES
    jpegs = [data.as_py() for data in table["frames_jpeg"][0].values[start : start + frames]]
    faces = encoder.encode_frames(jpegs, np.zeros((frames, NUM_LANDMARKS, 2), np.float32), 1)
    everywhere = encoder.encode_audio({feature: from_rows(table[FEATURES + feature]).copy()}, None, ref.num_frames)
    audio = everywhere[start : start + frames - CLIP_FRAMES + 1]
    rng = np.random.default_rng([seed, zlib.crc32(ref.segment_id.encode()), 1])
    positions = np.arange(len(everywhere))
    other = [int(rng.choice(positions[np.abs(positions - start - p) >= MIN_SHIFT])) for p in range(len(audio))]
    mouths = faces[encoder.lead : encoder.lead + len(audio)]
    near, far = encoder.distance(mouths, audio), encoder.distance(mouths, everywhere[other])
    is_choice = (near - far).abs() > SAME
    offset = read_curve(distance_curve(faces, audio, encoder.distance, encoder.lead))["sync_offset"]
    other_audio = _foreign_audio(encoder, foreign, feature)
    seeds = seed_of(ref.segment_id, seed)
    sums = sync_choice_sums("spans_", encoder, faces, everywhere, other_audio, start=start, seed=seeds)
    return (
        sums
        | _floor_sums(table, start, frames, seeds)
        | {
            "segments": 1,
            "choices": int(is_choice.sum()),
            "right": int((near < far)[is_choice].sum()),
            "mouths": len(mouths),
            "own_distance": float(near.sum()),
            "other_distance": float(far.sum()),
            f"{OFFSET}{offset:+.0f}": 1,
        }
    )


def _read(ref: SegmentRef, features: set[str]) -> pa.Table:
    columns = ["frames_jpeg", "landmarks", *sorted(FEATURES + name for name in features)]
    return read_segment(locate(ref.path), ref.row_group, columns)


def _foreign_audio(encoder: SyncEncoder, ref: SegmentRef | None, feature: str) -> Tensor | None:
    if ref is None:
        return None
    rows_AC = from_rows(_read(ref, {feature})[FEATURES + feature]).copy()
    return encoder.encode_audio({feature: rows_AC}, None, ref.num_frames)


def _floor_sums(table: pa.Table, start: int, frames: int, seed: tuple[int, ...]) -> Sums:
    """Return the choices of the lips' gap, from the stored landmarks, and the audio's level: a floor for networks."""
    if FEATURES + "mel" not in table.column_names:
        return {}
    points_A68x2 = from_rows(table["landmarks"]).reshape(-1, NUM_LANDMARKS, 2)
    score = level_score(lip_gap(points_A68x2[start : start + frames]), mean_level(from_rows(table[FEATURES + "mel"])))
    return choice_sums("floor_", score, None, mouths=frames, audio=len(points_A68x2), start=start, seed=seed)


def offsets(sums: Mapping[str, float]) -> dict[int, int]:
    """Return offset in frames, -15 … 15 (positive = the audio is late) → number of segments, from `validate_sync`."""
    return {offset: int(sums.get(f"{OFFSET}{offset:+d}", 0)) for offset in range(-MAX_OFFSET, MAX_OFFSET + 1)}


def sync_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics behind merged sums of `validate_sync`, of at least one segment."""
    found = offsets(sums)
    return {
        "segments": sums["segments"],
        "accuracy": sums["right"] / sums["choices"] if sums["choices"] else 0.5,
        "offset_within_one": sum(found[o] for o in (-1, 0, 1)) / sums["segments"],
        "offset_common": float(max(found, key=lambda o: (found[o], -abs(o)))),
        "own_distance": sums["own_distance"] / sums["mouths"],
        "other_distance": sums["other_distance"] / sums["mouths"],
        **accuracies(sums, "spans_", "shifted", "accuracy", SPANS[1:]),
        **accuracies(sums, "spans_", "foreign", "foreign"),
        **accuracies(sums, "floor_", "shifted", "floor"),
    }
