"""ArcFace from an ONNX file: what the network is given, and what files are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from lawdnet.evaluation.appearance import Appearance, ArcFaceSimilarity
from lawdnet.evaluation.arcface import FILE, SIDE, TEMPLATE, ArcFace, align
from lawdnet.synthetic import Pose, TalkingHead, make_identity

FLOAT = 1


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(number: int, content: bytes | int | str) -> bytes:
    """A field of a protobuf message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(part(1, size) for size in values.shape)
    return dims + part(2, FLOAT) + part(8, name) + part(9, values.astype("<f4").tobytes())


def port(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(part(1, part(1, size)) for size in shape)
    return part(1, name) + part(2, part(1, part(1, FLOAT) + part(2, dims)))


def node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(part(1, name) for name in inputs) + part(2, output) + part(4, kind)


def write_network(path: Path, weights: np.ndarray) -> None:
    """A linear layer on the whole image, in ONNX."""
    graph = part(
        1,
        node(
            "Flatten",
            [
                "image",
            ],
            "flat",
        ),
    ) + part(1, node("Gemm", ["flat", "weights"], "embedding"))
    graph += part(2, "net") + part(5, tensor("weights", weights))
    graph += part(11, port("image", (1, 3, SIDE, SIDE))) + part(12, port("embedding", (1, weights.shape[1])))
    path.write_bytes(part(1, 7) + part(7, graph) + part(8, part(1, "") + part(2, 11)))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, 8)).astype(np.float32) / 100


def face(identity: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return TalkingHead(make_identity(identity), (320, 256)).draw(Pose(roll=0.2), 0.3, 0.0)


def test_the_network_sees_rgb_in_minus_one_to_one(tmp_path: Path, weights: np.ndarray) -> None:
    write_network(tmp_path / FILE, weights)
    image, points = face()
    (found,) = ArcFace(tmp_path / FILE).embed(image[None], points[None])
    seen = align(image, points).transpose(2, 0, 1).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(found, seen.ravel() @ weights, atol=1e-3)


def test_the_five_points_come_to_lie_on_the_template() -> None:
    """Marks at the points of a turned, shifted and larger face."""
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    five = (TEMPLATE - 56) @ turn.T * 2.5 + (200, 220)
    points = np.zeros((68, 2), np.float32)
    points[36:42], points[42:48], points[30], points[48], points[54] = five
    image = np.zeros((480, 400, 3), np.uint8)
    for x, y in np.rint(five).astype(int):
        image[y - 4 : y + 5, x - 4 : x + 5] = 255
    aligned = align(image, points)
    assert aligned.shape == (SIDE, SIDE, 3)
    for x, y in TEMPLATE:
        box = aligned[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5, 0].astype(float)
        rows, columns = np.mgrid[-4:5, -4:5]
        assert box.sum() > 0
        assert abs((box * rows).sum() / box.sum() - (y - round(y))) < 0.5
        assert abs((box * columns).sum() / box.sum() - (x - round(x))) < 0.5


def test_csim_is_one_for_the_same_face_and_less_for_another(tmp_path: Path, weights: np.ndarray) -> None:
    write_network(tmp_path / FILE, weights)
    metric = ArcFaceSimilarity(tmp_path)
    (image, points), (other, _) = face(), face(4)
    metric.add("", image[None], image[None], points[None])
    metric.add("other_", image[None], other[None], points[None])
    assert metric.result("") == pytest.approx(1)
    assert metric.result("other_") < 0.99
    assert metric.result("none_") is None


@pytest.mark.parametrize("content", [b"not ONNX", struct.pack("<I", 7) * 50])
def test_another_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FILE}: not an ArcFace network in ONNX"):
        ArcFaceSimilarity(tmp_path)
    assert "\n" not in Appearance.open(tmp_path).missing["csim_arcface"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{FILE} is not on this machine; fetch it with: lawdnet weights arcface"):
        ArcFaceSimilarity(tmp_path)
