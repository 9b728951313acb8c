from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawdnet.data.manifest import Dataset
from lawdnet.data.schema import read_segment, segment_to_table, table_to_segment, write_segments
from lawdnet.storage import atomic, write_json
from lawdnet.types import Segment


def segment(index: int = 0, frames: int = 54) -> Segment:
    rng = np.random.default_rng(index)
    return Segment(
        segment_id=f"v-{index:04d}", video_id="v", index=index, start_frame=7 * index, split="train",
        frames_jpeg=tuple(rng.bytes(10) for _ in range(frames)),
        landmarks_T68x2=rng.random((frames, 68, 2), np.float32),
        matrix_T33=rng.random((frames, 3, 3), np.float32),
        features={"mel": rng.random((frames, 5), np.float32), "other": rng.random((frames, 3), np.float32)},
        scores={"face_px": 0.5},
    )  # fmt: skip


def assert_same(a: Segment, b: Segment) -> None:
    assert (a.segment_id, a.start_frame, a.frames_jpeg, a.scores) == (
        b.segment_id,
        b.start_frame,
        b.frames_jpeg,
        b.scores,
    )
    np.testing.assert_array_equal(a.landmarks_T68x2, b.landmarks_T68x2)
    np.testing.assert_array_equal(a.matrix_T33, b.matrix_T33)
    assert a.features.keys() == b.features.keys()
    for name in a.features:
        np.testing.assert_array_equal(a.features[name], b.features[name])


def test_a_segment_survives_the_table() -> None:
    assert_same(table_to_segment(segment_to_table(segment())), segment())


def test_each_segment_is_a_row_group_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    assert write_segments(path, (segment(i, 54 + 9 * i) for i in range(3))) == 3
    assert pq.ParquetFile(path).num_row_groups == 3
    assert_same(table_to_segment(read_segment(path, 2)), segment(2, 72))
    assert read_segment(path, 1, ["num_frames"]).to_pylist() == [{"num_frames": 63}]


def test_the_columns_are_those_of_the_format(tmp_path: Path) -> None:
    schema = segment_to_table(segment()).schema
    assert schema.field("frames_jpeg").type == pa.list_(pa.binary())
    assert schema.field("landmarks").type == pa.list_(pa.list_(pa.float32(), 136))
    assert schema.field("matrices").type == pa.list_(pa.list_(pa.float32(), 9))
    assert schema.field("features_mel").type == pa.list_(pa.list_(pa.float32(), 5))
    assert schema.field("score_face_px").type == pa.float32()


def test_no_segments_leave_no_file(tmp_path: Path) -> None:
    assert write_segments(tmp_path / "v.parquet", iter(())) == 0
    assert list(tmp_path.iterdir()) == []


def test_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"n": 1})

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == '{\n  "n": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset here"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Dataset(tmp_path)
    write_json(tmp_path / "dataset.json", {"format_version": 99})
    with pytest.raises(ValueError, match=r"format 99, this version of lawdnet reads 2 and 3; install a newer one$"):
        Dataset(tmp_path)
    write_json(tmp_path / "dataset.json", {"format_version": 1})
    with pytest.raises(ValueError, match=r"format 1, .*; build it again$"):
        Dataset(tmp_path)
