from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lawdnet.evaluation import protocol
from lawdnet.evaluation.image import psnr
from lawdnet.evaluation.protocol import compare, correlate, mouth_motion
from lawdnet.landmarks.openface import OpenFace
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Landmarks, UInt8
from lawdnet.video import decode, write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two clips of one drawn head that says different things."""
    folder: Path = tmp_path_factory.mktemp("clips")
    paths = {name: folder / f"{name}.mp4" for name in ("real", "other")}
    for speech, path in enumerate(paths.values()):
        write_talking_head(path, identity=1, motion=2, speech=3 + speech, seconds=2.4)
    return paths


def pictures(path: Path) -> list[UInt8]:
    return [picture for _, picture in decode(path)]


def landmarks(clips: dict[str, Path]) -> Landmarks:
    return OpenFace().detect(clips["real"])


def test_a_video_equals_itself(clips: dict[str, Path]) -> None:
    same = compare(clips["real"], clips["real"], landmarks(clips))
    assert (same.frames, same.frames_real, same.frames_generated, same.mouth_frames) == (60, 60, 60, 60)
    assert (same.psnr, same.mouth_psnr) == (100, 100)
    assert (same.ssim, same.mouth_ssim) == (pytest.approx(1), pytest.approx(1))


def test_other_words_show_in_the_mouth_more_than_in_the_frame(clips: dict[str, Path]) -> None:
    result = compare(clips["real"], clips["other"], landmarks(clips))
    both = zip(pictures(clips["real"]), pictures(clips["other"]), strict=True)
    assert result.psnr == pytest.approx(np.mean([psnr(a, b) for a, b in both]))
    assert result.mouth_psnr < result.psnr - 3
    assert result.mouth_ssim < result.ssim - 0.03


def test_another_number_of_frames_is_reported(clips: dict[str, Path], tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", pictures(clips["real"])[:25])
    result = compare(clips["real"], tmp_path / "short.mp4", landmarks(clips))
    assert (result.frames, result.frames_real, result.frames_generated) == (25, 60, 25)
    back = compare(tmp_path / "short.mp4", clips["real"], landmarks(clips))
    assert (back.frames, back.frames_real, back.frames_generated) == (25, 25, 60)
    assert result.psnr > 35
    assert set(result.to_dict()) >= {"frames", "psnr", "ssim", "mouth_psnr", "mouth_ssim"}


def test_frames_without_a_face_have_no_mouth(clips: dict[str, Path]) -> None:
    known = landmarks(clips)
    valid = known.valid_T.copy()
    valid[20:40] = False
    partly = Landmarks(points_T68x2=known.points_T68x2, valid_T=valid, source="test")
    result = compare(clips["real"], clips["other"], partly)
    assert (result.frames, result.mouth_frames) == (60, 40)
    motion = mouth_motion(clips["real"], clips["other"], partly)
    assert np.flatnonzero(np.isnan(motion.real_T)).tolist() == list(range(20, 40))
    nobody = Landmarks(points_T68x2=known.points_T68x2, valid_T=valid & False, source="test")
    assert np.isnan(compare(clips["real"], clips["other"], nobody).mouth_psnr)


def test_an_odd_size_grown_for_h264_still_compares(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_odd(path: Path) -> Iterator[tuple[int, UInt8]]:
        rows = 319 if path.name == "odd.mp4" else 320
        return ((index, picture[:rows]) for index, picture in decode(clips["real"]))

    monkeypatch.setattr(protocol, "decode", decode_odd)
    assert compare(Path("odd.mp4"), Path("grown.mp4"), landmarks(clips)).psnr == 100
    with pytest.raises(ValueError, match="320×256 and 319×256"):
        compare(Path("grown.mp4"), Path("odd.mp4"), landmarks(clips))


def test_other_sizes_are_refused(clips: dict[str, Path], tmp_path: Path) -> None:
    write_video(tmp_path / "small.mp4", [picture[::2, ::2] for picture in pictures(clips["real"])[:3]])
    with pytest.raises(ValueError, match="320×256 and 160×128 px"):
        compare(clips["real"], tmp_path / "small.mp4", landmarks(clips))


def test_mouth_motion_tells_right_from_wrong_words(clips: dict[str, Path]) -> None:
    true = mouth_motion(clips["real"], clips["real"], landmarks(clips))
    assert true.correlation == pytest.approx(1)
    assert true.ceiling > 0.98
    other = mouth_motion(clips["real"], clips["other"], landmarks(clips))
    assert abs(other.correlation) < 0.6
    np.testing.assert_array_equal(other.real_T, true.real_T)


def test_mouth_motion_finds_a_shift_of_one_frame(clips: dict[str, Path], tmp_path: Path) -> None:
    shown = pictures(clips["real"])
    write_video(tmp_path / "late.mp4", [shown[0], *shown[:-1]], crf=10)
    late = mouth_motion(clips["real"], tmp_path / "late.mp4", landmarks(clips))
    assert late.correlation < 0.97
    assert correlate(late.generated_T[1:], late.real_T[:-1]) > late.correlation


def test_correlation_is_pearsons() -> None:
    first = np.array([1, 2, 4, np.nan, 5], np.float32)
    second = np.array([2, 1, 6, 8, 7], np.float32)
    expected = np.corrcoef(first[[0, 1, 2, 4]], second[[0, 1, 2, 4]])[0, 1]
    assert correlate(first, second) == pytest.approx(expected)
    assert correlate(first, -3 * first + 2) == pytest.approx(-1)
    assert correlate(first, np.ones(5, np.float32)) == 0
    assert np.isnan(correlate(first[:1], second[:1]))
