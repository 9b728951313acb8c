"""The real code of the package with weights made here: detectors that respond to red, and a FAN that finds colours."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from lawdnet.landmarks import FaceAlignment, make_source
from lawdnet.landmarks.fan import Square, crop_square, cut, peaks, to_image
from lawdnet.types import UInt8, Video

torch = pytest.importorskip("torch")
needs_package = pytest.mark.skipif(importlib.util.find_spec("face_alignment") is None, reason="no face-alignment")
BOX = 80
"""Side, in px of the detector's image, of every face that the S3FD made here finds."""
RED, GREEN, BLUE = range(27), range(27, 36), range(36, 68)
"""Points that the FAN made here puts on the blob of each colour; left and right of a pair have the same colour."""


def _silence(network: torch.nn.Module) -> None:
    """Set all weights to zero, and all normalisations to the identity."""
    for value in network.state_dict().values():
        value.zero_()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(1)
            module.running_var.fill_(1)


def _pass(convolution: torch.nn.Conv2d, channels: int = 1, gain: float = 1) -> None:
    """Make a convolution copy the first channels."""
    rows, columns = (size // 2 for size in convolution.kernel_size)
    for channel in range(channels):
        convolution.weight.data[channel, channel, rows, columns] = gain


def save_s3fd(path: Path) -> None:
    """Return an S3FD that responds to 16 px cells with a pixel whose red is above 183."""
    from face_alignment.detection.sfd.net_s3fd import s3fd

    network = s3fd()
    _silence(network)
    network.conv1_1.weight.data[0, 2, 1, 1] = 0.01  # it sees BGR
    network.conv1_1.bias.data[0] = -0.6
    for block, layers in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, layers + 1):
            if (block, layer) != (1, 1):
                _pass(getattr(network, f"conv{block}_{layer}"))
    network.conv5_3_norm.weight.data.fill_(10)
    for level in (network.conv4_3_norm, network.conv3_3_norm):
        level.weight.data.fill_(0)
    for name, module in network.named_modules():
        if name.endswith("conf"):
            module.bias.data[:-1] = 4
    network.conv5_3_norm_mbox_conf.weight.data[1, 0, 1, 1] = 1
    network.conv5_3_norm_mbox_loc.bias.data[2:] = math.log(BOX / 64) / 0.2
    torch.save(network.state_dict(), path)


def save_blazeface(weights: Path, anchors: Path) -> None:
    """Return a BlazeFace that responds to 16 px cells with a bright red pixel, with a box of a quarter of the image."""
    from face_alignment.detection.blazeface.net_blazeface import BlazeFace

    network = BlazeFace(back_model=True)
    _silence(network)
    network.backbone[0].weight.data[0, 0, 2, 2] = 1
    network.backbone[0].bias.data[0] = -0.6
    network.classifier_8.weight.data[0, 0] = 1000
    network.classifier_8.bias.data[:] = -20
    network.classifier_16.bias.data[:] = -20
    network.regressor_8.bias.data[[2, 3]] = 64
    torch.save(network.state_dict(), weights)
    cells = [
        ((x + 0.5) / n, (y + 0.5) / n, 1, 1)
        for n, many in ((16, 2), (8, 6))
        for y in range(n)
        for x in range(n)
        for _ in range(many)
    ]
    np.save(anchors, np.array(cells, np.float32))


def save_fan(path: Path) -> None:
    """Return a FAN whose heat maps are the red, green and blue of the image."""
    from face_alignment.models import FAN

    network = FAN(4)
    _silence(network)
    for colour in range(3):
        network.conv1.weight.data[colour, colour, 3:5, 3:5] = 0.25  # so that heat pixel i is centred on 4i + 1.5
    _pass(network.conv2.downsample[2], 3)
    _pass(network.conv4.downsample[2], 3)
    _pass(network.conv_last3, 3)
    network.m3.b3_4.bn1.weight.data.fill_(1)
    _pass(network.m3.b3_4.conv1, 3, gain=-1)  # the coarse scales would blur it
    for colour, points in enumerate((RED, GREEN, BLUE)):
        network.l3.weight.data[points.start : points.stop, colour] = 1
    torch.save(network.state_dict(), path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_s3fd(folder / "s3fd-619a316812.pth")
    save_blazeface(folder / "blazefaceback.pth", folder / "anchorsback.npy")
    save_fan(folder / "2DFAN4-11f355bf06.pth.tar")
    return folder


@pytest.fixture(scope="session")
def source(weights: Path) -> FaceAlignment:
    return FaceAlignment(weights_dir=weights, batch=2)


@pytest.fixture(scope="session")
def blazeface(weights: Path) -> FaceAlignment:
    return FaceAlignment(weights_dir=weights, detector="blazeface", min_px=0)


def blob(image: UInt8, x: float, y: float, colour: int, sigma: float, peak: float) -> None:
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    heat = peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    image[..., colour] = np.maximum(image[..., colour], heat.astype(np.uint8))


def middle(image: UInt8) -> np.ndarray:
    """Return x and y of the centre of the red blob."""
    red = image[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: red.shape[0], : red.shape[1]]
    return np.array([(columns * red).sum(), (rows * red).sum()]) / red.sum()


def portrait(x: float, y: float, *, size: tuple[int, int] = (160, 208), scale: float = 1) -> UInt8:
    """Return a "face": a bright red blob, a green and a blue one."""
    image = np.zeros((*size, 3), np.uint8)
    blob(image, x, y, 0, 4 * scale, 255)
    blob(image, x + 15 * scale, y + 12 * scale, 1, 4 * scale, 170)
    blob(image, x - 12 * scale, y - 18 * scale, 2, 4 * scale, 170)
    return image


def video(image: UInt8) -> Video:
    height, width = image.shape[:2]
    return Video(
        path=Path("v.mp4"), num_frames=9, num_source_frames=9, height=height, width=width, fps=25, sample_rate=None
    )


@needs_package
@pytest.mark.parametrize("flip", [True, False])
def test_faces_are_found_and_their_points_lie_where_they_should(
    source: FaceAlignment, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "flip", flip)
    places = [(80, 72), (130.4, 60.7)]
    images = [portrait(*places[0]), np.zeros((160, 208, 3), np.uint8), portrait(*places[1])]
    faces = list(source.faces(video(images[0]), enumerate(images)))
    assert [len(found) for found in faces] == [1, 0, 1]
    for (x, y), (face,) in zip(places, [faces[0], faces[2]], strict=True):
        assert face.score > 0.9
        assert face.box[2] - face.box[0] == pytest.approx(BOX, abs=0.5)
        assert np.abs(face.box.reshape(2, 2).mean(0) - (x, y)).max() < 16
        for points, place in [(RED, (x, y)), (GREEN, (x + 15, y + 12)), (BLUE, (x - 12, y - 18))]:
            found = face.points_68x2[points.start : points.stop]
            np.testing.assert_allclose(found, np.broadcast_to(place, found.shape), atol=1)


@needs_package
def test_crops_and_points_are_those_of_the_package_but_for_its_rounding() -> None:
    """The package rounds corners and points down to whole pixels: single ones differ, the mean over many does not."""
    from face_alignment import utils

    rng = np.random.default_rng(0)
    image = np.zeros((400, 400, 3), np.uint8)
    blob(image, 200, 190, 0, 9, 255)
    crop_differences, point_differences = [], []
    for _ in range(60):
        x, y, side = *rng.uniform(180, 220, 2), rng.uniform(120, 140)
        crop = crop_square(np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2], np.float32))
        centre, scale = (crop.x, crop.y), crop.side / 200
        crop_differences.append(middle(cut(image, crop)) - middle(utils.crop(image, centre, scale)))
        at = rng.uniform(10, 50, 2)
        theirs = utils.transform(at, centre, scale, 64, invert=True).numpy()
        point_differences.append(to_image(at[None].astype(np.float32) - 0.5, crop)[0] - theirs)
    for differences, most in [(crop_differences, 1.5), (point_differences, 0.51)]:
        assert np.abs(differences).max() < most
        assert np.abs(np.mean(differences, 0)).max() < 0.15


@needs_package
def test_a_large_image_is_shrunk_for_the_detector_only(source: FaceAlignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "detect_px", 320)
    (face,) = source.find([portrait(480, 400, size=(800, 1280), scale=6)])[0]
    assert face.box[2] - face.box[0] == pytest.approx(4 * BOX, rel=0.01)
    np.testing.assert_allclose(face.points_68x2[0], (480, 400), atol=4)


@needs_package
def test_boxes_are_those_of_the_package(source: FaceAlignment) -> None:
    """And those of an image are the same in any batch."""
    two = np.maximum(portrait(60, 70, size=(144, 288)), portrait(220, 80, size=(144, 288)))
    images = np.stack([portrait(90.3, 71, size=(144, 288)), two, np.zeros_like(two)])
    theirs = source._detector.detect_from_batch(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    ours = source._boxes(images)
    assert [len(boxes) for boxes in ours] == [1, 2, 0]
    for boxes, expected, image in zip(ours, theirs, images, strict=True):
        np.testing.assert_array_equal(boxes, np.array(expected, np.float32).reshape(-1, 5))
        np.testing.assert_array_equal(boxes, source._boxes(image[None])[0])


@needs_package
def test_two_faces_are_two_and_small_ones_are_dropped(source: FaceAlignment, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.maximum(portrait(60, 70, size=(144, 288)), portrait(220, 80, size=(144, 288)))
    faces = source.find([image])[0]
    np.testing.assert_allclose(sorted(face.points_68x2[0, 0] for face in faces), [60, 220], atol=1)
    monkeypatch.setattr(source, "min_px", BOX + 5)
    assert source.find([image]) == [[]]


@needs_package
def test_doubtful_and_broken_boxes_are_dropped_and_the_most_confident_comes_first(weights: Path) -> None:
    boxes = [
        [0, 0, 50, 50, 0.6],
        [9, 9, 59, 59, 0.9],
        [0, 0, 50, 50, 0.4],
        [0, 0, np.inf, 50, 0.9],
        [0, 50, 50, 0, 0.9],
    ]
    good = FaceAlignment(weights_dir=weights)._good([np.array(box, np.float32) for box in boxes])
    np.testing.assert_allclose([box[4] for box in good], [0.9, 0.6])


@needs_package
@pytest.mark.parametrize("size", [(240, 320), (47, 33)])
def test_blazeface_sees_the_whole_image(blazeface: FaceAlignment, size: tuple[int, int]) -> None:
    """The package alone would crop the sides."""
    x, y = size[1] * 0.9, size[0] * 0.4
    image = np.zeros((*size, 3), np.uint8)
    blob(image, x, y, 0, max(size) / 40, 255)
    faces = blazeface.find([image, np.zeros_like(image)])
    assert [len(found) for found in faces] == [1, 0]
    box = faces[0][0].box
    assert box[2] - box[0] == pytest.approx(max(size) / 4, rel=0.02)
    assert np.abs((box[:2] + box[2:]) / 2 - (x, y)).max() < max(size) / 12


@needs_package
def test_weights_are_searched_and_never_downloaded(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path / "other"))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_: pytest.fail("downloads"))
    with pytest.raises(ValueError, match="2DFAN4") as caught:
        make_source("face-alignment", weights_dir=tmp_path)
    for words in (str(tmp_path), "other", "torch/hub/checkpoints", "https://", "--weights-dir"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    cache = tmp_path / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    for path in weights.iterdir():
        (cache / path.name).symlink_to(path)
    one, other = FaceAlignment().model_sha256, FaceAlignment(detector="blazeface").model_sha256
    assert one
    assert len(one) == 64
    assert one != other


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"-e '\.\[landmarks\]'"):
        FaceAlignment()


@pytest.mark.parametrize(("option", "value"), [("detector", "mtcnn"), ("batch", 0), ("detect_px", -1)])
def test_options_are_checked(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        make_source("face-alignment", **{option: value})


def test_a_peak_between_pixels_is_found_where_it_is() -> None:
    rows, columns = np.mgrid[:64, :64]
    truth = np.random.default_rng(0).uniform(3, 60, (68, 2))
    heat = np.stack([np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2)) for x, y in truth])
    np.testing.assert_allclose(peaks(heat.astype(np.float32)), truth, atol=2e-3)


def test_flat_and_dark_heat_maps_and_peaks_at_the_border_give_points() -> None:
    heat = np.zeros((68, 64, 64), np.float32)
    heat[1, 0, 0] = heat[2, 63, 63] = 1
    heat[3] = -1
    points = peaks(heat)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points[[1, 2]], [(0, 0), (63, 63)], atol=0.5)


def test_the_crop_shows_what_to_image_points_at() -> None:
    """A dot in the image goes into the crop, and from the crop's px through the heat map's back to the dot."""
    image = np.zeros((300, 400, 3), np.uint8)
    blob(image, 210.3, 130.6, 0, 4, 255)
    crop = crop_square(np.array([130, 60, 270, 200, 1], np.float32))
    centre = middle(cut(image, crop))
    back = to_image(((centre + 0.5) / 4 - 0.5)[None].astype(np.float32), crop)[0]
    np.testing.assert_allclose(back, (210.3, 130.6), atol=1)
    assert crop == Square(200, pytest.approx(130 - 0.12 * 140), pytest.approx(200 * 280 / 195))


def test_a_crop_beyond_the_image_is_black_there() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    crop = cut(image, Square(0, 0, 128))
    assert crop[:120, :120].max() == 0
    assert crop[140:, 140:].min() == 200
