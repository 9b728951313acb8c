"""Segments as videos to watch and hear, one MP4 each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.audio.io import load_audio
from lawdnet.data.manifest import Dataset
from lawdnet.data.rules import Rule, apply_rules
from lawdnet.data.schema import read_segment
from lawdnet.data.transfer import refuse_inside, source_folder
from lawdnet.storage import Location, local_copy, locate
from lawdnet.types import SAMPLES_PER_FRAME, Float32, Rejected, UInt8
from lawdnet.video import write_video

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class Exported:
    """What an export wrote."""

    paths: list[Path] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    """Path of each video without sound → why."""


def export_segments(
    dataset: Dataset,
    out: Path,
    *,
    videos: Sequence[str] = (),
    segments: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    on_segment: Callable[[int, int], None] | None = None,
) -> Exported:
    """Writes segments as OUT/SEGMENT_ID.mp4: the stored crops, with the sound of the source where that is there.

    The sound is what the features were made of: 16 kHz mono, from sample 640·start_frame on. Where a source has gone
    or changed, its segments are silent.

    Args:
        dataset: never changed, like its sources.
        out: a folder; each file in it appears whole, and replaces one of the same name.
        videos: ids of videos; only theirs.
        segments: ids of segments, also of those that a rule left out; only these.
        rules: only segments for which all hold.
        on_segment: called with the number of segments written, and of all.

    Raises:
        ValueError: an unknown id, nothing is left, or `out` lies in the dataset or in its sources.
    """
    folder = source_folder(dataset)
    rows = chosen(dataset.index(), videos, segments, rules).to_pylist()
    if not rows:
        raise ValueError(f"{dataset.root}: no segment to export; loosen --where")
    sources = {row["video_id"]: row for row in dataset.videos().to_pylist() if row["video_id"]}
    refuse_inside(out, _kept(dataset, folder, rows, sources))
    exported = Exported()
    for video_id, mine in _by_video(rows):
        wave = _sound(folder, sources.get(video_id), mine, exported)
        for row in mine:
            path = out / f"{row['segment_id']}.mp4"
            if path.name != f"{row['segment_id']}.mp4":
                raise ValueError(f"{dataset.root}: the segment id {row['segment_id']!r} is no name of a file")
            start = row["start_frame"] * SAMPLES_PER_FRAME
            audio = None if wave is None else wave[start : start + row["num_frames"] * SAMPLES_PER_FRAME]
            write_video(path, pictures(dataset.resolve(row["path"]), row["row_group"]), audio)
            exported.paths.append(path)
            if on_segment:
                on_segment(len(exported.paths), len(rows))
    return exported


def _kept(dataset: Dataset, folder: Location | None, rows: Sequence[Row], sources: Mapping[str, Row]) -> set[Location]:
    """Folders of the dataset, of those it points into, and of the sources."""
    kept = {dataset.root, *(locate(dataset.resolve(path)).parents[1] for path in {row["path"] for row in rows})}
    names = {sources[row["video_id"]]["path"] for row in rows if row["video_id"] in sources}
    kept |= {locate(name).parent for name in names if Path(name).is_absolute()}
    return kept if folder is None else kept | {folder}


def chosen(index: pa.Table, videos: Sequence[str], segments: Sequence[str], rules: Sequence[Rule]) -> pa.Table:
    """The rows of an index that are wanted, by video and position; see `export_segments`."""
    for column, names in (("video_id", videos), ("segment_id", segments)):
        known = set(index[column].to_pylist())
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"unknown {column.replace('_', ' ')} {unknown[0]!r}; `index.parquet` lists them")
    if segments:
        index = index.filter(pc.is_in(index["segment_id"], value_set=pa.array(segments)))
        blank = pa.array([""] * len(index), pa.string())
        index = index.set_column(index.schema.get_field_index("dropped"), "dropped", blank)
    if videos:
        index = index.filter(pc.is_in(index["video_id"], value_set=pa.array(videos)))
    index = apply_rules(index, rules)[0]
    order = [("video_id", "ascending"), ("index", "ascending")]
    return index.filter(pc.equal(index["dropped"], "")).sort_by(order)


def pictures(path: str, row_group: int) -> Iterator[UInt8]:
    """The crops of a stored segment, H×W×3 RGB."""
    for jpeg in read_segment(locate(path), row_group, ["frames_jpeg"])["frames_jpeg"][0].values:
        picture_HW3 = cv2.imdecode(np.frombuffer(jpeg.as_py(), np.uint8), cv2.IMREAD_COLOR)
        assert picture_HW3 is not None
        yield cv2.cvtColor(picture_HW3, cv2.COLOR_BGR2RGB)


def _by_video(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for video_id, group in itertools.groupby(rows, key=lambda row: row["video_id"]):
        yield video_id, list(group)


def _sound(folder: Location | None, source: Row | None, rows: Sequence[Row], exported: Exported) -> Float32 | None:
    """The source's sound up to the end of the last of these segments; None and a note where there is none."""
    name = source["path"] if source else rows[0]["video_id"]
    try:
        place = _source(folder, source)
        stop = max(row["start_frame"] + row["num_frames"] for row in rows)
        with local_copy(place) as path:
            return load_audio(path, num_frames=stop)
    except (Rejected, OSError, ValueError) as error:
        why = error.detail if isinstance(error, Rejected) else getattr(error, "strerror", None) or str(error)
        log.info("%s: silent, %s", name, why)
        exported.silent[name] = why
        return None


def _source(folder: Location | None, source: Row | None) -> Location:
    """The file that a video was built from.

    Raises:
        ValueError: it is not known, or another one has its place.
        FileNotFoundError: it is not there.
    """
    if source is None:
        raise ValueError("the dataset does not say which file it came from")
    text = source["path"]
    if folder is None and "://" not in text and not Path(text).is_absolute():
        raise ValueError("the dataset does not say which folder it came from")
    is_whole = folder is None or "://" in text or Path(text).is_absolute()
    place = locate(text) if is_whole else folder / text
    if place.is_dir():
        raise ValueError("only crops were imported, the video is not there")
    if source["bytes"] and place.stat().st_size != source["bytes"]:
        raise ValueError("the file there is another one now")
    return place
