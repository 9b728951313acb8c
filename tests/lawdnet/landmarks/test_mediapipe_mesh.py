"""MediaPipe as a source: the real package where no weights are needed, else a landmarker that detects bright dots."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lawdnet.landmarks import MediaPipe, OpenFace, make_source
from lawdnet.landmarks.mediapipe_mesh import MESH_POINTS, find_faces, to_68
from lawdnet.types import UInt8, Video
from lawdnet.video import decode, probe
from lawdnet.weights import find_weights

MEDIA = Path(__file__).resolve().parents[3].parent / "shared" / "media"
needs_package = pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="no mediapipe")
MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
    41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip
RIGHT = [
    *[127, 234, 93, 132, 58, 172, 136, 150, 176, 70, 63, 105, 66, 107, 98, 97, 33, 160, 158, 133, 153, 144],
    *[61, 39, 37, 91, 181, 84, 78, 82, 87],
]
LEFT = [
    *[356, 454, 323, 361, 288, 397, 365, 379, 400, 300, 293, 334, 296, 336, 327, 326, 263, 387, 385, 362, 380, 373],
    *[291, 269, 267, 321, 405, 314, 308, 312, 317],
]
"""Points of the mesh on the person's right, and the corresponding ones on the left."""


def video(height: int, width: int) -> Video:
    return Video(
        path=Path("v.mp4"), num_frames=3, num_source_frames=3, height=height, width=width, fps=25, sample_rate=None
    )


def test_the_68_points_are_the_same_on_both_sides() -> None:
    partner = dict(zip(RIGHT + LEFT, LEFT + RIGHT, strict=True))
    assert len(MESH_POINTS) == 68
    for point, mirrored in enumerate(MIRROR):
        assert {partner.get(index, index) for index in MESH_POINTS[point]} == set(MESH_POINTS[mirrored]), point
    assert len(set(MESH_POINTS)) == 68


def test_fractions_of_the_image_become_pixels_whose_centres_are_integers() -> None:
    """The left edge of an image is at -0.5, the right one of 40 px at 39.5."""
    mesh = [SimpleNamespace(x=index / 477, y=0.5) for index in range(478)]
    points = to_68(mesh, 20, 40)
    assert points.shape == (68, 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[:, 1], 9.5)
    np.testing.assert_allclose(points[51, 0], -0.5)
    np.testing.assert_allclose(points[27], (168 / 477 * 40 - 0.5, 9.5), rtol=1e-5)
    np.testing.assert_allclose(points[3, 0], ((132 + 58) / 2 / 477) * 40 - 0.5, rtol=1e-5)


class Dots:
    """Stands in for the landmarker: a face of 20 px around every white pixel; small faces are off by 3 px."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, image: object) -> SimpleNamespace:
        image = image.numpy_view()  # type: ignore[attr-defined]
        self.shapes.append(image.shape)
        height, width = image.shape[:2]
        off = 3 if width > 100 else 0
        faces = []
        for y, x in np.argwhere(image[..., 1] > 200):
            spread = np.linspace(-10, 10, 478)
            faces.append([SimpleNamespace(x=(x + 0.5 + off + s) / width, y=(y + 0.5 + s) / height) for s in spread])
        return SimpleNamespace(face_landmarks=faces)

    def __enter__(self) -> "Dots":
        return self

    def __exit__(self, *_: object) -> None:
        self.shapes.append(())


def image(*places: tuple[int, int], size: tuple[int, int] = (160, 240)) -> UInt8:
    dark = np.zeros((*size, 3), np.uint8)
    for x, y in places:
        dark[y, x] = 255
    return dark


@needs_package
@pytest.mark.parametrize("place", [(120, 80), (1, 2), (238, 158), (30, 159)])
def test_a_face_is_detected_again_in_a_close_up(place: tuple[int, int]) -> None:
    landmarker = Dots()
    (face,) = find_faces(landmarker, image(place))
    spread = np.linspace(-10, 10, 478)
    np.testing.assert_allclose(face.points_68x2[51], (place[0] + spread[0], place[1] + spread[0]), atol=1e-3)
    np.testing.assert_allclose(face.points_68x2[27], np.array(place) + spread[168], atol=1e-3)
    assert len(landmarker.shapes) == 2
    assert landmarker.shapes[1][0] == landmarker.shapes[1][1] < 60


@needs_package
def test_of_two_faces_near_each_other_each_stays_itself() -> None:
    faces = find_faces(Dots(), image((100, 80), (112, 84)))
    np.testing.assert_allclose([face.points_68x2[51] for face in faces], [(90, 70), (102, 74)], atol=1e-3)


@needs_package
def test_a_face_that_is_not_found_again_stays_where_it_was() -> None:
    class Once(Dots):
        def detect(self, image: object) -> SimpleNamespace:
            found = super().detect(image)
            return found if len(self.shapes) == 1 else SimpleNamespace(face_landmarks=[])

    (face,) = find_faces(Once(), image((120, 80)))
    np.testing.assert_allclose(face.points_68x2[51], (113, 70), atol=1e-3)


@needs_package
def test_every_tick_gets_its_faces_and_the_landmarker_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(b"stands for the bundle")
    landmarker = Dots()
    source = make_source("mediapipe", weights_dir=tmp_path)
    monkeypatch.setattr(source, "_open", lambda: landmarker)
    shown = [image((50, 50)), image(), image((60, 70), (150, 90))[:, ::-1]]
    faces = list(source.faces(video(160, 240), [(0, shown[0]), (0, shown[0]), (1, shown[1]), (2, shown[2])]))
    assert [len(found) for found in faces] == [1, 1, 0, 2]
    assert sum(shape == (160, 240, 3) for shape in landmarker.shapes) == 3
    assert landmarker.shapes[-1] == ()
    assert len(source.model_sha256 or "") == 64


def test_the_model_is_searched_and_the_error_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"face_landmarker\.task") as caught:
        MediaPipe(weights_dir=tmp_path)
    for words in (str(tmp_path), str(tmp_path / "other"), "https://"):
        assert words in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"-e '\.\[mediapipe\]'"):
        MediaPipe(weights_dir=tmp_path)


@needs_package
@pytest.mark.parametrize("content", [b"", b"no bundle at all", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(content)
    source = MediaPipe(weights_dir=tmp_path)
    with pytest.raises(ValueError, match=r"face_landmarker\.task: MediaPipe cannot use this file") as caught:
        next(source.faces(video(48, 64), [(0, np.zeros((48, 64, 3), np.uint8))]))
    assert "\n" not in str(caught.value)


@needs_package
@pytest.mark.skipif(not MEDIA.exists(), reason="no real videos beside the repository")
def test_real_faces_agree_with_their_csv() -> None:
    try:
        find_weights("face_landmarker.task", hint="")
    except ValueError:
        pytest.skip("no face_landmarker.task in LAWDNET_WEIGHTS")
    path = MEDIA / "talk_garden_25fps.mp4"
    frames = list(decode(path, stop=12))
    found = [faces[0].points_68x2 for faces in MediaPipe().faces(probe(path), frames)]
    truth = np.stack([faces[0].points_68x2 for faces in OpenFace().faces(probe(path), frames)])
    apart = np.linalg.norm(np.subtract(found, truth), axis=-1).mean()
    eyes = np.linalg.norm(truth[:, 36] - truth[:, 45], axis=-1).mean()
    assert apart < 0.05 * eyes
