"""The report of an evaluation: its table, its protocol, and true and generated mouths side by side."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lawdnet.report.page import write_page
from lawdnet.storage import Location
from lawdnet.types import UInt8
from lawdnet.video import write_video

MOST_VIDEOS = 12
"""Most segments that a page shows: the videos are inside the file."""
MIN_HEIGHT = 208
"""Small crops are enlarged to at least this height in px, by whole numbers, so that they can be seen."""


@dataclass
class SideBySide:
    """Silent videos of segments: a dataset stores features of the audio, not the audio."""

    videos: dict[str, str] = field(default_factory=dict)
    """Segment → its video as a `data:` URI."""
    columns: dict[str, str] = field(default_factory=dict)
    """Segment → the columns from left to right."""

    def add(self, segment: str, shown: Mapping[str, UInt8]) -> None:
        """Add a segment, unless there are enough.

        Args:
            segment: its name.
            shown: caption → T×H×W×3 frames of equal size; shorter ones end in grey.
        """
        if len(self.videos) >= MOST_VIDEOS:
            return
        frames_THW3 = side_by_side(list(shown.values()))
        with tempfile.TemporaryDirectory(prefix="lawdnet-") as folder:
            path = Path(folder) / "segment.mp4"
            write_video(path, list(frames_THW3))
            self.videos[segment] = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        self.columns[segment] = ", ".join(shown)


def side_by_side(videos: Sequence[UInt8]) -> UInt8:
    """Return videos of equal frame size beside each other, enlarged if they are small."""
    frames, height, width = max(len(video) for video in videos), *videos[0].shape[1:3]
    wide_THW3 = np.full((frames, height, width * len(videos), 3), 128, np.uint8)
    for column, video_THW3 in enumerate(videos):
        wide_THW3[: len(video_THW3), :, column * width : (column + 1) * width] = video_THW3
    times = max(1, -(-MIN_HEIGHT // height))
    return wide_THW3.repeat(times, axis=1).repeat(times, axis=2)


@dataclass(frozen=True, kw_only=True)
class EvaluationTable:
    """A table of an evaluation."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]
    """(metric, a cell per column, what it measures)."""


def evaluation_report(
    out: Location,
    *,
    title: str,
    tables: Sequence[EvaluationTable],
    notes: Sequence[str],
    protocol: Mapping[str, str],
    videos: SideBySide,
) -> None:
    """Write the report as one HTML file; an existing one is replaced."""
    write_page(out, "evaluation.html.j2", title=title, tables=tables, notes=notes, protocol=protocol, videos=videos)
