"""Faces and sync of whole videos, for comparing two of them.

Shape letters: T ticks, R stretches, C feature dimension, 33 a matrix that takes frame px to crop px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lawdnet.audio import load_audio, make_extractor
from lawdnet.audio.base import frame_features
from lawdnet.data.segments import encode_jpeg
from lawdnet.evaluation.sync import MIN_FRAMES, SyncScorer
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.track import bridge, smooth
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.landmarks.tracks import MAX_GAP, SMOOTHING, find_tracks
from lawdnet.types import CLIP_FRAMES, MAX_CLIPS, NUM_LANDMARKS, SAMPLES_PER_FRAME, Float32, Landmarks
from lawdnet.video import decode, probe

CROP_WIDTH = 320
"""Of the faces that a sync network is shown, px, as datasets store them."""
JPEG_QUALITY = 95
MAX_FRAMES = MAX_CLIPS * CLIP_FRAMES
"""Frames scored together, as in a dataset; a long video is the mean of its parts."""


def face_of(video: Path, source: LandmarkSource, face: str = "largest") -> Landmarks:
    """One person's landmarks, a row per tick; short gaps are bridged, and it is NaN where there is no face.

    Raises:
        Rejected: the video cannot be read, or its landmarks are missing or another video's.
    """
    probed = probe(video)
    points_T68x2 = np.full((probed.num_frames, NUM_LANDMARKS, 2), np.nan, np.float32)
    for track in find_tracks(probed, source, face=face, max_gap=MAX_GAP):
        points_T68x2[track.start : track.stop] = bridge(track, MAX_GAP).points_N68x2[: probed.num_frames - track.start]
    valid_T = np.asarray(np.isfinite(points_T68x2).all((1, 2)))
    return Landmarks(points_T68x2=points_T68x2, valid_T=valid_T, source=source.name)


@dataclass
class _Run:
    """Consecutive ticks with a face."""

    start: int
    jpegs: list[bytes] = field(default_factory=list)
    points: list[Float32] = field(default_factory=list)


def sync_of(video: Path, landmarks: Landmarks, scorer: SyncScorer) -> dict[str, float]:
    """How well a video's mouth and its own sound belong together, as the mean over stretches of 39 … 288 frames.

    Args:
        video: with sound.
        landmarks: of it or of the same head's other video, a row per tick.
        scorer: any sync network; the feature that it hears is computed here.

    Returns:
        sync_distance, sync_confidence; sync_offset: the median, frames; sync_in_time: the share of stretches within a
        frame of offset 0; empty where no stretch is long enough.

    Raises:
        Rejected: no sound, or the video cannot be read.
    """
    runs = [run for run in _runs(video, landmarks) if len(run.jpegs) >= MIN_FRAMES]
    if not runs:
        return {}
    wave = load_audio(video, num_frames=runs[-1].start + len(runs[-1].jpegs))
    rows_TC = None
    if scorer.feature:
        rows_TC = frame_features(make_extractor(scorer.feature), wave, len(wave) // SAMPLES_PER_FRAME)
    found = []
    for run in runs:
        span = slice(run.start, run.start + len(run.jpegs))
        heard = {scorer.feature: rows_TC[span]} if scorer.feature and rows_TC is not None else {}
        part = wave[span.start * SAMPLES_PER_FRAME : span.stop * SAMPLES_PER_FRAME]
        found.append(scorer(run.jpegs, np.stack(run.points), heard, part))
    weight_R = [len(run.jpegs) for run in runs]
    offset_R, *others = np.array([[s[n] for s in found] for n in ("sync_offset", "sync_distance", "sync_confidence")])
    distance, confidence = (float(np.average(values_R, weights=weight_R)) for values_R in others)
    return {
        "sync_distance": distance, "sync_confidence": confidence, "sync_offset": float(np.median(offset_R)),
        "sync_in_time": float((np.abs(offset_R) <= 1).mean()),
    }  # fmt: skip


def _runs(video: Path, landmarks: Landmarks) -> Iterator[_Run]:
    """Stretches of at most MAX_FRAMES crops; only JPEGs are held."""
    matrix_T33 = fit_all(smooth(landmarks.points_T68x2, SMOOTHING), CROP_WIDTH)
    run: _Run | None = None
    for tick, (_, frame_HW3) in enumerate(decode(video)):
        has_face = tick < len(matrix_T33) and bool(np.isfinite(matrix_T33[tick]).all())
        if run and (not has_face or len(run.jpegs) == MAX_FRAMES):
            yield run
            run = None
        if has_face:
            run = run or _Run(tick)
            run.jpegs.append(encode_jpeg(crop_face(frame_HW3, matrix_T33[tick], CROP_WIDTH), JPEG_QUALITY))
            run.points.append(transform_points(landmarks.points_T68x2[tick], matrix_T33[tick]))
    if run:
        yield run
