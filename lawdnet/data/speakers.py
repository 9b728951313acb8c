"""Choosing the speaker: of several faces in a video at a time, the one whose mouth follows the audio."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from lawdnet.data.rules import FunnelStep, mark

RULE = "face==sync"
"""What the index says about segments of people who do not speak."""


def keep_speakers(index: pa.Table) -> tuple[pa.Table, FunnelStep]:
    """Drop all but the segment with the highest sync confidence where segments of a video overlap in time.

    Segments without a confidence are dropped. Segments that are already dropped stay so and displace no others.
    """
    names = ("video_id", "start_frame", "num_frames", "score_sync_confidence", "dropped")
    rows = index.select([name for name in names if name in index.column_names]).to_pylist()
    present = [number for number, row in enumerate(rows) if not row["dropped"]]
    confidence = {number: rows[number].get("score_sync_confidence") for number in present}
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)
    dropped_R = np.zeros(len(rows), np.int64)
    surest_first = sorted(present, key=lambda n: (-np.inf if confidence[n] is None else -confidence[n], n))
    for number in surest_first:
        row = rows[number]
        start, stop = row["start_frame"], row["start_frame"] + row["num_frames"]
        spans = taken[row["video_id"]]
        if confidence[number] is None or any(start < end and begin < stop for begin, end in spans):
            dropped_R[number] = 1
        else:
            spans.append((start, stop))
    dropped = int(dropped_R.sum())
    unknown = sum(confidence[number] is None for number in present)
    return mark(index, dropped_R, [RULE]), FunnelStep(RULE, dropped, len(present) - dropped, unknown)
