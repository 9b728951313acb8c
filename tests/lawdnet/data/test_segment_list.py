import pickle
from pathlib import Path

import pytest

from lawdnet.data.manifest import open_unchanged
from lawdnet.data.segment_list import SegmentList, SegmentRef

REFS = [SegmentRef(f"s{n}", f"v{n // 3}", "train", 54 + n, f"/data/{n // 3}.parquet", n % 3) for n in range(8)]


def test_a_list_is_what_was_put_in() -> None:
    found = SegmentList.of(REFS)
    assert len(found) == 8
    assert list(found) == REFS
    assert [found[-1], found[2:4]] == [REFS[-1], REFS[2:4]]
    with pytest.raises(IndexError):
        found[8]
    assert not SegmentList.of([])
    assert list(pickle.loads(pickle.dumps(found))) == REFS


def test_a_list_in_a_file_travels_as_a_name(tmp_path: Path) -> None:
    found = SegmentList.of(REFS).in_file(tmp_path / "list")
    sent = pickle.dumps(found)
    assert len(sent) < 300
    assert list(pickle.loads(sent)) == list(found) == REFS


@pytest.mark.parametrize("root", ["/data", "s3://bucket/data"])
def test_relative_paths_belong_to_the_root(root: str, tmp_path: Path) -> None:
    refs = [SegmentRef("s", "v", "val", 54, path, 0) for path in ("segments/v.parquet", "/else/v.parquet", "gs://b/v")]
    found = SegmentList([SegmentList.of(refs)._table], root)
    wanted = [f"{root}/segments/v.parquet", "/else/v.parquet", "gs://b/v"]
    assert [ref.path for ref in found] == [ref.path for ref in found.in_file(tmp_path / "f")] == wanted


def test_a_dataset_that_changed_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format_version": 3, "hash": "now"}', encoding="utf8")
    assert open_unchanged(tmp_path, "now").hash == "now"
    with pytest.raises(ValueError, match=f"^{tmp_path}: was changed while it is trained on; start a new run on it$"):
        open_unchanged(tmp_path, "before")
