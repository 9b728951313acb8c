"""A dataset of drawn heads without a build: crops, landmarks and mel features as a build stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from lawdnet.audio.mel import Mel
from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Counts, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.schema import write_segments
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.storage import write_json
from lawdnet.synthetic import TalkingHead, make_identity, make_motion, make_speech
from lawdnet.types import FPS, Segment

WIDTH = 80


def drawn_segment(video_id: str, seed: int, *, index: int = 0, frames: int = 63) -> Segment:
    """One person who talks; ids that begin with `val` are held out."""
    spoken, head = make_speech(frames / FPS, seed + 100 * index), TalkingHead(make_identity(seed), (160, 128))
    crops, points, matrices = [], [], []
    for pose, opening, spread in zip(make_motion(seed, frames), spoken.opening_T, spoken.spread_T, strict=True):
        frame, points_68x2 = head.draw(pose, float(opening), float(spread))
        matrices.append(fit_all(points_68x2[None], WIDTH)[0])
        crops.append(encode_jpeg(crop_face(frame, matrices[-1], WIDTH), 95))
        points.append(transform_points(points_68x2, matrices[-1]))
    return Segment(
        segment_id=f"{video_id}-{index:04d}",
        video_id=video_id,
        index=index,
        start_frame=index * frames,
        split="val" if video_id.startswith("val") else "train",
        frames_jpeg=tuple(crops),
        landmarks_T68x2=np.stack(points).astype(np.float32),
        matrix_T33=np.stack(matrices).astype(np.float32),
        features={"mel": Mel().extract(spoken.audio_S)},
    )


def drawn_dataset(root: Path, videos: dict[str, list[Segment]]) -> Dataset:
    """A dataset of segments that are already drawn: video id → its segments."""
    (root / SEGMENTS).mkdir(parents=True)
    rows = []
    for video_id, segments in videos.items():
        path = f"{SEGMENTS}/{video_id}.parquet"
        write_segments(root / path, iter(segments))
        rows += [
            {"segment_id": s.segment_id, "video_id": video_id, "index": s.index, "track": 0, "split": s.split}
            | {"start_frame": s.start_frame, "num_frames": s.num_frames, "path": path, "row_group": group}
            | {"dropped": ""}
            for group, s in enumerate(segments)
        ]
    write_index(root, pa.Table.from_pylist(rows, schema=index_schema([])))
    write_videos(root, [])
    config = BuildConfig(crop_width=WIDTH, where=())
    extractors = {"mel": {"dim": 320, "model_sha256": None}}
    write_json(
        root / MANIFEST, manifest(config, extractors, Counts.of([]), source="drawn", funnel=[], dataset_hash="drawn")
    )
    return Dataset(root)
