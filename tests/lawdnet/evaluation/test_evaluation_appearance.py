"""LPIPS, FID and CSIM equal what their packages compute; what is missing is named."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lawdnet.evaluation import appearance, face_embedding
from lawdnet.evaluation.appearance import Appearance, DlibSimilarity, Fid, Lpips
from lawdnet.evaluation.face_embedding import FaceEmbedder
from lawdnet.types import Float32, UInt8
from tests.support.drawn_datasets import WIDTH, drawn_segment
from tests.support.real_weights import real_weights

MIXED_6 = {"b": 128, "c": 160, "d": 160, "e": 192}
"""Channels of Inception's 7×7 blocks."""
POINTS = np.zeros((6, 68, 2), np.float32)
ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
DLIB = "dlib_face_recognition_resnet_model_v1.dat"


def usable(package: str) -> Any:
    """Import an optional package, or skip the test: torchvision fails to load beside another build of torch."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} cannot be used here: {error}")


def frames(seed: int, count: int = 6, width: int = 80) -> UInt8:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, width * 13 // 10, width, 3), np.uint8)


def test_lpips_is_what_the_package_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = usable("lpips")
    models = usable("torchvision.models")
    torch.manual_seed(0)
    alexnet = models.alexnet()
    torch.save(alexnet.state_dict(), tmp_path / ALEXNET)
    monkeypatch.setattr(lpips.pretrained_networks.tv, "alexnet", lambda **_: alexnet)
    package = lpips.LPIPS(net="alex", verbose=False)
    monkeypatch.undo()

    ours = Lpips(tmp_path)
    true, shown = frames(0, 20), frames(1, 20)
    ours.add("", true, shown, POINTS)
    inputs = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (true, shown)]
    with torch.inference_mode():
        expected = float(package(*inputs).mean())
    assert ours.result("") == pytest.approx(expected, rel=1e-4)
    assert expected > 0
    ours.add("baseline_", true, true, POINTS)
    assert ours.result("baseline_") == 0
    assert ours.result("truth_") is None


def test_another_network_is_refused_as_alexnet(tmp_path: Path) -> None:
    usable("lpips")
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / ALEXNET)
    with pytest.raises(ValueError, match="not torchvision's AlexNet"):
        Lpips(tmp_path)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published file's form."""
    module = usable("pytorch_fid.inception")
    models = usable("torchvision.models")
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("inception")
    net = models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for block, made in {
        "Mixed_5b": module.FIDInceptionA(192, pool_features=32),
        "Mixed_5c": module.FIDInceptionA(256, pool_features=64),
        "Mixed_5d": module.FIDInceptionA(288, pool_features=64),
        **{
            f"Mixed_6{b}": module.FIDInceptionC(768, channels_7x7=n)
            for b, n in zip("bcde", (128, 160, 160, 192), strict=True)
        },
        "Mixed_7b": module.FIDInceptionE_1(1280),
        "Mixed_7c": module.FIDInceptionE_2(2048),
    }.items():
        setattr(net, block, made)
    torch.save(net.state_dict(), folder / INCEPTION)
    return folder


def test_fid_is_what_the_package_computes(inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = usable("pytorch_fid.fid_score")
    module = usable("pytorch_fid.inception")
    sets = [frames(seed, 70) for seed in (0, 1)]
    for name, images in zip(("true", "shown"), sets, strict=True):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            cv2.imwrite(str(tmp_path / name / f"{index:03d}.png"), image[..., ::-1])
    state = torch.load(inception / INCEPTION, weights_only=True)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: state)
    try:
        paths = [str(tmp_path / name) for name in ("true", "shown")]
        expected = score.calculate_fid_given_paths(paths, 10, "cpu", 64, num_workers=0)
    except TypeError as error:
        pytest.skip(f"pytorch-fid does not fit the installed scipy: {error}")
    ours = Fid(inception, dims=64)
    assert module.load_state_dict_from_url is not appearance.torch.load
    for part in range(0, 70, 35):
        ours.add("", sets[0][part : part + 35], sets[1][part : part + 35], POINTS)
    assert ours.result("") == pytest.approx(float(expected), rel=1e-3)
    assert ours.result("baseline_") is None


def test_the_package_downloads_nothing(inception: Path) -> None:
    module = usable("pytorch_fid.inception")
    before = module.load_state_dict_from_url
    assert Fid(inception).features(frames(0, 2)).shape == (2, 2048)
    assert module.load_state_dict_from_url is before
    torch.save({}, inception / "broken.pth")
    with pytest.raises(ValueError, match="not the weights of pytorch-fid's Inception"):
        appearance.open_inception(inception / "broken.pth")


class FakeDlib:
    """The functions of dlib that are used: the embedding of a chip is its mean colour."""

    def __init__(self) -> None:
        self.shapes: list[tuple[Any, Any]] = []

    class face_recognition_model_v1:
        def __init__(self, path: str) -> None:
            assert path.endswith(DLIB)

        def compute_face_descriptor(self, chips: list[UInt8]) -> list[Float32]:
            return [np.append(chip.mean((0, 1)), 1.0) for chip in chips]

    point = staticmethod(lambda x, y: (x, y))
    rectangle = staticmethod(lambda *corners: corners)

    def full_object_detection(self, box: Any, points: Any) -> Any:
        assert len(points) == 68
        self.shapes.append((box, points))
        return box

    def get_face_chip(self, image: UInt8, box: Any, size: int, margin: float) -> UInt8:
        assert (size, margin) == (150, 0.25)
        x0, y0, x1, y1 = box
        return image[y0:y1, x0:x1]


def test_csim_is_the_cosine_of_embeddings_cut_out_at_the_true_landmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (appearance, face_embedding):
        monkeypatch.setattr(module, "need_package", lambda *_: None)
    monkeypatch.setitem(__import__("sys").modules, "dlib", FakeDlib())
    (tmp_path / DLIB).write_bytes(b"stands for the network")
    ours = DlibSimilarity(tmp_path)
    points = np.tile(np.linspace(10, 70, 68, dtype=np.float32)[:, None], (3, 1, 2))
    red, green = np.zeros((2, 3, 104, 80, 3), np.uint8)
    red[:, 10:70, 10:70, 0] = 200
    green[:, 10:70, 10:70, 1] = 200
    ours.add("", red, green, points)
    ours.add("baseline_", red, red, points)
    assert ours.result("baseline_") == pytest.approx(1)
    assert ours.result("") == pytest.approx(1 / (200**2 + 1), rel=1e-6)


def test_dlibs_embedding_is_dlibs(monkeypatch: pytest.MonkeyPatch) -> None:
    dlib, folder = usable("dlib"), real_weights("dlib_face")
    segment = drawn_segment("val", 1, frames=63)
    crop = cv2.cvtColor(cv2.imdecode(np.frombuffer(segment.frames_jpeg[0], np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert crop.shape[1] == WIDTH
    points = segment.landmarks_T68x2[0]
    shape = dlib.full_object_detection(
        dlib.rectangle(*(int(v) for v in np.rint([*points.min(0), *points.max(0)]))),
        [dlib.point(int(x), int(y)) for x, y in np.rint(points)],
    )
    network = dlib.face_recognition_model_v1(str(folder / DLIB))
    expected = np.array(network.compute_face_descriptor(np.ascontiguousarray(crop), shape))
    np.testing.assert_allclose(FaceEmbedder.find(folder).embed(crop[None], points[None])[0], expected, atol=1e-6)


@pytest.mark.parametrize("content", [b"a file of another network" * 99, b"\1\4net_\1"])
def test_a_swapped_or_truncated_embedding_is_named(tmp_path: Path, content: bytes) -> None:
    usable("dlib")
    (tmp_path / DLIB).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{DLIB}: not dlib's face embedding"):
        FaceEmbedder.find(tmp_path)
    assert "csim_dlib" in Appearance.open(tmp_path).missing


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "lpips" else object())
    found = Appearance.open(tmp_path)
    assert found.metrics == []
    assert "the package lpips is not installed" in found.missing["lpips"]
    assert ".[evaluation]" in found.missing["lpips"]
    assert found.missing["fid"] == f"{INCEPTION} is not on this machine; fetch it with: lawdnet weights inception_fid"
    assert found.missing["csim_dlib"].startswith(f"{DLIB} is not on this machine")
    assert found.results() == {}
