"""Choice of reference frames and of contrasting audio, from what is stored beside the images; nothing is decoded.

Shape letters: T frames, L numbers of a look, W nine-frame windows (one starts at every frame but the last eight).
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lawdnet.face.points import INNER_LIP_MIDDLES, JAW_ENDS, MOUTH_CORNERS, NOSE_TIP, OUTER_EYE_CORNERS
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES, Float32, Int32

STILL = 0.5
"""A mouth is at rest if it opens less than this share of what the shown one does."""


def looks(landmarks_T68x2: Float32) -> Float32:
    """Return mouth and pose of each frame, T×3 in distances between the outer corners of the eyes.

    The columns are the gap between the lips, the width of the mouth, and how far the nose is from the middle of the
    face's outline, which follows yaw.
    """
    points = landmarks_T68x2

    def span(pair: list[int]) -> Float32:
        return np.linalg.norm(points[:, pair[1]] - points[:, pair[0]], axis=1)

    eyes_T = np.maximum(span(OUTER_EYE_CORNERS), 1e-6)
    turn_T = points[:, NOSE_TIP, 0] - points[:, JAW_ENDS, 0].mean(1)
    return np.stack([span(INNER_LIP_MIDDLES) / eyes_T, span(MOUTH_CORNERS) / eyes_T, turn_T / eyes_T], 1)


def diverse(rng: np.random.Generator, clip: int, look_TL: Float32, bytes_T: Int32) -> tuple[int, ...]:
    """Return five frames of five clips other than `clip`: sharp, and as different from each other as possible.

    From each clip only the half with the larger JPEGs is considered: at one quality, detail costs bytes and blur saves
    them. The first frame is drawn at random, each next one is the frame farthest from all before it (Gonzalez 1985).
    """
    frames_CF = np.arange(len(look_TL)).reshape(-1, CLIP_FRAMES)
    sharp_CF = bytes_T[frames_CF] >= np.median(bytes_T[frames_CF], axis=1, keepdims=True)
    sharp_CF[clip] = False
    chosen = [int(rng.choice(frames_CF[sharp_CF]))]
    nearest_T = np.full(len(look_TL), np.inf)
    while len(chosen) < NUM_REFERENCES:
        sharp_CF[chosen[-1] // CLIP_FRAMES] = False
        nearest_T = np.minimum(nearest_T, np.linalg.norm(look_TL - look_TL[chosen[-1]], axis=1))
        chosen.append(int(np.where(sharp_CF.ravel(), nearest_T, -1.0).argmax()))
    return tuple(chosen)


def resting_start(gap_T: Float32, clip_start: int, starts: Int32) -> int | None:
    """Return the one of `starts` whose nine frames open the mouth least: there the recording's own silence is heard.

    This works for any stored feature, as it looks at the mouth and not at the audio. The result is None if the clip at
    `clip_start` is about as still itself, so that silence would not contradict it.
    """
    widest_W = sliding_window_view(gap_T, CLIP_FRAMES).max(1)
    stillest = int(starts[widest_W[starts].argmin()])
    return stillest if widest_W[stillest] < STILL * widest_W[clip_start] else None
