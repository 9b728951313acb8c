"""Small datasets written without a build: grey images, and scores that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Counts, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.rules import apply_rules, parse_rules
from lawdnet.data.schema import VIDEO_SCHEMA, write_segments
from lawdnet.storage import write_json
from lawdnet.types import Segment

WIDTH = 80

Scores = Mapping[str, float | None]


def make_segment(video_id: str, index: int, scores: Scores, *, split: str = "train", frames: int = 54) -> Segment:
    return Segment(
        segment_id=f"{video_id}-{index:04d}",
        video_id=video_id,
        index=index,
        start_frame=index * frames,
        split=split,
        frames_jpeg=tuple(
            encode_jpeg(np.full((104, WIDTH, 3), 40 + 3 * index + t // 2, np.uint8), 90) for t in range(frames)
        ),
        landmarks_T68x2=np.full((frames, 68, 2), index, np.float32),
        matrix_T33=np.repeat(np.eye(3, dtype=np.float32)[None], frames, 0),
        features={"mel": np.full((frames, 320), index, np.float32)},
        scores={name: float("nan") if value is None else value for name, value in scores.items()},
    )


def make_dataset(
    root: Path,
    videos: Mapping[str, Sequence[Scores]],
    *,
    rules: Sequence[str] = (),
    rejected: Sequence[Mapping[str, Any]] = (),
    source: str = "corpus",
) -> Dataset:
    """A dataset of the given videos: id → scores of each of its segments; `val_…` ids are the validation split.

    Args:
        rejected: rows of videos.parquet for inputs that were not used.
    """
    empty: dict[str, Any] = dict.fromkeys(VIDEO_SCHEMA.names) | {"segments": 0, "frames": 0, "frames_used": 0}
    rows, index = [], []
    names = list(dict.fromkeys(name for many in videos.values() for scores in many for name in scores))
    (root / SEGMENTS).mkdir(parents=True)
    for video_id, many in videos.items():
        split = "val" if video_id.startswith("val") else "train"
        segments = [make_segment(video_id, i, scores, split=split) for i, scores in enumerate(many)]
        write_segments(root / SEGMENTS / f"{video_id}.parquet", iter(segments))
        rows.append(
            empty | {"video_id": video_id, "path": f"{video_id}.mp4", "status": "accepted", "split": split}
            | {"reason": "", "segments": len(many), "frames": 60 * len(many), "frames_used": 54 * len(many)}
            | {"seconds_crop": 2.0}
        )  # fmt: skip
        index += [
            {"segment_id": s.segment_id, "video_id": video_id, "index": s.index, "track": 0, "split": split}
            | {"start_frame": s.start_frame, "num_frames": s.num_frames, "path": f"{SEGMENTS}/{video_id}.parquet"}
            | {"row_group": s.index, "dropped": "", **{f"score_{name}": s.scores.get(name) for name in names}}
            for s in segments
        ]
    table, steps = apply_rules(pa.Table.from_pylist(index, schema=index_schema(names)), parse_rules(rules, names))
    write_index(root, table)
    rows += [empty | {"status": "rejected", "frames": 0, **row} for row in rejected]
    write_videos(root, rows)
    config = BuildConfig(crop_width=WIDTH, where=())
    funnel = [{"rule": step.rule, "dropped": step.dropped, "left": step.left} for step in steps]
    info = manifest(config, {"mel": {"dim": 320}}, Counts.of(rows), source=source, funnel=funnel, dataset_hash="abc123")
    write_json(root / MANIFEST, info | {"rules": [str(rule) for rule in parse_rules(rules, names)]})
    return Dataset(root)


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing changed."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def info(root: Path) -> dict[str, Any]:
    """dataset.json."""
    content: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf8"))
    return content
