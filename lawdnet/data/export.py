"""Export of segments as videos to watch and hear, one MP4 each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.audio.io import load_video_audio
from lawdnet.data.manifest import Dataset
from lawdnet.data.rules import Rule, apply_rules
from lawdnet.data.schema import VideoRow, read_segment
from lawdnet.data.transfer import refuse_inside, source_folder
from lawdnet.storage import Location, local_copy, locate
from lawdnet.types import SAMPLES_PER_FRAME, Float32, Rejected, UInt8
from lawdnet.video import write_video

log = logging.getLogger(__name__)


@dataclass
class Exported:
    """What an export wrote."""

    paths: list[Path] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    """Path of each source whose segments have no audio → why."""


@dataclass(frozen=True)
class _IndexRow:
    """The part of an index row that an export needs."""

    segment_id: str
    video_id: str
    start_frame: int
    num_frames: int
    path: str
    row_group: int

    @property
    def stop_frame(self) -> int:
        return self.start_frame + self.num_frames


def export_segments(
    dataset: Dataset,
    out: Path,
    *,
    videos: Sequence[str] = (),
    segments: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    on_segment: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write segments as OUT/SEGMENT_ID.mp4: the stored crops, with the audio of the source.

    The audio is that of the features: 16 kHz mono, from sample 640 · start_frame. If the source is gone or has changed,
    the video is silent.

    Args:
        dataset: never changed, nor are its sources.
        out: a folder; each file in it appears whole and replaces one of the same name.
        videos: export only segments of the videos with these ids.
        segments: export only the segments with these ids, even if a rule dropped them.
        rules: export only segments that meet all of these.
        on_segment: called with the number of segments written and the total.

    Raises:
        ValueError: an id is unknown, no segment is left, or `out` lies in the dataset or its sources.
    """
    folder = source_folder(dataset)
    rows = _index_rows(select_rows(dataset.index(), videos, segments, rules))
    if not rows:
        raise ValueError(f"{dataset.root}: no segment to export; loosen --where")
    sources = {row.video_id: row for row in dataset.video_rows() if row.video_id}
    refuse_inside(out, _read_folders(dataset, folder, rows, sources))
    exported = Exported()
    for video_id, group in itertools.groupby(rows, key=lambda row: row.video_id):
        mine = list(group)
        waveform = _audio(folder, sources.get(video_id), mine, exported)
        for row in mine:
            path = out / f"{row.segment_id}.mp4"
            if path.name != f"{row.segment_id}.mp4":
                raise ValueError(f"{dataset.root}: the segment id {row.segment_id!r} cannot be a file name")
            samples = slice(row.start_frame * SAMPLES_PER_FRAME, row.stop_frame * SAMPLES_PER_FRAME)
            audio = None if waveform is None else waveform[samples]
            write_video(path, stored_images(dataset.resolve(row.path), row.row_group), audio)
            exported.paths.append(path)
            if on_segment:
                on_segment(len(exported.paths), len(rows))
    return exported


def _index_rows(index: pa.Table) -> list[_IndexRow]:
    return [_IndexRow(**row) for row in index.select([f.name for f in fields(_IndexRow)]).to_pylist()]


def _read_folders(
    dataset: Dataset, folder: Location | None, rows: Sequence[_IndexRow], sources: Mapping[str, VideoRow]
) -> set[Location]:
    """Return the folders that are read: of the dataset, of the datasets that it points to, and of the sources."""
    found = {dataset.root, *(locate(dataset.resolve(path)).parents[1] for path in {row.path for row in rows})}
    names = {sources[row.video_id].path for row in rows if row.video_id in sources}
    found |= {locate(name).parent for name in names if Path(name).is_absolute()}
    return found if folder is None else found | {folder}


def select_rows(index: pa.Table, videos: Sequence[str], segments: Sequence[str], rules: Sequence[Rule]) -> pa.Table:
    """Return the rows of an index to export, sorted by video and position; see `export_segments`."""
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


def stored_images(path: str, row_group: int) -> Iterator[UInt8]:
    """Yield the crops of a stored segment, H×W×3 RGB."""
    for jpeg in read_segment(locate(path), row_group, ["frames_jpeg"])["frames_jpeg"][0].values:
        image_HW3 = cv2.imdecode(np.frombuffer(jpeg.as_py(), np.uint8), cv2.IMREAD_COLOR)
        assert image_HW3 is not None
        yield cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)


def _audio(
    folder: Location | None, source: VideoRow | None, rows: Sequence[_IndexRow], exported: Exported
) -> Float32 | None:
    """Return the source's audio up to the end of the last of its segments; None, and a note, if there is none."""
    try:
        with local_copy(_source_file(folder, source)) as path:
            return load_video_audio(path, num_frames=max(row.stop_frame for row in rows)).samples
    except (Rejected, OSError, ValueError) as error:
        name = source.path if source else rows[0].video_id
        why = error.detail if isinstance(error, Rejected) else getattr(error, "strerror", None) or str(error)
        log.info("%s: exported without audio, %s", name, why)
        exported.silent[name] = why
        return None


def _source_file(folder: Location | None, source: VideoRow | None) -> Location:
    """Return the file that a video was built from.

    Raises:
        ValueError: the file is unknown, or was replaced by another one.
        FileNotFoundError: the file does not exist.
    """
    if source is None:
        raise ValueError("the dataset does not say which file it came from")
    is_whole = "://" in source.path or Path(source.path).is_absolute()
    if folder is None and not is_whole:
        raise ValueError("the dataset does not say which folder it came from")
    path = locate(source.path) if folder is None or is_whole else folder / source.path
    if path.is_dir():
        raise ValueError("only crops were imported, the video is not available")
    if source.bytes and path.stat().st_size != source.bytes:
        raise ValueError("the source file has changed since")
    return path
