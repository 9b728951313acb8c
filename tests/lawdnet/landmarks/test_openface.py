import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lawdnet.landmarks.base import SOURCES, make_source
from lawdnet.landmarks.openface import OpenFace, read_csv, write_csv
from lawdnet.types import Landmarks, Rejected, RejectReason

MEDIA = Path(__file__).resolve().parents[3].parent / "shared" / "media"
POINT_NAMES = [f"{axis}_{i}" for axis in "xy" for i in range(68)]
HEADER = ["frame", "face_id", "timestamp", "confidence", "success", *POINT_NAMES]
Read = Callable[[str], Landmarks]


def row(frame: object, start: float = 100, *, face: object = 0, confidence: object = 0.9, success: object = 1) -> str:
    """Points (start, start + 68), (start + 1, start + 69), …"""
    return ", ".join(map(str, [frame, face, 0.0, confidence, success, *(start + i for i in range(136))]))


def text(*rows: str, header: list[str] = HEADER, end: str = "\n") -> str:
    return end.join([", ".join(header), *rows, ""])


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(content: str) -> Landmarks:
        path = tmp_path / "a face.csv"
        path.write_bytes(content.encode())
        return read_csv(path)

    return read_text


def refusal(read: Read, content: str) -> str:
    with pytest.raises(Rejected) as caught:
        read(content)
    assert caught.value.reason is RejectReason.BAD_LANDMARKS
    return caught.value.detail


@pytest.mark.skipif(not MEDIA.exists(), reason="no real videos beside the repository")
@pytest.mark.parametrize(
    ("name", "frames"), [("talk_garden_25fps", 250), ("talk_30fps", 600), ("silent_portrait_25fps", 550)]
)
def test_real_files(name: str, frames: int) -> None:
    landmarks = make_source("openface").detect(MEDIA / f"{name}.mp4")
    assert landmarks.points_T68x2.shape == (frames, 68, 2)
    assert landmarks.points_T68x2.dtype == np.float32
    assert landmarks.valid_T.all()
    eye_line, chin = landmarks.points_T68x2[:, 36:48, 1].mean(1), landmarks.points_T68x2[:, 8, 1]
    assert (eye_line < chin).all()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_points_are_read_as_x_and_y_whatever_the_line_ends(read: Read, start: str, end: str) -> None:
    landmarks = read(start + text(row(1), row(2, 300.25), end=end))
    np.testing.assert_array_equal(landmarks.valid_T, [True, True])
    np.testing.assert_allclose(landmarks.points_T68x2[0, [0, 67]], [(100, 168), (167, 235)])
    np.testing.assert_allclose(landmarks.points_T68x2[1, 0], (300.25, 368.25))
    assert landmarks.source == "openface"


def test_columns_go_by_name_and_others_are_ignored(read: Read) -> None:
    header = ["gaze_0_x", *HEADER[::-1], "X_0", "X_0", "AU45_c"]
    cells = ["not a number", *row(1).split(", ")[::-1], "7", "8", "-"]
    landmarks = read(text(", ".join(cells), header=header))
    np.testing.assert_allclose(landmarks.points_T68x2[0, 0], (100, 168))


def test_spaces_are_not_needed_and_neither_are_the_optional_columns(read: Read) -> None:
    header = ",".join(["frame", *POINT_NAMES])
    line = ",".join(map(str, [1, *range(136)]))
    landmarks = read(f"{header}\n{line}")
    assert landmarks.valid_T.all()
    np.testing.assert_allclose(landmarks.points_T68x2[0, 5], (5, 73))


def test_missing_frames_and_failed_ones_are_invalid(read: Read) -> None:
    lost = row(4).replace("101,", "nan,").replace("120,", "-nan(ind),")
    rows = [
        row(1),
        row(3, success=0),
        lost,
        row(5).replace("101,", "inf,"),
        row(6).replace("101,", ","),
        row(7),
    ]
    landmarks = read(text(*rows))
    np.testing.assert_array_equal(landmarks.valid_T, [1, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(np.isnan(landmarks.points_T68x2).all((1, 2)), ~landmarks.valid_T)


@pytest.mark.parametrize("success", ["0", "0.0", "", "nan", "-1"])
def test_only_success_is_success(read: Read, success: str) -> None:
    assert not read(text(row(1, success=success))).valid_T.any()


def test_rows_may_come_in_any_order(read: Read) -> None:
    landmarks = read(text(row(3, 30), row(1, 10), row(2, 20)))
    np.testing.assert_allclose(landmarks.points_T68x2[:, 0, 0], [10, 20, 30])


def test_of_two_faces_the_more_confident_one_over_the_file_is_kept_without_jumping(read: Read) -> None:
    """Face 1 wins wherever it is, although face 0 scores higher in frame 2; in frame 4 there is only face 0."""
    rows = [row(1, 10, face=0, confidence=0.7), row(1, 900, face=1, confidence=0.98)]
    rows += [row(2, 20, face=0, confidence=0.95), row(2, 910, face=1, confidence=0.9)]
    rows += [row(3, 920, face=1), row(3, 30, face=0, confidence=0.2)]
    rows += [row(4, 40, face=0, confidence=0.3), row(4, 930, face=1, success=0)]
    landmarks = read(text(*rows))
    np.testing.assert_allclose(landmarks.points_T68x2[:, 0, 0], [900, 910, 920, 40])


def test_equally_confident_faces_are_decided_by_number(read: Read) -> None:
    landmarks = read(text(row(1, 900, face=2), row(1, 10, face=1), row(2, 20, face=1), row(2, 910, face=2)))
    np.testing.assert_allclose(landmarks.points_T68x2[:, 0, 0], [10, 20])


@pytest.mark.parametrize("confidence", ["nan", "inf", ""])
def test_an_unknown_confidence_counts_least(read: Read, confidence: str) -> None:
    landmarks = read(text(row(1, 900, face=0, confidence=confidence), row(1, 10, face=1, confidence=0.1)))
    np.testing.assert_allclose(landmarks.points_T68x2[:, 0, 0], [10])
    assert read(text(row(1, confidence=confidence))).valid_T.all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        (text(), ["no rows"]),
        (text(row(1), header=[*HEADER[:-1], "y_99"]), ["'y_67'"]),
        (text(row(1), header=["FRAME", *HEADER[1:]]), ["'frame'"]),
        (text(row(1)).replace(",", ";"), ["'frame'", "commas"]),
        (text(row(1), row(2).replace("120", "many")), ["many", "Row #3", "x_20"]),
        (text(row(1), row(2)[:80]), ["Row #3", "columns"]),
        (text(row(1), row(2), row(2)), ["frame 2", "2 times"]),
        (text(row(0)), ["frame 0", "Row #2"]),
        (text(row(1), row(-3)), ["frame -3", "Row #3"]),
        (text(row(1.5)), ["frame 1.5"]),
        (text(row("")), ["frame nan"]),
        (text(row("inf")), ["frame inf"]),
        (text(row(1), row(10**12)), ["frame 1e+12"]),
        (text(row(1), row("9" * 400)), ["frame inf"]),
    ],
)
def test_broken_files_are_refused_with_words_a_person_understands(read: Read, content: str, words: list[str]) -> None:
    detail = refusal(read, content)
    assert "\n" not in detail
    for word in words:
        assert word in detail


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for content in (b"\x00" * 5000, bytes(range(256)) * 50, text(row(1)).encode("utf-16"), b"\xff\xd8\xff"):
        path.write_bytes(content)
        with pytest.raises(Rejected) as caught:
            read_csv(path)
        assert caught.value.reason is RejectReason.BAD_LANDMARKS
    path.write_bytes(text(row(1)).encode() + bytes(range(128, 256)) * 200 + b"\n")
    with pytest.raises(Rejected):
        read_csv(path)


def test_writing_and_reading_back_gives_the_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-20, 4000, (5, 68, 2)).astype(np.float32)
    points[2, 7, 1] = np.nan
    path = tmp_path / "it's a talk.csv"
    write_csv(path, points, fps=25)
    landmarks = OpenFace().detect(path.with_suffix(".mp4"))
    np.testing.assert_array_equal(landmarks.valid_T, [1, 1, 0, 1, 1])
    np.testing.assert_allclose(landmarks.points_T68x2[[0, 1, 3, 4]], points[[0, 1, 3, 4]], atol=1e-3)
    lines = path.read_text().splitlines()
    assert lines[0] == ", ".join(HEADER)
    assert lines[2].startswith("2, 0, 0.040, 1.000, 1, ")


def test_a_video_without_its_file_has_no_landmarks(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"talk\.csv") as caught:
        make_source("openface").detect(tmp_path / "talk.mp4")
    assert caught.value.reason is RejectReason.NO_LANDMARKS


def test_an_unknown_source_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'facemesh'.*openface"):
        make_source("facemesh")
    assert all(SOURCES[name].name == name for name in SOURCES)


def test_long_files_are_read_at_more_than_ten_thousand_rows_a_second(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    tail = row(1).split(", ", 1)[1]
    path.write_text(text(*(f"{frame}, {tail}" for frame in range(1, 5001))))
    start = time.perf_counter()
    assert read_csv(path).valid_T.sum() == 5000
    assert time.perf_counter() - start < 0.5
