"""The dataset graph: a folder of videos → one actor call per video → segment files, videos.parquet, dataset.json.

Every input leaves a small file in DATASET/.build when it is done. A build that is killed and started again lists the
inputs, skips those, and ends with the same rows: the outputs depend on the inputs and the configuration alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from lawdnet.audio.base import make_extractor
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset, atomic, manifest, write_json, write_videos
from lawdnet.data.schema import set_split
from lawdnet.types import RejectReason
from pipelines import resources
from pipelines.actors import EMPTY_ROW, VideoBuilder, row_path, split_draw

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {
    ".mp4",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".m4v",
    ".ts",
    ".mpg",
    ".mpeg",
    ".flv",
    ".wmv",
    ".3gp",
}
STATE = "build.json"

Row = dict[str, Any]
Progress = Callable[[Row, int, int], None]
"""Called with an input's row (with `stored` where an earlier build made it), the number of inputs done, and of all."""


def list_inputs(source: Path) -> list[Row]:
    """The videos under `source`, sorted by path, each with the key its outcome is stored under.

    `inputs` is the state of the files that the outcome depends on: a video is built again when it, or the CSV beside
    it, has changed, come or gone.

    Raises:
        ValueError: no such folder, or no video in it.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    folder = source if source.is_dir() else source.parent
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    paths = [p for p in found if p.suffix.lower() in VIDEO_SUFFIXES and not p.is_dir() and not p.name.startswith(".")]
    if not paths:
        raise ValueError(f"{source}: no video here (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
    # a name that is no UTF-8 is shown with escapes, and opened by its bytes
    names = [os.fsencode(p.relative_to(folder)).decode("utf8", "backslashreplace") for p in paths]
    return [
        {
            "path": name,
            "source": os.fsencode(path.absolute()),
            "key": hashlib.sha256(name.encode()).hexdigest()[:16],
            "inputs": [_state(path), _state(path.with_suffix(".csv"))],
        }
        for path, name in zip(paths, names, strict=True)
    ]


def _state(path: Path) -> str:
    """Size and time of change; empty where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def build(source: Path, root: Path, config: BuildConfig, on_row: Progress | None = None) -> Dataset:
    """Builds, or completes, a dataset.

    Args:
        source: folder of videos (or one video); never changed.
        root: folder of the dataset.

    Raises:
        ValueError: no input, or `root` was built from another source or with another configuration.
    """
    if source.is_dir() and root.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{root}: lies inside the source {source}, which is never changed; choose another --out")
    items = list_inputs(source)
    extractors = {name: {"dim": make_extractor(name).feature_dim, "model_sha256": None} for name in config.features}
    _claim(source, root, config)
    rows = {item["key"]: row for item in items if (row := _stored(root, item)) is not None}
    for done, row in enumerate(list(rows.values()), 1):
        if on_row:
            on_row(row | {"stored": True}, done, len(items))
    todo = [item for item in items if item["key"] not in rows]
    if todo:
        _run(todo, root, config, len(items), on_row)
    return finish(root, config, extractors)


def _claim(source: Path, root: Path, config: BuildConfig) -> None:
    """One folder belongs to one source and one configuration."""
    path = root / BUILD / STATE
    wanted = {"source": str(source.resolve()), "config_hash": config.hash(), "config": config.to_dict()}
    if not path.exists():
        if (root / MANIFEST).exists() or (root / SEGMENTS).exists():
            raise ValueError(f"{root}: holds a dataset that no build here made; choose another --out")
        write_json(path, wanted)
        return
    found = json.loads(path.read_text(encoding="utf8"))
    if found["source"] != wanted["source"]:
        raise ValueError(f"{root}: was built from {found['source']}; choose another --out")
    if found["config_hash"] != wanted["config_hash"]:
        old, new = found["config"], wanted["config"]
        changed = ", ".join(f"{k} {old.get(k)} → {new[k]}" for k in new if old.get(k) != new[k]) or "the format"
        raise ValueError(f"{root}: was built with other settings ({changed}); choose another --out")


def _stored(root: Path, item: Row) -> Row | None:
    """The outcome of an earlier build, where the source has not changed since."""
    try:
        stored = json.loads(row_path(root, item["key"]).read_text(encoding="utf8"))
        row: Row = stored["row"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    is_same = stored["inputs"] == item["inputs"]
    is_there = row["status"] != "accepted" or (root / SEGMENTS / f"{row['video_id']}.parquet").exists()
    return row if is_same and is_there and row["status"] != "failed" else None


def _run(todo: Sequence[Row], root: Path, config: BuildConfig, total: int, on_row: Progress | None) -> None:
    done = total - len(todo)
    waiting = {item["key"]: item for item in todo}
    with resources.cluster(), _errors_allowed():
        workers = len(todo) if resources.can_grow() else max(1, min(resources.cpus(), len(todo)))
        graph = ray.data.from_items(list(todo), override_num_blocks=len(todo)).map(
            VideoBuilder,
            fn_constructor_args=(config, str(root.resolve())),
            compute=ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            max_restarts=3,
            max_task_retries=2,
        )
        for answer in graph.iter_rows():
            item = waiting.pop(answer["key"])
            done += 1
            if on_row:
                on_row(_read_row(root, item["key"]), done, total)
    for item in waiting.values():
        done += 1
        row = {**EMPTY_ROW, "path": item["path"], "landmarks": config.landmarks, "frames": 0}
        row |= {"status": "failed", "reason": str(RejectReason.INTERNAL_ERROR), "seconds": 0.0}
        row |= {"detail": "its worker process failed three times: out of memory, a crash in a codec, or a full disk"}
        write_json(row_path(root, item["key"]), {"inputs": item["inputs"], "row": row})
        if on_row:
            on_row(row, done, total)


@contextmanager
def _errors_allowed() -> Iterator[None]:
    """A worker that dies costs its video, not the build; in training the same would lose samples silently."""
    context = ray.data.DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, -1
    try:
        yield
    finally:
        context.max_errored_blocks = before


def _read_row(root: Path, key: str) -> Row:
    row: Row = json.loads(row_path(root, key).read_text(encoding="utf8"))["row"]
    return row


def finish(root: Path, config: BuildConfig, extractors: dict[str, dict[str, Any]]) -> Dataset:
    """Writes videos.parquet and dataset.json from the stored outcomes and removes segment files nothing names."""
    stored = {p.stem: _read_row(root, p.stem) for p in (root / BUILD).glob("*.json") if p.name != STATE}
    stored = dict(sorted(stored.items(), key=lambda entry: entry[1]["path"]))
    _reject_twins(root, stored)
    accepted = {key: row for key, row in stored.items() if row["status"] == "accepted"}
    names = {row["video_id"] for row in accepted.values()}
    for path in (root / SEGMENTS).glob("*.parquet"):
        if path.stem not in names:
            path.unlink()
    if config.val_fraction:
        _hold_one_out(root, accepted)
    parts = sorted(f"{row['video_id']} {row['landmarks_sha256']}" for row in accepted.values())
    content = hashlib.sha256("\n".join([config.hash(), *parts]).encode()).hexdigest()[:16]
    (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    write_videos(root, list(stored.values()))
    write_json(root / MANIFEST, manifest(config, extractors, list(stored.values()), content))
    return Dataset(root)


def _reject_twins(root: Path, stored: dict[str, Row]) -> None:
    """Of accepted rows (in the order of their paths) with the same bytes only the first stays."""
    first: dict[str, str] = {}
    for key, row in stored.items():
        if row["status"] == "accepted" and first.setdefault(row["sha256"], row["path"]) != row["path"]:
            row |= {"status": "rejected", "reason": str(RejectReason.DUPLICATE), "segments": 0, "frames_used": 0}
            row |= {"detail": f"the same bytes as {first[row['sha256']]}", "video_id": ""}
            _change_row(root, key, row)


def _hold_one_out(root: Path, accepted: dict[str, Row]) -> None:
    """Of a handful of videos chance may hold out none, or all: then the one with the smallest draw changes sides."""
    splits = {row["split"] for row in accepted.values()}
    if len(accepted) < 2 or len(splits) == 2:
        return
    key, row = min(accepted.items(), key=lambda entry: split_draw(entry[1]["sha256"]))
    row["split"] = "train" if row["split"] == "val" else "val"
    path = root / SEGMENTS / f"{row['video_id']}.parquet"
    with atomic(path) as temporary:
        set_split(path, temporary, row["split"])
    _change_row(root, key, row)


def _change_row(root: Path, key: str, row: Row) -> None:
    outcome = json.loads(row_path(root, key).read_text(encoding="utf8"))
    write_json(row_path(root, key), outcome | {"row": row})
