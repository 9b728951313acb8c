"""Small datasets, written without a build, and published ones of LawDNet 2024, for the tests of their transfer."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Counts, Dataset, manifest, write_index, write_videos
from lawdnet.data.schema import with_columns, write_segments
from lawdnet.data.segments import video_id
from lawdnet.data.transfer import index_of
from lawdnet.storage import write_json
from lawdnet.types import Segment

WIDTH = 20


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def segment(name: str, index: int, *, split: str, shade: int, frames: int = 54, **scores: float) -> Segment:
    picture = np.full((26, WIDTH, 3), shade, np.uint8)
    return Segment(
        segment_id=f"{name}-{index:04d}",
        video_id=name,
        index=index,
        start_frame=index * 60,
        split=split,
        frames_jpeg=(encode_jpeg(picture, 95),) * frames,
        landmarks_T68x2=np.full((frames, 68, 2), shade, np.float32),
        matrix_T33=np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1)),
        features={"mel": np.full((frames, 4), shade, np.float32)},
        scores=scores,
    )


def make_dataset(
    root: Path,
    videos: dict[str, str],
    *,
    split: str = "train",
    source: str = "",
    shade: int = 50,
    scores: Sequence[str] = ("sharpness",),
    rejected: Sequence[str] = (),
    ids: dict[str, str] | None = None,
    crop_width: int = WIDTH,
    model: str | None = None,
) -> Dataset:
    """Two segments per video; `videos` is path → content."""
    config = BuildConfig(crop_width=crop_width, where=())
    rows: list[dict[str, Any]] = []
    tables = []
    for path, content in videos.items():
        name = (ids or {}).get(path) or video_id(Path(path), sha(content))
        file = root / SEGMENTS / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = dict.fromkeys(scores, 3.5)
        write_segments(file, iter([segment(name, k, split=split, shade=shade, **values) for k in range(2)]))
        tables.append(index_of(file, f"{SEGMENTS}/{name}.parquet"))
        rows.append(row(path, content, video_id=name, split=split))
    rows += [
        row(path, path, status="rejected", reason="no_face", split="", segments=0, frames_used=0) for path in rejected
    ]
    index = pa.concat_tables(tables)
    write_index(root, index)
    write_videos(root, rows)
    info = manifest(
        config,
        {"mel": {"dim": 4, "model_sha256": model}},
        Counts.of(rows),
        source=source,
        funnel=[{"rule": "", "dropped": 0, "left": len(index)}],
        dataset_hash=sha(str(root) + str(videos))[:16],
    )
    write_json(root / MANIFEST, info)
    return Dataset(root)


def row(path: str, content: str, **values: Any) -> dict[str, Any]:
    return {
        "video_id": "", "path": path, "status": "accepted", "reason": "", "detail": "", "landmarks": "openface",
        "segments": 2, "frames": 120, "frames_used": 108, "seconds": 1.0, "bytes": 10, "sha256": sha(content),
        "landmarks_sha256": "", **values,
    }  # fmt: skip


def drop(root: Path, video: str, rule: str) -> None:
    """Marks a video's segments as fallen at a rule."""
    index = Dataset(root).index()
    pairs = zip(index["video_id"].to_pylist(), index["dropped"].to_pylist(), strict=True)
    marks = [rule if name == video else old for name, old in pairs]
    write_index(root, with_columns(index, {"dropped": pa.array(marks, pa.string())}))


def publish(
    root: Path, videos: dict[str, Sequence[int]], *, size: tuple[int, int] = (416, 320), dim: int = 29, author: str = ""
) -> Path:
    """The published layout: `videos` is name → numbers of its clips. Returns the path of the JSON."""
    entries = {}
    for name, clips in videos.items():
        rng = np.random.default_rng(len(name))
        rows = rng.normal(size=(9 * (max(clips, default=0) + 1) + 3, dim))
        data = [write_clip(root, name, number, size, rows, author) for number in clips]
        entries[name] = {"video_clip_num": len(data), "clip_data_list": data}
        texts = root / "split_video_25fps_deepspeech"
        texts.mkdir(parents=True, exist_ok=True)
        np.savetxt(texts / f"{name}_deepspeech.txt", rows)
    path = root / "training_json.json"
    path.write_text(json.dumps(entries))
    return path


def write_clip(
    root: Path, name: str, number: int, size: tuple[int, int], rows: np.ndarray, author: str
) -> dict[str, Any]:
    folder = root / "split_video_25fps_crop_face" / name / f"{number:06d}"
    folder.mkdir(parents=True)
    frames = range(number * 9, number * 9 + 9)
    for frame in frames:
        cv2.imwrite(str(folder / f"{frame:06d}.jpg"), crop(size, frame))
    names = [f"{name}/{number:06d}/{frame:06d}.jpg" for frame in frames]
    start = author or "./asserts/training_data"
    return {
        "frame_name_list": names,
        "frame_path_list": [f"{start}/split_video_25fps_crop_face/{path}" for path in names],
        "deep_speech_list": rows[frames.start : frames.stop].tolist(),
    }


def crop(size: tuple[int, int], frame: int) -> np.ndarray:
    """A left half in a frame's own shade, a white right half (BGR)."""
    picture = np.full((*size, 3), 255, np.uint8)
    picture[:, : size[1] // 2] = (frame * 2 % 200, 40, 90)
    return picture
