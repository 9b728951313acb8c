"""Every network gives the published code's numbers from the published code's parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lawdnet.models.generator import Generator
from lawdnet.models.legacy import discriminator_from_legacy, generator_from_legacy, syncnet_from_legacy
from lawdnet.models.syncnet_v2 import SyncNetV2
from tests.support.published_goldens import audio, golden, image, needs_goldens, published_state

pytestmark = needs_goldens


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def generator() -> Generator:
    return generator_from_legacy(published_state("generator"))


@pytest.fixture(scope="module")
def judge() -> SyncNetV2:
    network = SyncNetV2()
    network.load_state_dict(published_state("syncnet_v2"))
    return network.eval()


def assert_golden(name: str, got: Tensor) -> None:
    torch.testing.assert_close(got, golden(name), atol=1e-4, rtol=0)


def test_generator(generator: Generator) -> None:
    assert_golden("generator_64", generator(image(2, 3, 104, 80), image(2, 15, 104, 80), audio(2, 29, 5)))


def test_warp(generator: Generator) -> None:
    warped = generator.warp(2 * image(2, 256, 26, 20) - 1, audio(2, 256))
    assert_golden("warp_26x20", warped[:, ::16])


def test_attention(generator: Generator) -> None:
    assert_golden("cross_attention", generator.attention(image(2, 128, 8, 6), audio(2, 128, 2)))


def test_discriminator() -> None:
    network = discriminator_from_legacy(published_state("discriminator"))
    assert_golden("discriminator_64", network(image(2, 3, 104, 80)))


def test_syncnet() -> None:
    network = syncnet_from_legacy(published_state("syncnet"))
    assert_golden("syncnet_256", network(image(1, 15, 256, 256), audio(1, 29, 9)))


def test_syncnet_v2(judge: SyncNetV2) -> None:
    assert_golden("syncnet_v2_lip", judge.embed_lip(255 * image(1, 3, 5, 224, 224)))
    assert_golden("syncnet_v2_audio", judge.embed_audio(10 * audio(1, 1, 13, 20)))
