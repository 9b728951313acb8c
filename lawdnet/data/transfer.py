"""What merging, importing and exporting share: who owns a folder, and the index of segment files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset, index_schema
from lawdnet.data.schema import IDENTITY_COLUMNS, SCORE
from lawdnet.storage import Location, is_remote, locate, parquet_file, read_json, write_json


def claim(root: Location, job: str, wanted: Mapping[str, Any]) -> None:
    """Reserve a folder for one job with one set of arguments; the same job may resume there.

    Raises:
        ValueError: another job, or the same one with other arguments, wrote to the folder.
    """
    path = root / BUILD / f"{job}.job"
    if path.exists():
        found = read_json(path)
        if found != json.loads(json.dumps(wanted)):
            changed = ", ".join(
                f"{key} {found.get(key)} → {wanted[key]}" for key in wanted if found.get(key) != wanted[key]
            )
            raise ValueError(f"{root}: contains the result of another {job} ({changed}); choose another --out")
    elif (root / MANIFEST).exists() or (root / SEGMENTS).exists():
        raise ValueError(f"{root}: contains a dataset that was not made by {job}; choose another --out")
    else:
        write_json(path, wanted)
    for left_over in (root / SEGMENTS).glob(".*.tmp"):
        left_over.unlink()


def local_folder(out: str | Location) -> Path:
    """Return `out` as a local path.

    Raises:
        ValueError: `out` is in an object store.
    """
    path = locate(out)
    if not isinstance(path, Path):
        raise ValueError(f"{out}: only a local folder can be written here; choose one, then copy it")
    return path


def refuse_inside(out: Location, kept: Iterable[Location]) -> None:
    """Make sure that nothing is written into folders that are only to be read.

    Raises:
        ValueError: `out` is one of the folders, or lies inside one.
    """
    for folder in kept:
        if isinstance(folder, Path) and isinstance(out, Path) and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: lies inside the source {folder}, which is never changed; choose another --out")


def source_folder(dataset: Dataset) -> Location | None:
    """Return the folder that paths in videos.parquet are relative to; None if it is unknown or the dataset is gone."""
    text = str(dataset.info.get("source", ""))
    if not text:
        return None
    if "source_hash" in dataset.info:  # a selection: its source is the dataset that it was made from
        try:
            return source_folder(Dataset(locate(dataset.resolve(text))))
        except ValueError:
            return None
    source = locate(text)
    is_file = Path(source.name).suffix != "" if is_remote(source) else source.is_file()
    return source.parent if is_file else source


def index_of(file: Path, path: str) -> pa.Table:
    """Return the rows of a segment file in the columns of `index_schema`.

    Args:
        file: the segment file.
        path: the value of the column `path`.
    """
    with parquet_file(file) as opened:
        scores = [name for name in opened.schema_arrow.names if name.startswith(SCORE)]
        table = opened.read(columns=[*IDENTITY_COLUMNS, *scores])
        groups = opened.num_row_groups
    assert groups == len(table)
    location = {
        "path": pa.array([path] * groups, pa.string()),
        "row_group": pa.array(range(groups), pa.int32()),
        "dropped": pa.array([""] * groups, pa.string()),
    }
    schema = index_schema([name.removeprefix(SCORE) for name in scores])
    columns = {name: table[name] for name in [*IDENTITY_COLUMNS, *scores]}
    return pa.table({**columns, **location}).select(schema.names).cast(schema)
