"""What a build writes at its end does not depend on the pieces in which it is written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawdnet.data import manifest
from lawdnet.data.config import BuildConfig, digest
from lawdnet.data.manifest import Counts, write_pieces
from lawdnet.data.publish import SEEN, DatasetHash


def test_the_hash_is_that_of_the_whole_list() -> None:
    """As every version computed it: runs are bound to it."""
    config, extractors = BuildConfig(), {"mel": {"dim": 320, "options": {"b": 1, "a": 2}}}
    videos = [dict(zip(SEEN, (f"ü-{n}", "sha", "train", n, 9 * n), strict=True)) | {"lacks": ""} for n in range(3)]
    videos[1]["lacks"] = "mel"
    for some in ([], videos[:1], videos):
        found = DatasetHash(config, extractors)
        for video in some:
            found.add([video])
        parts = sorted([*(video[name] for name in SEEN), *filter(None, [video["lacks"]])] for video in some)
        assert found.hexdigest() == digest([config.hash(), extractors, parts])


def test_row_groups_do_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROW_GROUP", 10)
    table = pa.table({"n": range(25)})
    written = []
    for size in (25, 3, 10):
        write_pieces(tmp_path / f"{size}", [table.slice(start, size) for start in range(0, 25, size)])
        written.append((tmp_path / f"{size}").read_bytes())
    assert written[0] == written[1] == written[2]
    with pq.ParquetFile(tmp_path / "3") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [10, 10, 5]
        assert file.read().equals(table)


def test_counts_add_up() -> None:
    rows = [
        {"status": "accepted", "reason": "", "segments": 2, "frames_used": 200},
        {"status": "rejected", "reason": "no_face", "segments": 0, "frames_used": 0},
        {"status": "failed", "reason": "internal_error", "segments": 0, "frames_used": 0},
        {"status": "rejected", "reason": "no_face", "segments": 0, "frames_used": 0},
    ]
    assert Counts.of(rows[:2]) + Counts.of(rows[2:]) == Counts.of(rows)
    assert Counts.of(rows).reasons == {"internal_error": 1, "no_face": 2}
