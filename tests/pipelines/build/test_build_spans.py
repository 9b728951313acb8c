"""A long video is many tasks: spans give what the whole gives, wherever the borders are, and whatever stops them."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lawdnet import ranges
from lawdnet.data import spans
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.merge import merge
from lawdnet.data.schema import read_segment, table_to_segment
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Rejected, RejectReason, Segment
from pipelines.build.build import build
from pipelines.build.span import SpanTask
from pipelines.build.task import VideoTask
from tests.support.in_process import map_in_process
from tests.support.s3_server import S3Server
from tests.support.stored import read_records

SECONDS = 24
FRAMES = 25 * SECONDS
BORDERS = [0, 210, 395, 600]
OTHER = {*range(210, 395), *range(410, 480)}
"""Frames of the other shots of the video with cuts: one begins in what the span before the last border sees."""


def config(span_seconds: int, **others: Any) -> BuildConfig:
    return BuildConfig(crop_width=80, val_fraction=0.0, span_seconds=span_seconds, **others)


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of one shot."""
    folder = tmp_path_factory.mktemp("take")
    write_talking_head(folder / "a.mp4", identity=1, motion=2, speech=3, seconds=SECONDS, size=(160, 128))
    return folder


@pytest.fixture(scope="module")
def cuts(take: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same video, with negative images in its other shots."""
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "a.csv").write_bytes((take / "a.csv").read_bytes())
    with av.open(str(take / "a.mp4")) as source, av.open(str(folder / "a.mp4"), "w") as target:
        sound = target.add_stream_from_template(source.streams.audio[0])
        video: Any = target.add_stream("libx264", rate=25, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = 128, 160, "yuv420p"
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                target.mux(packet)
        source.seek(0)
        for number, frame in enumerate(source.decode(video=0)):
            image = frame.to_ndarray(format="rgb24")
            other = av.VideoFrame.from_ndarray(255 - image if number in OTHER else image, format="rgb24")
            other.pts, other.time_base = frame.pts, frame.time_base
            target.mux(video.encode(other))
        target.mux(video.encode(None))
    return folder


def run(source: Path, root: Path, settings: BuildConfig, execute: Any = map_in_process) -> Dataset:
    return build(source, root, settings, execute=execute)


def segments_of(dataset: Dataset) -> list[Segment]:
    """The stored segments, checked against the index."""
    found = []
    for row in dataset.index().to_pylist():
        segment = table_to_segment(read_segment(dataset.root / row["path"], row["row_group"]))
        same = ("segment_id", "video_id", "index", "track", "start_frame", "num_frames", "split")
        assert {name: getattr(segment, name) for name in same} == {name: row[name] for name in same}
        found.append(segment)
    return found


def by_tick(segments: list[Segment]) -> dict[int, tuple[bytes, bytes, bytes, bytes]]:
    """Everything that is stored of each frame."""
    return {
        segment.start_frame + t: (
            segment.frames_jpeg[t],
            segment.landmarks_T68x2[t].tobytes(),
            segment.matrix_T33[t].tobytes(),
            segment.features["mel"][t].tobytes(),
        )
        for segment in segments
        for t in range(segment.num_frames)
    }


@pytest.fixture(scope="module")
def whole(take: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return run(take, tmp_path_factory.mktemp("whole") / "dataset", config(0))


@pytest.mark.parametrize("seconds", [5, 7, 12])
def test_every_frame_is_stored_as_in_an_undivided_build(
    take: Path, whole: Dataset, tmp_path: Path, seconds: int
) -> None:
    dataset = run(take, tmp_path / "dataset", config(seconds))
    segments, undivided = segments_of(dataset), segments_of(whole)
    spans = -(-SECONDS // seconds)
    assert len({row["path"] for row in dataset.index().to_pylist()}) == spans
    ours, theirs = by_tick(segments), by_tick(undivided)
    both = ours.keys() & theirs.keys()
    assert len(both) > FRAMES - 9 * spans - 9, "at a border fewer than nine frames are lost"
    assert all(ours[tick] == theirs[tick] for tick in both)
    assert len({segment.segment_id for segment in segments}) == len(segments)
    borders = {round(number * FRAMES / spans) for number in range(1, spans)}
    assert not any(s.start_frame < border < s.start_frame + s.num_frames for s in segments for border in borders)
    (row,), (before,) = dataset.video_rows(), whole.video_rows()
    assert (row.video_id, row.status, row.frames, row.sha256) == (before.video_id, "accepted", FRAMES, before.sha256)
    assert row.frames_used == len(ours) == sum(segment.num_frames for segment in segments)
    (record,) = read_records(dataset.root).values()
    (undivided_record,) = read_records(whole.root).values()
    hashes = undivided_record.perceptual_hash.split()
    assert set(record.perceptual_hash.split()) <= set(hashes)
    assert "0:" in record.perceptual_hash


def test_a_remote_video_is_read_in_parts(
    take: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans fetch their part of the file, and give what they give of a local file."""
    assert s3.root is not None
    size = (take / "a.mp4").stat().st_size
    monkeypatch.setattr(ranges, "BLOCK_BYTES", size // 40)
    monkeypatch.setattr(spans, "HEARD_TICKS", 25)  # the video is short
    for path in take.iterdir():
        (s3.root / "in" / path.name).write_bytes(path.read_bytes())
    fetched: list[int] = []

    def count() -> None:
        fetched.append(sum(n for method, path, n in s3.requests if method == "GET" and "a.mp4" in path))
        s3.requests.clear()

    def counting(task: Any, *arguments: Any, **options: Any) -> Any:
        if task is SpanTask:
            count()
        return map_in_process(task, *arguments, **options)

    ours = run(s3.root / "in", tmp_path / "remote", config(5), counting)
    count()
    theirs = run(take, tmp_path / "local", config(5))
    assert by_tick(segments_of(ours)) == by_tick(segments_of(theirs))
    assert fetched[0] == size, "a small file is copied once, to be hashed and divided"
    assert fetched[1] < 3 * size, "not five times: a span begins at the key frame before it, every ten seconds"


def test_a_remote_video_that_the_disk_cannot_hold(
    take: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hashed, heard and divided in parts too, whatever is kept of it."""
    assert s3.root is not None
    monkeypatch.setattr(ranges, "BLOCK_BYTES", (take / "a.mp4").stat().st_size // 40)
    monkeypatch.setattr(ranges, "BLOCKS", 4)
    monkeypatch.setattr(VideoTask, "most_copied", 0)
    for path in take.iterdir():
        (s3.root / "in" / path.name).write_bytes(path.read_bytes())
    ours = run(s3.root / "in", tmp_path / "remote", config(12))
    theirs = run(take, tmp_path / "local", config(12))
    assert by_tick(segments_of(ours)) == by_tick(segments_of(theirs))
    (row,), (other,) = ours.video_rows(), theirs.video_rows()
    assert (row.sha256, row.bytes, row.landmarks_sha256) == (other.sha256, other.bytes, other.landmarks_sha256)


def test_a_video_of_one_span_is_as_it_always_was(take: Path, whole: Dataset, tmp_path: Path) -> None:
    dataset = run(take, tmp_path / "dataset", config(SECONDS))
    (ours,), (theirs,) = (list((each.root / "segments").iterdir()) for each in (dataset, whole))
    assert (ours.name, ours.read_bytes()) == (theirs.name, theirs.read_bytes())
    assert dataset.index() == whole.index()
    assert not (dataset.root / ".build" / "spans").exists()


def test_borders_on_cuts_cost_nothing(cuts: Path, tmp_path: Path) -> None:
    """The even borders 200 and 400 lie near the cuts 210 and 395; another cut, at 410, is not as near."""
    undivided = run(cuts, tmp_path / "whole", config(0))
    dataset = run(cuts, tmp_path / "spans", config(9))
    (record,) = read_records(dataset.root).values()
    assert record.borders == BORDERS
    ours, theirs = segments_of(dataset), segments_of(undivided)
    assert [(s.start_frame, s.num_frames) for s in ours] == [(s.start_frame, s.num_frames) for s in theirs]
    assert [s.scores for s in ours] == [s.scores for s in theirs]
    assert by_tick(ours) == by_tick(theirs)
    (row,), (before,) = dataset.video_rows(), undivided.video_rows()
    assert (row.detail, row.segments, row.frames_used) == (before.detail, before.segments, before.frames_used)


def stopping(after: int) -> Any:
    """A driver that is killed when some spans are done."""

    def execute(task: Any, job: Any, items: Any, **options: Any) -> Generator[Any, None, None]:
        done = map_in_process(task, job, items, **options)
        for number, answer in enumerate(done):
            if task is SpanTask and number == after:
                raise KeyboardInterrupt
            yield answer

    return execute


def test_a_build_that_is_killed_resumes_with_the_spans_that_are_left(take: Path, tmp_path: Path) -> None:
    undisturbed = run(take, tmp_path / "undisturbed", config(5))
    root = tmp_path / "dataset"
    with pytest.raises(KeyboardInterrupt):
        run(take, root, config(5), stopping(2))
    todo: list[str] = []

    def told(task: Any, job: Any, items: Any, **options: Any) -> Any:
        todo.extend(item.name for item in items)
        return map_in_process(task, job, items, **options)

    dataset = run(take, root, config(5), told)
    # the third was done, and only the answer was lost
    assert todo == ["a.mp4 0:00:14 to 0:00:19", "a.mp4 0:00:19 to 0:00:24"]
    assert dataset.index() == undisturbed.index()
    names = sorted(path.name for path in (root / "segments").iterdir())
    for name in names:
        assert (root / "segments" / name).read_bytes() == (undisturbed.root / "segments" / name).read_bytes()
    assert len(names) == 5
    todo.clear()
    run(take, root, config(5), told)
    assert not todo


def test_more_features_are_added_span_by_span(take: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = {"options": {"mel": {"hops": "mean"}}}
    at_once = run(take, tmp_path / "at_once", config(5, **averaged))
    run(take, tmp_path / "added", config(5))
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.segments.decode_ticks", lambda *_: pytest.fail("a frame was decoded"))
        added = run(take, tmp_path / "added", config(5, **averaged))
    assert added.index() == at_once.index()
    assert by_tick(segments_of(added)) == by_tick(segments_of(at_once))


def break_one(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception) -> None:
    done = SpanTask._build

    def build_or_break(self: Any, item: Any, *rest: Any) -> None:
        if item.number == number:
            raise error
        done(self, item, *rest)

    monkeypatch.setattr(SpanTask, "_build", build_or_break)


def test_a_span_that_crashes_costs_the_video_and_is_tried_again_alone(
    take: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        break_one(patch, 1, Rejected(RejectReason.CRASH, "ended its worker process 3 times"))
        dataset = run(take, root, config(5))
    (row,) = dataset.video_rows()
    assert (row.status, row.reason, row.segments, row.video_id) == ("rejected", "crash", 0, "")
    assert row.detail == "0:00:04 to 0:00:09: ended its worker process 3 times"
    assert len(dataset.index()) == 0
    built: list[str] = []

    def told(task: Any, job: Any, items: Any, **options: Any) -> Any:
        built.extend(item.name for item in items if task is SpanTask)
        return map_in_process(task, job, items, **options)

    dataset = run(take, root, config(5), told)
    assert built == ["a.mp4 0:00:04 to 0:00:09"]
    assert dataset.index() == run(take, tmp_path / "undisturbed", config(5)).index()


def test_a_damaged_span_costs_the_video_for_good(take: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_one(monkeypatch, 2, Rejected(RejectReason.DAMAGED, "a frame does not decode"))
    dataset = run(take, tmp_path / "dataset", config(5))
    (row,) = dataset.video_rows()
    assert (row.status, row.reason) == ("rejected", "damaged")
    assert not list((dataset.root / "segments").iterdir())
    assert not list((dataset.root / ".build" / "spans").iterdir())
    run(take, tmp_path / "dataset", config(5), lambda *_, **__: pytest.fail("there is nothing to do"))


def test_a_video_without_a_face_has_the_reason_of_an_undivided_one(take: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.mp4").write_bytes((take / "a.mp4").read_bytes())
    lines = (take / "a.csv").read_text().splitlines()
    rows = [line.split(", ") for line in lines[1:]]
    lost = [", ".join([*row[:4], "0", *row[5:]]) for row in rows]
    (source / "a.csv").write_text("\n".join([lines[0], *lost]) + "\n")
    (row,) = run(source, tmp_path / "spans", config(5)).video_rows()
    (before,) = run(source, tmp_path / "whole", config(0)).video_rows()
    assert (row.reason, row.detail, row.frames) == (before.reason, before.detail, before.frames)
    assert row.reason == "no_face"


def test_a_source_that_changed_is_divided_anew(take: Path, cuts: Path, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "dataset"
    source.mkdir()
    for folder in (cuts, take):
        for name in ("a.mp4", "a.csv"):
            (source / name).write_bytes((folder / name).read_bytes())
        dataset = run(source, root, config(9))
    fresh = run(source, tmp_path / "fresh", config(9))
    assert dataset.index() == fresh.index()
    assert sorted(os.listdir(root / "segments")) == sorted(os.listdir(fresh.root / "segments"))


def test_files_of_spans_are_merged(take: Path, cuts: Path, tmp_path: Path) -> None:
    parts = [run(take, tmp_path / "one", config(5)), run(cuts, tmp_path / "two", config(9))]
    merge([part.root for part in parts], tmp_path / "merged")
    merged = segments_of(Dataset(tmp_path / "merged"))
    assert sorted(s.segment_id for s in merged) == sorted(s.segment_id for part in parts for s in segments_of(part))


@pytest.mark.usefixtures("ray_session")
def test_spans_on_ray(take: Path, tmp_path: Path) -> None:
    dataset = build(take, tmp_path / "ray", config(12))
    assert dataset.index() == run(take, tmp_path / "here", config(12)).index()


def test_spans_are_long_enough() -> None:
    with pytest.raises(ValueError, match=r"span_seconds: 4 must be 0 or at least 5"):
        config(4)
    np.testing.assert_equal(config(5).span_ticks, 125)
