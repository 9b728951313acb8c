import pickle
from pathlib import Path

import pytest

from lawdnet.data import segment_list
from lawdnet.data.manifest import SegmentRef
from lawdnet.data.segment_list import write_list


def test_a_list_is_what_was_written_and_travels_as_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_list, "ROWS", 3)
    refs = [SegmentRef(f"s{n}", "v", "train", 54 + n, f"/data/{n}.parquet", n) for n in range(8)]
    found = write_list(tmp_path / "list", refs)
    assert len(found) == 8
    assert list(found) == refs
    assert [found[-1], found[2:4]] == [refs[-1], refs[2:4]]
    with pytest.raises(IndexError):
        found[8]
    sent = pickle.dumps(found)
    assert len(sent) < 300
    assert list(pickle.loads(sent)) == refs
