"""What merging, importing and exporting share: whose folder it is, and the index of segment files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset, index_schema
from lawdnet.data.schema import PLACE_COLUMNS, SCORE
from lawdnet.storage import Location, is_remote, locate, parquet_file, read_json, write_json


def claim(root: Location, job: str, wanted: dict[str, Any]) -> None:
    """One folder belongs to one job with one set of arguments; the same job again goes on where it was stopped.

    Raises:
        ValueError: something else made a dataset there.
    """
    path = root / BUILD / f"{job}.job"
    if path.exists():
        found = read_json(path)
        if found != json.loads(json.dumps(wanted)):
            changed = ", ".join(
                f"{key} {found.get(key)} → {wanted[key]}" for key in wanted if found.get(key) != wanted[key]
            )
            raise ValueError(f"{root}: holds the result of another {job} ({changed}); choose another --out")
    elif (root / MANIFEST).exists() or (root / SEGMENTS).exists():
        raise ValueError(f"{root}: holds a dataset that no {job} made; choose another --out")
    else:
        write_json(path, wanted)
    for left_over in (root / SEGMENTS).glob(".*.tmp"):
        left_over.unlink()


def local_folder(out: str | Location) -> Path:
    """The place as one of this machine.

    Raises:
        ValueError: it is in an object store.
    """
    place = locate(out)
    if not isinstance(place, Path):
        raise ValueError(f"{out}: this writes to a local folder only; choose one, then copy it there")
    return place


def refuse_inside(out: Location, kept: Iterable[Location]) -> None:
    """What was given to be read is never written to.

    Raises:
        ValueError: `out` lies inside one of the folders, or is one.
    """
    for folder in kept:
        if isinstance(folder, Path) and isinstance(out, Path) and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: lies inside the source {folder}, which is never changed; choose another --out")


def source_folder(dataset: Dataset) -> Location | None:
    """The folder that the paths in videos.parquet start from; None where it is not known or not there."""
    text = str(dataset.info.get("source", ""))
    if not text:
        return None
    if "source_hash" in dataset.info:  # a selection: its source is the dataset it was chosen from
        try:
            return source_folder(Dataset(locate(dataset.resolve(text))))
        except ValueError:
            return None
    source = locate(text)
    is_file = Path(source.name).suffix != "" if is_remote(source) else source.is_file()
    return source.parent if is_file else source


def index_of(file: Path, path: str) -> pa.Table:
    """The rows of a segment file in the columns of `index_schema`.

    Args:
        file: to read.
        path: to write into the column of that name.
    """
    with parquet_file(file) as opened:
        scores = [name for name in opened.schema_arrow.names if name.startswith(SCORE)]
        table = opened.read(columns=[*PLACE_COLUMNS, *scores])
        groups = opened.num_row_groups
    assert groups == len(table)
    place = {
        "path": pa.array([path] * groups, pa.string()),
        "row_group": pa.array(range(groups), pa.int32()),
        "dropped": pa.array([""] * groups, pa.string()),
    }
    schema = index_schema([name.removeprefix(SCORE) for name in scores])
    columns = {name: table[name] for name in [*PLACE_COLUMNS, *scores]}
    return pa.table({**columns, **place}).select(schema.names).cast(schema)
