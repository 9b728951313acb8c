"""The stateful workers of the dataset graph: models load once, then videos go through."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import cv2

from lawdnet.audio.base import make_extractor
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import BUILD, SEGMENTS, atomic, write_json
from lawdnet.data.schema import write_segments
from lawdnet.data.segments import Tally, file_sha256, video_id, video_segments
from lawdnet.landmarks.base import make_source
from lawdnet.types import Rejected, RejectReason

log = logging.getLogger(__name__)


def row_path(root: Path, key: str) -> Path:
    """Where the outcome of an input is kept between builds."""
    return root / BUILD / f"{key}.json"


class VideoBuilder:
    """One video in, its segment file and one row out; whatever happens, there is a row."""

    def __init__(self, config: BuildConfig, root: str) -> None:
        cv2.setNumThreads(1)  # Ray counts one CPU for this actor
        self.config, self.root = config, Path(root)
        self.extractors = {name: make_extractor(name) for name in config.features}
        self.source = make_source("openface" if config.landmarks == "auto" else config.landmarks)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Builds one item and stores its outcome, so that the next build skips it."""
        began = time.perf_counter()
        path, tally = Path(os.fsdecode(item["source"])), Tally()
        row: dict[str, Any] = {**EMPTY_ROW, "path": item["path"], "landmarks": self.source.name}
        try:
            _check_readable(path)
            csv = path.with_suffix(".csv")
            row |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            row["landmarks_sha256"] = file_sha256(csv) if csv.is_file() else ""
            row["split"] = "val" if split_draw(row["sha256"]) < self.config.val_fraction else "train"
            row |= self._build(path, row["sha256"], row["split"], tally)
        except Rejected as error:
            row |= {"status": "rejected", "reason": str(error.reason), "detail": error.detail}
        except Exception as error:  # an unforeseen input must not take the others with it
            log.exception("%s: failed", item["path"])
            detail = f"{type(error).__name__}: {error}"
            row |= {"status": "failed", "reason": str(RejectReason.INTERNAL_ERROR), "detail": detail}
        row["detail"] = row["detail"].encode("utf8", "backslashreplace").decode("utf8")  # it may name a file
        row |= {"frames": tally.frames, "seconds": round(time.perf_counter() - began, 3)}
        write_json(row_path(self.root, item["key"]), {"inputs": item["inputs"], "row": row})
        return {"key": item["key"]}

    def _build(self, path: Path, sha256: str, split: str, tally: Tally) -> dict[str, Any]:
        name = video_id(path, sha256)
        segments = video_segments(
            path,
            name=name,
            split=split,
            source=self.source,
            extractors=self.extractors,
            config=self.config,
            tally=tally,
        )
        with atomic(self.root / SEGMENTS / f"{name}.parquet") as temporary:
            count = write_segments(temporary, segments)
        detail = tally.describe()
        return {
            "video_id": name,
            "status": "accepted",
            "detail": detail,
            "segments": count,
            "frames_used": tally.used,
        }


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        link = f"; the link leads to {path.readlink()}" if path.is_symlink() else ""
        raise Rejected(RejectReason.UNREADABLE, f"{error.strerror}{link}") from error


def split_draw(sha256: str) -> float:
    """In [0, 1), by a video's content alone: neither its name nor its company moves it to another split."""
    return int(hashlib.sha256(f"split {sha256}".encode()).hexdigest()[:8], 16) / 2**32


EMPTY_ROW: dict[str, Any] = {
    "video_id": "", "reason": "", "detail": "", "split": "", "segments": 0, "frames_used": 0, "bytes": 0, "sha256": "",
    "landmarks_sha256": "",
}  # fmt: skip
