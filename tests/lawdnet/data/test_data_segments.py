import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.quality import scale_change
from lawdnet.data.segments import cut, video_id
from lawdnet.data.tally import Tally
from lawdnet.face.track import inside
from lawdnet.types import CLIP_FRAMES, RejectReason, Segment


@pytest.mark.parametrize("length", [0, 53, 54, 62, 63, 287, 288, 289, 341, 342, 343, 576, 577, 1000, 100_000])
def test_cut_loses_fewer_than_nine_frames(length: int) -> None:
    parts = cut(length, 54, 288)
    assert all(54 <= part <= 288 and part % CLIP_FRAMES == 0 for part in parts)
    assert (not parts) == (length < 54)
    if parts:
        assert 0 <= length - sum(parts) < CLIP_FRAMES
        assert max(parts) - min(parts) <= CLIP_FRAMES


def test_cut_keeps_what_narrow_limits_allow() -> None:
    assert cut(100, 90, 90) == [90]
    assert cut(179, 90, 90) == [90]
    assert cut(180, 90, 90) == [90, 90]


def test_a_face_at_the_edge_is_outside() -> None:
    points = np.full((4, 68, 2), 10, np.float32)
    points[1, 5] = (-0.5, 10)
    points[2, 5] = (10, 31.5)
    assert inside(points, height=32, width=40).tolist() == [True, False, False, True]


def test_the_reason_for_too_few_frames_is_the_commonest_cause() -> None:
    assert Tally(frames=4, outside=2).short_reason(4) == RejectReason.FACE_LEAVES_PICTURE
    assert Tally(frames=4, no_face=2, outside=1).short_reason(4) == RejectReason.NO_FACE
    assert Tally(frames=4).short_reason(4) == RejectReason.TOO_SHORT
    assert Tally(frames=4, no_face=1, no_audio=2).short_reason(4) == RejectReason.AUDIO_TOO_SHORT
    assert Tally(frames=3, no_audio=2).short_reason(4) == RejectReason.TOO_SHORT


def test_scale_change_is_a_ratio() -> None:
    matrices = np.stack([np.diag([s, s, 1]) for s in (0.5, 0.6, 0.75)]).astype(np.float32)
    assert scale_change(matrices) == pytest.approx(1.5)


def test_video_ids_tell_files_of_one_name_apart_and_stay_plain() -> None:
    from pathlib import Path

    first, second = (video_id(Path("a/-我 的 'clip'?.mp4"), sha) for sha in ("0" * 64, "1" * 64))
    assert first != second
    assert not set(first) & set("/'? ")
    assert not first.startswith("-")
    assert video_id(Path("a/???.mp4"), "0" * 64) == "video-0000000000"


def test_jpeg_keeps_a_one_pixel_red_line() -> None:
    import cv2

    picture = np.full((32, 32, 3), 128, np.uint8)
    picture[16] = (200, 40, 40)
    back = cv2.cvtColor(cv2.imdecode(np.frombuffer(encode_jpeg(picture, 95), np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.abs(back[16].astype(int) - (200, 40, 40)).max() <= 12, "chroma subsampling would smear the line"


def test_the_length_contract_is_checked() -> None:
    good = {
        "segment_id": "s", "video_id": "v", "index": 0, "start_frame": 0, "split": "train",
        "frames_jpeg": (b"x",) * 54, "landmarks_T68x2": np.zeros((54, 68, 2), np.float32),
        "matrix_T33": np.zeros((54, 3, 3), np.float32), "features": {"mel": np.zeros((54, 4), np.float32)},
    }  # fmt: skip
    assert Segment(**good).num_frames == 54
    with pytest.raises(ValueError, match=r"features\[mel\]: 57 rows for 54 frames"):
        Segment(**good | {"features": {"mel": np.zeros((57, 4), np.float32)}})
    with pytest.raises(ValueError, match="45 frames"):
        Segment(**good | {"frames_jpeg": (b"x",) * 45})


@pytest.mark.parametrize(
    ("field", "value"), [("features", ("nonsense",)), ("features", ()), ("crop_width", 321), ("val_fraction", 1.0),
                         ("jpeg_quality", 0), ("min_clips", 5)],
)  # fmt: skip
def test_bad_settings_name_their_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        BuildConfig(**{field: value})


def test_the_hash_follows_every_field() -> None:
    assert BuildConfig().hash() == BuildConfig().hash()
    assert BuildConfig().hash() != BuildConfig(max_gap=4).hash()
    assert BuildConfig().hash() == "ef1ea4a2da672e48", "datasets of format 2 have this hash, and keep it"
