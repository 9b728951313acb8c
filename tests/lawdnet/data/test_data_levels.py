"""Small versions of the frames: what is stored, what survives, and which one a stage reads."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from lawdnet.data import sampling
from lawdnet.data.levels import by_level, encode_jpeg, encode_small, level_for, small_levels, small_of_jpeg
from lawdnet.data.sampling import SampleSpec, Work, decode_jpeg, draw_batches
from lawdnet.data.schema import read_segment, rewrite_segments, table_to_segment, write_segments
from lawdnet.data.segment_list import SegmentRef
from lawdnet.types import Segment, UInt8

COLUMNS = ("frames_jpeg", "frames_jpeg_2", "frames_jpeg_4")
SPEC = SampleSpec(mouth_px=64, num_frames=1, batch_size=4, samples_per_segment=8, audio="mel", sync=None)


def crop(shade: int, width: int = 320) -> UInt8:
    """A smooth crop that JPEG changes little."""
    y, x = np.mgrid[: width * 13 // 10, :width] / width
    wave = np.sin(12 * x + shade) * np.cos(9 * y)
    return np.repeat((127 + 90 * wave)[..., None], 3, 2).astype(np.uint8)


def decoded(jpeg: bytes) -> UInt8:
    return np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1), cv2.COLOR_BGR2RGB))


def make_segment(width: int = 320, *, small: bool = True) -> Segment:
    crops = [crop(t, width) for t in range(54)]
    return Segment(
        segment_id="v-0000",
        video_id="v",
        index=0,
        start_frame=0,
        split="train",
        frames_jpeg=tuple(encode_jpeg(image, 95) for image in crops),
        landmarks_T68x2=np.zeros((54, 68, 2), np.float32),
        matrix_T33=np.zeros((54, 3, 3), np.float32),
        features={"mel": np.zeros((54, 2), np.float32)},
        small_jpeg=by_level([encode_small(image, 95) for image in crops]) if small else {},
    )


@pytest.mark.parametrize(
    ("crop_width", "levels"), [(360, (2, 4)), (320, (2, 4)), (160, (2, 4)), (140, (2,)), (80, (2,)), (60, ()), (40, ())]
)
def test_a_level_is_stored_if_the_smallest_stage_can_use_it(crop_width: int, levels: tuple[int, ...]) -> None:
    assert small_levels(crop_width) == levels
    assert tuple(encode_small(crop(0, crop_width), 95)) == levels


@pytest.mark.parametrize(
    ("width", "stored", "level"),
    [
        (80, 320, 4),
        (81, 320, 2),
        (160, 320, 2),
        (161, 320, 1),
        (320, 320, 1),
        (400, 320, 1),
        (40, 160, 4),
        (80, 360, 4),
    ],
)
def test_the_smallest_level_that_is_wide_enough(width: int, stored: int, level: int) -> None:
    assert level_for(width, stored, COLUMNS) == level
    assert level_for(width, stored, COLUMNS[:1]) == 1
    assert level_for(width, stored, COLUMNS[:2]) == min(level, 2)


@pytest.mark.parametrize("width", [320, 360, 160])
def test_a_small_version_is_the_crop_by_area(width: int) -> None:
    image = crop(3, width)
    for level, jpeg in encode_small(image, 100).items():
        small = decoded(jpeg)
        assert small.shape == (round(1.3 * (width // level)), width // level, 3)
        area = cv2.resize(image, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - area).max() <= 2


def test_those_of_a_stored_jpeg_differ_by_one_generation() -> None:
    image = crop(3)
    built, upgraded = encode_small(image, 95), small_of_jpeg(encode_jpeg(image, 95), 95)
    assert built.keys() == upgraded.keys()
    for level in built:
        difference = decoded(built[level]).astype(int) - decoded(upgraded[level])
        assert np.abs(difference).max() <= 4
        assert np.abs(difference).max() > 0, "made of the crop, not of its JPEG"
    with pytest.raises(ValueError, match="not a JPEG"):
        small_of_jpeg(b"", 95)


def test_a_segment_keeps_its_levels_in_files_and_rewrites(tmp_path: Path) -> None:
    segment = make_segment()
    write_segments(tmp_path / "a.parquet", iter([segment]))
    assert table_to_segment(read_segment(tmp_path / "a.parquet", 0)).small_jpeg == segment.small_jpeg
    rewrite_segments(tmp_path / "a.parquet", tmp_path / "b.parquet", lambda table: table)
    again = table_to_segment(read_segment(tmp_path / "b.parquet", 0))
    assert (again.frames_jpeg, again.small_jpeg) == (segment.frames_jpeg, segment.small_jpeg)
    names = pq.read_schema(tmp_path / "b.parquet").names
    assert [name for name in names if name.startswith("frames")] == list(COLUMNS)
    assert pq.read_schema(tmp_path / "b.parquet").equals(pq.read_schema(tmp_path / "a.parquet"))


def test_every_level_has_a_crop_per_frame() -> None:
    segment = make_segment(160)
    with pytest.raises(ValueError, match=r"small_jpeg\[2\]: 53 rows for 54 frames"):
        replace(segment, small_jpeg=segment.small_jpeg | {2: segment.small_jpeg[2][1:]})


def ref_to(path: Path) -> SegmentRef:
    return SegmentRef("v-0000", "v", "train", 54, str(path), 0)


@pytest.mark.parametrize(("mouth", "column"), [(32, "frames_jpeg_4"), (64, "frames_jpeg_4"), (96, "frames_jpeg_2"),
                                               (128, "frames_jpeg_2"), (256, "frames_jpeg")])  # fmt: skip
def test_a_stage_reads_one_level_and_no_other(
    mouth: int, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "v.parquet", []
    write_segments(path, iter([make_segment()]))
    read_row_group = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str]) -> object:
        read.extend(columns)
        return read_row_group(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    spec = replace(SPEC, mouth_px=mouth)
    list(draw_batches(Work(0, 0, 0, (ref_to(path),)), spec, seed=1, stored_width=320))
    assert [name for name in read if name.startswith("frames")] == [column]
    assert "features_mel" in read


def images(path: Path, spec: SampleSpec) -> UInt8:
    work = Work(0, 0, 0, (ref_to(path),))
    return np.stack([batch["source"] for batch in draw_batches(work, spec, seed=1, stored_width=320)])


def test_samples_show_the_same_frames_whatever_the_level(tmp_path: Path) -> None:
    write_segments(tmp_path / "new.parquet", iter([make_segment()]))
    write_segments(tmp_path / "old.parquet", iter([make_segment(small=False)]))
    for mouth in (64, 128):
        new, old = (images(tmp_path / name, replace(SPEC, mouth_px=mouth)) for name in ("new.parquet", "old.parquet"))
        assert new.shape == old.shape
        assert np.abs(new.astype(int) - old).max() <= 6
        assert not np.array_equal(new, old)
    whole = replace(SPEC, mouth_px=256)
    np.testing.assert_array_equal(images(tmp_path / "new.parquet", whole), images(tmp_path / "old.parquet", whole))


def test_a_level_of_the_stages_own_size_is_not_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, given = make_segment(), set()
    write_segments(tmp_path / "v.parquet", iter([segment]))

    def noted(data: bytes, height: int, width: int, *, stored_width: int) -> UInt8:
        given.add(data)
        assert (decoded(data).shape[:2], stored_width) == ((height, width), width)
        return decode_jpeg(data, height, width, stored_width=stored_width)

    monkeypatch.setattr(sampling, "decode_jpeg", noted)
    images(tmp_path / "v.parquet", SPEC)
    assert given
    assert given <= set(segment.small_jpeg[4])


def test_a_file_may_lack_a_level(tmp_path: Path) -> None:
    """As files of format 2 do, and those that a merge takes from there."""
    write_segments(tmp_path / "v.parquet", iter([make_segment()]))
    rewrite_segments(tmp_path / "v.parquet", tmp_path / "half.parquet", lambda table: table.drop(["frames_jpeg_4"]))
    assert pq.read_schema(tmp_path / "half.parquet").names.count("frames_jpeg_2") == 1
    assert np.abs(images(tmp_path / "half.parquet", SPEC).astype(int) - images(tmp_path / "v.parquet", SPEC)).max() <= 6
