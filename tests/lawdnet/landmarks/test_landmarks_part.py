"""MediaPipe's tracker begins anew where a span begins to look, and has settled where the span begins."""

from __future__ import annotations

import numpy as np

from lawdnet.data.spans import MARGIN_TICKS
from lawdnet.landmarks import MediaPipe
from lawdnet.landmarks.tracks import find_tracks
from lawdnet.video import probe
from tests.support.real_weights import people, real_weights


def test_points_of_a_part_are_those_of_the_whole() -> None:
    (path,) = people("p01")
    source = MediaPipe(weights_dir=real_weights("face_landmarker"))
    video = probe(path)
    (whole,) = find_tracks(video, source, face="largest", max_gap=5, ticks=range(90))
    first = 23
    (part,) = find_tracks(video, source, face="largest", max_gap=5, ticks=range(first, 90))
    assert (whole.start, part.start) == (0, first)
    apart_N68 = np.linalg.norm(part.points_N68x2 - whole.points_N68x2[first:], axis=2)[MARGIN_TICKS:]
    width = np.ptp(whole.points_N68x2[0, :, 0])
    assert apart_N68.mean() < 0.001 * width
    assert apart_N68.max() < 0.01 * width
