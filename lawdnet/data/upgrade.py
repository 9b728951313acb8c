"""From format 2 to 3: small versions of the frames, made of the stored JPEGs. No video is decoded."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lawdnet.data.config import FORMAT_VERSION, READABLE_VERSIONS
from lawdnet.data.levels import FRAMES, by_level, frames_column, lacking, small_levels, small_of_jpeg
from lawdnet.data.manifest import BUILD, INDEX, MANIFEST, SEGMENTS, VIDEOS, Dataset
from lawdnet.data.records import STATE
from lawdnet.data.schema import rewrite_segments, with_columns
from lawdnet.data.selection import pointer
from lawdnet.data.shards import SHARDS
from lawdnet.storage import Location, atomic, local_copy, locate, read_json, write_json
from lawdnet.tasks.records import PACKED
from lawdnet.types import Beat


@dataclass(frozen=True, kw_only=True)
class Old:
    """A folder to upgrade: a dataset, or what a build that was stopped has left."""

    root: Location
    levels: tuple[int, ...]
    """The small levels that its segment files are to have."""
    jpeg_quality: int
    files: tuple[str, ...]
    """Names of its segment files."""
    is_view: bool = False
    """Whether it is a selection without files of its own."""


def open_old(root: Location) -> Old:
    """Look at a folder, and check all that can be checked before the work.

    Raises:
        ValueError: there is no dataset, its format is unknown, a segment file is missing, or the dataset is a selection
            whose files belong to another one that was not upgraded.
    """
    files = tuple(sorted(path.name for path in (root / SEGMENTS).glob("*.parquet")))
    state, others = _state(root), False
    if state and not (root / MANIFEST).exists():
        settings, width = state["structure"], state["structure"]["crop_width"]
    else:
        dataset = Dataset(root)
        settings, width = dataset.info["config"], dataset.crop_width
        others = _check_files(dataset, files, small_levels(width))
    levels = small_levels(width)
    return Old(root=root, levels=levels, jpeg_quality=settings["jpeg_quality"], files=files, is_view=others)


def _state(root: Location) -> dict[str, Any] | None:
    """Return what a build has noted of its folder; None if no build made it."""
    path = root / BUILD / STATE
    if not path.exists():
        return None
    found: dict[str, Any] = read_json(path)
    if found["format_version"] not in READABLE_VERSIONS:
        raise ValueError(f"{path}: format {found['format_version']} is unknown; install a newer lawdnet")
    return found


def _check_files(dataset: Dataset, files: Sequence[str], levels: Sequence[int]) -> bool:
    """Check that the files of a dataset are there; return whether some belong to other datasets."""
    own = {f"{SEGMENTS}/{name}" for name in files}
    named = set(dataset.index()["path"].to_pylist())
    others = sorted(path for path in named if not path.startswith(f"{SEGMENTS}/"))
    if missing := sorted(named - own - set(others)):
        text = f"{len(missing)} of {len(named)} segment files are missing, the first is {missing[0]}"
        raise ValueError(f"{dataset.root}: {text}; make the dataset again")
    pointed = [locate(dataset.resolve(path)) for path in others]
    if old := sorted({str(path.parents[1]) for path in lacking(pointed, levels)}):
        name = os.path.normpath(old[0]) if "://" not in old[0] else old[0]
        raise ValueError(
            f"{dataset.root}: its files are those of {name}; first run: lawdnet upgrade {shlex.quote(name)}"
        )
    return bool(others)


def add_levels(old: Path, new: Path, jpeg_quality: int, beat: Beat) -> None:
    """Copy a segment file with the small levels of its frames.

    Raises:
        ValueError: a frame is not a JPEG.
    """

    def with_levels(table: pa.Table) -> pa.Table:
        small = []
        for jpeg in table[FRAMES][0].values:
            small.append(small_of_jpeg(jpeg.as_py(), jpeg_quality))
            beat()
        columns = {frames_column(level): pa.array([list(jpegs)]) for level, jpegs in by_level(small).items()}
        return with_columns(table, columns)

    rewrite_segments(old, new, with_levels)


def finish(root: Location, out: Location) -> None:
    """Say that a folder whose segment files are all upgraded has the new format; `out` gets copies of its other files.

    `dataset.json` comes last: without it, or with the old version in it, the upgrade has to be run again.
    """
    if out != root:
        folders = (BUILD, f"{BUILD}/{PACKED}", f"{BUILD}/{SHARDS}")
        records = (f"{folder}/{path.name}" for folder in folders for path in (root / folder).glob("*.json"))
        for name in (*(name for name in records if name != f"{BUILD}/{STATE}"), VIDEOS, INDEX):
            if (root / name).exists():
                with local_copy(root / name) as file, atomic(out / name) as temporary:
                    shutil.copyfile(file, temporary)
    for name in (f"{BUILD}/{STATE}", MANIFEST):
        if (root / name).exists():
            content = read_json(root / name) | {"format_version": FORMAT_VERSION}
            if out != root and "source_hash" in content:  # a selection, whose source may be a relative path
                content["source"] = pointer(Dataset(root).resolve(content["source"]), out)
            write_json(out / name, content)
