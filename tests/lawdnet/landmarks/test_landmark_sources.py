"""What all sources share: the registry, `auto`, batches, and the CSV as a source."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lawdnet.face.track import choose, link
from lawdnet.landmarks import SOURCES, LandmarkSource, OpenFace, has_csv, make_source, source_for, source_options
from lawdnet.landmarks import base as landmarks_base
from lawdnet.landmarks.base import in_batches, prepare_landmarks
from lawdnet.synthetic import TalkingHead, make_identity, make_motion
from lawdnet.types import Face, Float32, Rejected, RejectReason, UInt8, Video

POINTS = [f"{axis}_{i}" for axis in "xy" for i in range(68)]


def video(path: Path = Path("talk.mp4"), frames: int = 10, *, height: int = 48, width: int = 64) -> Video:
    return Video(
        path=path, num_frames=frames, num_source_frames=frames, height=height, width=width, fps=25, sample_rate=None
    )


def ticks(*indices: int) -> list[tuple[int, UInt8]]:
    """Return a frame for every tick, filled with the index of its source frame."""
    return [(index, np.full((48, 64, 3), index, np.uint8)) for index in indices]


def write(path: Path, rows: list[tuple[int, int, float, int, Float32]]) -> None:
    lines = [", ".join(["frame", "face_id", "timestamp", "confidence", "success", *POINTS])]
    for frame, face_id, confidence, success, points_68x2 in rows:
        cells = [frame, face_id, 0.0, confidence, success, *points_68x2.T.ravel()]
        lines.append(", ".join(map(str, cells)))
    path.write_text("\n".join(lines))


def face_at(x: float, size: float = 40) -> Float32:
    return (np.linspace(0, 1, 136).reshape(68, 2) * size + x).astype(np.float32)


def test_a_csv_gives_the_faces_of_every_tick_by_source_frame(tmp_path: Path) -> None:
    """50 fps shows every second frame, and a slow source shows one frame twice."""
    write(tmp_path / "talk.csv", [(n, 0, 0.9, 1, face_at(10 * n)) for n in (1, 2, 3, 5)])
    faces = list(OpenFace().faces(video(tmp_path / "talk.mp4", 5), ticks(0, 2, 2, 3, 4)))
    assert [len(found) for found in faces] == [1, 1, 1, 0, 1]
    np.testing.assert_allclose([found[0].points_68x2[0, 0] for found in faces if found], [10, 30, 30, 50])


def test_all_faces_of_a_frame_come_the_most_confident_first(tmp_path: Path) -> None:
    rows = [(1, 0, 0.5, 1, face_at(10)), (1, 1, 0.8, 1, face_at(200)), (1, 2, 0.9, 0, face_at(300))]
    rows += [(2, 0, 0.99, 1, np.zeros((68, 2), np.float32)), (2, 1, 0.7, 1, face_at(210))]
    write(tmp_path / "talk.csv", rows)
    first, second = OpenFace().faces(video(tmp_path / "talk.mp4", 2), ticks(0, 1))
    assert [(face.score, face.points_68x2[0, 0]) for face in first] == [(0.8, 200), (0.5, 10)]
    assert [face.points_68x2[0, 0] for face in second] == [210]


@pytest.mark.parametrize(
    ("rows", "tolerance", "fine"), [(9, 1, True), (11, 1, True), (8, 1, False), (9, 0, False), (7, 3, True)]
)
def test_the_csv_of_another_video_is_refused_before_a_frame_is_decoded(
    tmp_path: Path, rows: int, tolerance: int, fine: bool
) -> None:
    def decoder() -> Iterator[tuple[int, UInt8]]:
        assert fine, "decoded in vain"
        yield from ticks(*range(10))

    write(tmp_path / "talk.csv", [(n, 0, 0.9, 1, face_at(n)) for n in range(1, rows + 1)])
    source = make_source("openface", tolerance=tolerance)
    if fine:
        assert len(list(source.faces(video(tmp_path / "talk.mp4"), decoder()))) == 10
        return
    with pytest.raises(Rejected, match=f"{rows} landmark rows for 10 frames") as caught:
        source.faces(video(tmp_path / "talk.mp4"), decoder())
    assert caught.value.reason is RejectReason.LANDMARK_COUNT


def test_a_csv_with_an_upper_case_suffix_is_found(tmp_path: Path) -> None:
    shouting = tmp_path / "UP.MP4"
    assert not has_csv(shouting)
    with pytest.raises(Rejected, match=r"UP\.csv"):
        OpenFace().faces(video(shouting), [])
    write(tmp_path / "UP.CSV", [(1, 0, 1, 1, face_at(3))])
    assert has_csv(shouting)
    assert len(next(OpenFace().faces(video(shouting, 1), ticks(0)))) == 1


def test_points_beyond_single_precision_are_no_face(tmp_path: Path) -> None:
    write(tmp_path / "talk.csv", [(1, 0, 1, 1, face_at(3)), (2, 0, 1, 1, face_at(3).astype(np.float64) * 1e39)])
    assert [len(found) for found in OpenFace().faces(video(tmp_path / "talk.mp4", 2), ticks(0, 1))] == [1, 0]


def test_two_drawn_people_side_by_side_are_told_apart(tmp_path: Path) -> None:
    """OpenFace gives a face a new number when it loses it; the tracks stay with the people."""
    size, frames = (160, 128), 30
    heads = [TalkingHead(make_identity(seed), size) for seed in (1, 2)]
    poses = [make_motion(seed, frames) for seed in (3, 4)]
    truth = np.stack(
        [[head.draw(pose, 0.3, 0.5)[1] for pose in poses] for head, poses in zip(heads, poses, strict=True)]
    )
    truth[1, :, :, 0] += size[1]
    swapped = [n >= 15 for n in range(frames)]
    rows = [
        (n + 1, person ^ swapped[n], 0.9, 1, truth[person, n])
        for n in range(frames)
        for person in (0, 1)
        if (person, n) != (0, 14)
    ]
    write(tmp_path / "two.csv", rows)
    faces = list(OpenFace().faces(video(tmp_path / "two.mp4", frames), ticks(*range(frames))))
    tracks = link(faces)
    assert [(track.start, track.stop) for track in tracks] == [(0, frames)] * 2
    for track in tracks:
        person = int(track.points_N68x2[0].mean(0)[0] > size[1])
        np.testing.assert_allclose(track.points_N68x2[track.valid_N], truth[person][track.valid_N], atol=1e-3)
        assert track.valid_N.all() == bool(person)
    assert len(choose(tracks, "largest")) == len(choose(tracks, "1")) == 1


class Finder:
    """Stands in for a network and records which images it gets together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, images: list[UInt8]) -> list[list[Face]]:
        self.batches.append([int(image[0, 0, 0]) for image in images])
        return [[Face(face_at(float(image[0, 0, 0])))] if image[0, 0, 0] % 2 else [] for image in images]


def test_images_go_in_batches_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks_base, "BATCH", 3)
    finder = Finder()
    shown = [0, 1, 1, 2, 3, 3, 3, 5, 7]
    faces = list(in_batches(video(), ticks(*shown), finder))
    assert finder.batches == [[0, 1, 2], [3, 5, 7]]
    assert [found[0].points_68x2[0, 0] if found else None for found in faces] == [n if n % 2 else None for n in shown]
    faces[1].clear()
    assert faces[2], "ticks that show the same frame share their list"


def test_at_most_one_batch_is_pulled_ahead_and_large_images_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = []

    def decoder() -> Iterator[tuple[int, UInt8]]:
        for item in ticks(*range(60)):
            pulled.append(item[0])
            yield item

    faces = in_batches(video(), decoder(), Finder())
    next(faces)
    assert len(pulled) <= landmarks_base.BATCH + 1
    assert len(list(faces)) == 59
    monkeypatch.setattr(landmarks_base, "MAX_BATCH_BYTES", 48 * 64 * 3 * 2)
    finder = Finder()
    list(in_batches(video(), ticks(*range(5)), finder))
    assert finder.batches == [[0, 1], [2, 3], [4]]
    list(in_batches(video(height=10**6, width=10**6), ticks(1), finder))


def test_the_registry_knows_every_source_and_checks_options() -> None:
    assert list(SOURCES) == ["openface", "face-alignment", "mediapipe"]
    assert source_options("openface") == {"tolerance": 1}
    assert source_options("face-alignment")["detector"] == "sfd"
    for name, source in SOURCES.items():
        assert source.name == name
    with pytest.raises(ValueError, match=r"openface has no option 'batch'; choose from tolerance"):
        make_source("openface", batch=3)
    with pytest.raises(ValueError, match=r"'facemesh'.*face-alignment.*openface"):
        source_options("facemesh")


class Ready:
    """A detector that can be used."""

    name = "mediapipe"
    reads_frames = True

    def __init__(self, *, weights_dir: Path | None = None) -> None:
        self.weights_dir = weights_dir


class Missing(Ready):
    def __init__(self, *, weights_dir: Path | None = None) -> None:
        raise ValueError("model.task: not found in here")


def test_auto_takes_the_csv_else_the_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mediapipe", Ready)
    talk = tmp_path / "talk.mp4"
    found = source_for(talk, "auto", tmp_path)
    assert isinstance(found, Ready)
    assert found.weights_dir == tmp_path
    (tmp_path / "talk.csv").touch()
    assert source_for(talk).name == "openface"
    assert source_for(talk, "mediapipe").name == "mediapipe"
    (tmp_path / "talk.csv").unlink()
    monkeypatch.setitem(SOURCES, "mediapipe", Missing)
    with pytest.raises(Rejected, match=r"no talk\.csv next to it, and model\.task: not found in here") as caught:
        source_for(talk)
    assert caught.value.reason is RejectReason.NO_LANDMARKS
    with pytest.raises(ValueError, match=r"model\.task"):
        source_for(talk, "mediapipe")


def test_what_many_videos_need_is_made_before_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def make(name: str) -> LandmarkSource:
        made.append(name)
        return make_source(name)

    monkeypatch.setitem(SOURCES, "mediapipe", Ready)
    assert prepare_landmarks("auto", [True, False], make)
    assert not prepare_landmarks("auto", [True, True], make)
    assert not prepare_landmarks("openface", [False], make)
    assert made == ["mediapipe", "openface"], "nothing is fetched that no video needs"
    monkeypatch.setitem(SOURCES, "mediapipe", Missing)
    assert not prepare_landmarks("auto", [True, False], make)
    assert caplog.messages == ["videos without a CSV will be rejected: model.task: not found in here"]
    with pytest.raises(ValueError, match=r"model\.task"):
        prepare_landmarks("mediapipe", [True], make)
