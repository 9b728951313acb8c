"""Faces and sync of whole videos, for comparing two videos.

Shape letters: T ticks, R stretches, C feature dimension, 33 a matrix that takes frame px to crop px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lawdnet.audio import load_audio, make_extractor
from lawdnet.audio.base import frame_features
from lawdnet.data.levels import encode_jpeg
from lawdnet.evaluation.sync import MIN_FRAMES, SyncScorer
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.track import bridge, smooth
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.landmarks.tracks import MAX_GAP, SMOOTHING, find_tracks
from lawdnet.types import CLIP_FRAMES, MAX_CLIPS, NUM_LANDMARKS, SAMPLES_PER_FRAME, Float32, Landmarks
from lawdnet.video import decode, probe

CROP_WIDTH = 320
"""Width in px of the crops that a sync network sees, as in datasets."""
JPEG_QUALITY = 95
MAX_FRAMES = MAX_CLIPS * CLIP_FRAMES
"""Most frames that are scored together, as in a dataset; a long video gets the mean of its parts."""


def face_of(video: Path, source: LandmarkSource, face: str = "largest") -> Landmarks:
    """Return one person's landmarks, a row per tick; short gaps are bridged, and rows without a face are NaN.

    Raises:
        Rejected: the video cannot be read, or its landmarks are missing or belong to another video.
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
    """Measure how well a video's mouth and audio belong together, as the mean over stretches of 39 … 288 frames.

    Args:
        video: a video with audio.
        landmarks: landmarks of the video, or of another video of the same head, a row per tick.
        scorer: any sync network; the feature that it needs is computed here.

    Returns:
        sync_distance and sync_confidence; sync_offset: the median, in frames; sync_in_time: the share of stretches
        within a frame of offset 0. Empty if no stretch is long enough.

    Raises:
        Rejected: there is no audio, or the video cannot be read.
    """
    runs = [run for run in _runs(video, landmarks) if len(run.jpegs) >= MIN_FRAMES]
    if not runs:
        return {}
    waveform = load_audio(video, num_frames=runs[-1].start + len(runs[-1].jpegs))
    rows_TC = None
    if scorer.feature:
        rows_TC = frame_features(make_extractor(scorer.feature), waveform, len(waveform) // SAMPLES_PER_FRAME)
    found = []
    for run in runs:
        span = slice(run.start, run.start + len(run.jpegs))
        features = {scorer.feature: rows_TC[span]} if scorer.feature and rows_TC is not None else {}
        part = waveform[span.start * SAMPLES_PER_FRAME : span.stop * SAMPLES_PER_FRAME]
        found.append(scorer(run.jpegs, np.stack(run.points), features, part))
    weight_R = [len(run.jpegs) for run in runs]
    offset_R, *others = np.array([[s[n] for s in found] for n in ("sync_offset", "sync_distance", "sync_confidence")])
    distance, confidence = (float(np.average(values_R, weights=weight_R)) for values_R in others)
    return {
        "sync_distance": distance,
        "sync_confidence": confidence,
        "sync_offset": float(np.median(offset_R)),
        "sync_in_time": float((np.abs(offset_R) <= 1).mean()),
    }


def _runs(video: Path, landmarks: Landmarks) -> Iterator[_Run]:
    """Yield stretches of at most MAX_FRAMES crops; only JPEGs are in memory."""
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
