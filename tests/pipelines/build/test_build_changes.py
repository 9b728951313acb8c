"""A dataset whose source, options or surroundings change between two builds equals one that was built at once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.inspect_dataset import describe, summary
from lawdnet.audio.base import EXTRACTORS
from lawdnet.audio.io import load_video_audio
from lawdnet.audio.mel import Mel
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.records import video_records
from lawdnet.data.schema import read_segment, table_to_segment
from lawdnet.data.selection import check_files, choose, write_selection
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.storage import local_copy
from lawdnet.tasks.lock import held
from lawdnet.types import FPS, Rejected, RejectReason, no_beat
from lawdnet.video import decode
from pipelines.build.build import build
from pipelines.build.task import VideoItem
from pipelines.train.train import train
from tests.support.drawn_clip import copy
from tests.support.in_process import map_in_process
from tests.support.runs import tiny

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0)


class Builds:
    """Builds in this process, without Ray, and counts what was worked on."""

    def __init__(self, source: Path, root: Path) -> None:
        self.source = source
        self.root = root
        self.worked_on: list[str] = []

    def __call__(self, config: BuildConfig = CONFIG, **options: Any) -> Dataset:
        self.worked_on.clear()
        return build(self.source, self.root, config, execute=self._execute, **options)

    def _execute(self, task: Any, job: Any, items: Sequence[VideoItem], **options: Any) -> Any:
        self.worked_on += [item.name for item in items]
        return map_in_process(task, job, items, **options)


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    (tmp_path / "source").mkdir()
    return Builds(tmp_path / "source", tmp_path / "dataset")


def rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in dataset.videos().to_pylist()}


def shifted_csv(drawn: Path, to: Path, px: float) -> None:
    """The landmarks of the clip, moved to the right."""
    write_csv(to, read_csv(drawn.with_suffix(".csv")).points_T68x2 + np.array([px, 0], np.float32), FPS)


def test_weights_that_are_missing_bind_nothing(drawn: Path, builds: Builds) -> None:
    """A build that is refused leaves no demand behind that the next one cannot meet."""
    copy(drawn, builds.source / "a.mp4")
    with pytest.raises(ValueError, match="deepspeech"):
        builds(BuildConfig(crop_width=100, features=("mel", "deepspeech")))
    assert list(builds().info["extractors"]) == ["mel"]
    with pytest.raises(ValueError, match="deepspeech"):
        builds(BuildConfig(crop_width=80, val_fraction=0.0, features=("mel", "deepspeech")))
    assert list(builds().info["extractors"]) == ["mel"]


def test_twins_of_one_name_with_other_landmarks(drawn: Path, builds: Builds) -> None:
    """Same bytes, same name, another folder and another CSV: the index tells of the file that is there."""
    (builds.source / "a").mkdir()
    first = copy(drawn, builds.source / "a" / "talk.mp4")
    alone = builds()
    (builds.source / "b").mkdir()
    shutil.copy(first, builds.source / "b" / "talk.mp4")
    shifted_csv(drawn, builds.source / "b" / "talk.csv", 6)
    both = builds()
    assert rows(both)["b/talk.mp4"]["reason"] == "duplicate"
    assert both.index().equals(alone.index())
    ref = both.segments()[0]
    stored = table_to_segment(read_segment(Path(ref.path), ref.row_group))
    points = read_csv(drawn.with_suffix(".csv")).points_T68x2
    found = stored.matrix_T33[0] @ (*points[stored.start_frame, 30], 1)
    assert found[:2] == pytest.approx(stored.landmarks_T68x2[0, 30], abs=0.01)


def test_a_twin_takes_the_place_of_a_first_that_changed(drawn: Path, builds: Builds) -> None:
    first = copy(drawn, builds.source / "a.mp4")
    shutil.copy(first, builds.source / "b.mp4")
    shutil.copy(first.with_suffix(".csv"), builds.source / "b.csv")
    assert rows(builds())["b.mp4"]["reason"] == "duplicate"
    builds()
    assert not builds.worked_on, "a twin whose first stands is left alone"
    first.write_bytes(copy(drawn, builds.source.parent / "other.mp4").read_bytes())
    found = rows(builds())
    assert (found["a.mp4"]["status"], found["b.mp4"]["status"]) == ("accepted", "accepted")


def test_what_could_not_be_opened_is_tried_again(drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights and object stores recover while the file stays as it is."""
    for name in ("a.mp4", "b.mp4"):
        copy(drawn, builds.source / name)

    def refuse(path: Path, *rest: Any, **named: Any) -> Any:
        if path.name == "a.mp4":
            raise PermissionError(13, "Permission denied")
        return local_copy(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.tasks.inputs.local_copy", refuse)
        assert rows(builds())["a.mp4"]["reason"] == "unreadable"
    found = rows(builds())
    assert builds.worked_on == ["a.mp4"]
    assert found["a.mp4"]["status"] == "accepted"


def test_landmarks_are_looked_for_again_once_a_network_is_there(
    drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(drawn, builds.source / "a.mp4")
    copy(drawn, builds.source / "b.mp4", csv=False)
    assert rows(builds())["b.mp4"]["reason"] == "no_landmarks"
    builds()
    assert not builds.worked_on, "nothing has changed"
    monkeypatch.setattr("pipelines.build.build.prepare_landmarks", lambda name, have_csv, make: True)
    builds()
    assert builds.worked_on == ["b.mp4"]


def test_a_refused_rule_costs_nothing(drawn: Path, builds: Builds) -> None:
    copy(drawn, builds.source / "a.mp4")
    strict = BuildConfig(crop_width=80, val_fraction=0.0, where=("sync_confidence>=3",))
    with pytest.raises(ValueError, match="sync_confidence"):
        builds(strict)
    assert not builds.worked_on, "it is said before the work, not after it"
    before = builds()
    with pytest.raises(ValueError, match="sync_confidence"):
        builds(strict)
    assert builds().info == before.info


AVERAGED = BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}})
"""Other rows of a feature that is stored: a rebuild computes them anew."""


def test_a_finished_video_stays_when_a_feature_cannot_be_added(
    drawn: Path, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is said, kept from training that needs it, and tried again."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        copy(drawn, builds.source / name)
    before = builds()

    def refuse(path: Path, **options: Any) -> Any:
        if path.name == "a.mp4":
            raise Rejected(RejectReason.TIMEOUT, "nothing for 300 s")
        if path.name == "b.mp4":
            raise RuntimeError("out of memory")
        return load_video_audio(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.segments.load_video_audio", refuse)
        dataset = builds(AVERAGED)
    check_files(dataset)
    assert len(dataset.segments()) == len(before.segments()) == 3
    found = rows(dataset)
    assert {name: row["lacks"] for name, row in found.items()} == {"a.mp4": "mel", "b.mp4": "mel", "c.mp4": ""}
    assert {row["status"] for row in found.values()} == {"accepted"}
    assert "lacks mel (timeout: nothing for 300 s)" in found["a.mp4"]["detail"]
    assert "lacks mel (internal_error: RuntimeError: out of memory)" in found["b.mp4"]["detail"]
    assert "; lacks" not in found["c.mp4"]["detail"]
    lines = "\n".join(summary(describe(dataset)))
    assert "2 × mel" in lines
    assert "out of memory" in lines
    with pytest.raises(ValueError, match=r"2 videos, a\.mp4 the first, lack the feature mel.* select .* --has mel"):
        train(dataset, tmp_path / "run", tiny(["syncnet"]))
    assert not (tmp_path / "run").exists()

    whole = write_selection(choose(dataset, [], features=["mel"]), tmp_path / "whole")
    whole.check_feature("mel")
    assert {ref.video_id for ref in whole.segments()} == {found["c.mp4"]["video_id"]}
    assert whole.info["rules"][-1] == "has mel"
    assert dataset.hash != before.hash

    again = builds(AVERAGED)
    assert sorted(builds.worked_on) == ["a.mp4", "b.mp4"]
    again.check_feature("mel")
    at_once = build(builds.source, tmp_path / "at_once", AVERAGED, execute=map_in_process)
    assert (again.hash, again.index()) == (at_once.hash, at_once.index())
    assert {row["detail"] for row in rows(again).values()} == {row["detail"] for row in rows(at_once).values()}


def test_what_could_not_be_added_stands_in_no_ones_way(
    drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source of such a video may be moved away all the same."""
    for name in ("a.mp4", "b.mp4"):
        copy(drawn, builds.source / name)
    builds()
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.segments.load_video_audio", lambda *_, **__: 1 / 0)
        builds(AVERAGED)
    (builds.source / "a.mp4").unlink()
    assert {name: row["lacks"] for name, row in rows(builds(AVERAGED)).items()} == {"a.mp4": "mel", "b.mp4": ""}


def test_scores_that_could_not_be_added_leave_the_old_ones(
    drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index says what the segments' files say."""
    copy(drawn, builds.source / "a.mp4")
    before = builds()
    monkeypatch.setattr("pipelines.build.build._check_sync", lambda *_: "mark")
    monkeypatch.setattr("pipelines.build.task._sync_scorer", lambda path: lambda *_: {"sync_offset": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.build.task.rewrite_segments", lambda old, to, change, _: change(pq.read_table(old)) and 1 / 0
        )
        failed = builds(sync=builds.root)
    assert failed.index().equals(before.index())
    assert "could not be completed (internal_error: ZeroDivisionError" in rows(failed)["a.mp4"]["detail"]
    assert builds(sync=builds.root).index()["score_sync_offset"].to_pylist() == [1.0]


def test_a_file_that_decodes_to_less_than_it_promises_is_completed_as_it_was_built(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture may be missing at the end; the sound that extractors hear is as long as the promise all the same."""
    copy(drawn, tmp_path / "source" / "a.mp4")
    whole = Builds(tmp_path / "source", tmp_path / "whole")
    added = Builds(tmp_path / "source", tmp_path / "added")
    averaged = BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}})
    heard: list[int] = []

    class Listening(Mel):
        def extract(self, wave: Any, beat: Any = no_beat) -> Any:
            heard.append(len(wave))
            return super().extract(wave, beat)

    monkeypatch.setitem(EXTRACTORS, "mel", Listening)
    monkeypatch.setattr("lawdnet.data.segments.decode_ticks", lambda video, *_: islice(decode(video.path), 74))
    whole(averaged)
    added()
    added(averaged)
    assert heard == [75 * 640] * 3


def test_what_is_done_is_read_under_the_lock(drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build that ends meanwhile would otherwise be worked on again."""
    copy(drawn, builds.source / "a.mp4")
    driver = builds.root / ".build" / "driver"
    read: list[bool] = []

    def watched(root: Path) -> Any:
        read.append(driver.exists())
        return video_records(root)

    monkeypatch.setattr("pipelines.build.plan.video_records", watched)
    builds()
    assert read == [True]
    with held(driver), pytest.raises(ValueError, match="is working on it"):
        builds(BuildConfig(crop_width=100))
    assert read == [True]


def test_the_old_dataset_stands_until_the_new_one_does(
    drawn: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy(drawn, builds.source / "a.mp4")
    old = builds()
    shifted_csv(drawn, path.with_suffix(".csv"), 2)
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.publish.write_pieces", raise_full_disk)
        with pytest.raises(OSError, match="disk is full"):
            builds()
    check_files(old)
    new = builds()
    check_files(new)
    assert len(list((builds.root / "segments").iterdir())) == 1


def raise_full_disk(*_: object) -> None:
    raise OSError("the disk is full")


def test_what_killed_workers_left_is_removed(drawn: Path, builds: Builds) -> None:
    copy(drawn, builds.source / "a.mp4")
    builds()
    left = builds.root / "segments" / ".a-0123456789.parquet.0123abcd.tmp"
    left.write_bytes(b"half")
    builds()
    assert not left.exists()


def test_a_single_video_is_there_to_train_on(builds: Builds, drawn: Path) -> None:
    copy(drawn, builds.source / "selfie.mp4")
    built = builds(BuildConfig(crop_width=80, val_fraction=0.999))
    assert [ref.split for ref in built.segments()] == ["train"]
    assert rows(built)["selfie.mp4"]["split"] == "train"


def test_weights_that_are_missing_are_said_before_the_build(
    builds: Builds, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("face_alignment", reason="needs face-alignment: pip install -e '.[landmarks]'")
    for name in ("LAWDNET_WEIGHTS", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    copy(drawn, builds.source / "a.mp4")
    with pytest.raises(ValueError, match=r"2DFAN4.*not found"):
        builds(BuildConfig(crop_width=80, landmarks="face-alignment"))
    assert builds.worked_on == []
    assert len(builds().segments()) == 1, "the folder is still free for another try"


def test_a_damaged_file_is_named(builds: Builds, drawn: Path) -> None:
    copy(drawn, builds.source / "a.mp4")
    built = builds()
    path = built.root / "index.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"index\.parquet: damaged .*; make the dataset again"):
        built.segments()
    (built.root / "videos.parquet").unlink()
    with pytest.raises(ValueError, match=r"videos\.parquet is missing; run the same `lawdnet build` again"):
        built.videos()


def test_a_built_video_out_of_reach_stays(drawn: Path, tmp_path: Path) -> None:
    """A list whose files lie on a mount that is away: nothing is decoded again when it comes back."""
    for name in ("a.mp4", "b.mp4"):
        copy(drawn, tmp_path / "mount" / name)
    (tmp_path / "list.txt").write_text("mount/a.mp4\nmount/b.mp4\n")
    builds = Builds(tmp_path / "list.txt", tmp_path / "dataset")
    before = builds()
    (tmp_path / "mount").rename(tmp_path / "away")
    away = builds()
    assert builds.worked_on == []
    assert away.info == before.info
    check_files(away)
    with pytest.raises(ValueError, match=r"2 videos, mount/a\.mp4 the first, lack a feature"):
        builds(BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}}))
    (tmp_path / "away").rename(tmp_path / "mount")
    assert builds().info == before.info
    assert builds.worked_on == []


def test_a_dataset_keeps_what_measured_its_speech(
    drawn: Path, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network where its weights are; later builds measure new videos in the same way."""
    for name in ("a.mp4", "b.mp4"):
        copy(drawn, builds.source / name)
    before = builds()
    assert before.info["speech_measure"] == "voicing"
    assert "speech" not in before.info["config"], "the hashes of older datasets hold"

    class Half:
        """Stands for the network: the second half of a video is speech."""

        def __init__(self, weights_dir: object) -> None:
            pass

        @staticmethod
        def is_here(weights_dir: object) -> bool:
            return True

        def __call__(self, audio: Any, num_frames: int, beat: Any = no_beat) -> Any:
            assert len(audio) == 640 * num_frames
            return np.arange(num_frames) / num_frames + 0.01

    for module in ("build", "task"):
        monkeypatch.setattr(f"pipelines.build.{module}.Silero", Half)
    assert builds().info == before.info
    with pytest.raises(ValueError, match=r"other settings \(speech None → silero\)"):
        builds(dataclasses.replace(CONFIG, speech="silero"))
    found = build(builds.source, tmp_path / "new", CONFIG, execute=map_in_process)
    assert (found.info["speech_measure"], found.info["config"]["speech"]) == ("silero", "silero")
    assert found.hash != before.hash
    ratio, start, length = (
        found.index()[name][0].as_py() for name in ("score_speech_ratio", "start_frame", "num_frames")
    )
    assert ratio == pytest.approx(np.mean(np.arange(start, start + length) / 75 + 0.01 > 0.5), abs=1e-6)
    with pytest.raises(ValueError, match=r"other settings \(speech silero → None\)"):
        build(builds.source, tmp_path / "new", dataclasses.replace(CONFIG, speech="voicing"), execute=map_in_process)
