"""Only the wanted part is computed, and it is equal to that part of the whole."""

import pytest
import torch
from torch import Tensor

from lawdnet.face.geometry import stage_size
from lawdnet.inference.fast import MouthGenerator
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.parts import Box

HIDDEN = {32: Box(17, 45, 4, 34), 64: Box(30, 98, 8, 72), 160: Box(75, 240, 17, 187), 256: Box(128, 380, 30, 290)}


def network(dtype: torch.dtype, layout: str = "correct") -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=7, base_channels=4, warp_grid=12, warp_layout=layout))
    torch.nn.init.normal_(generator.warp.similarity.weight, std=0.1)
    return generator.to(dtype).eval().requires_grad_(False)


def inputs(mouth_px: int, dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    height, width = stage_size(mouth_px)
    source, reference = torch.rand(batch, 3, height, width), torch.rand(15, height, width)
    rows, columns = HIDDEN[mouth_px].slices
    source[:, :, rows, columns] = 0
    return source.to(dtype), reference.to(dtype), torch.randn(batch, 7, 5).to(dtype)


def boxes(mouth_px: int) -> list[Box]:
    height, width = stage_size(mouth_px)
    hidden = HIDDEN[mouth_px]
    inner = Box(hidden.top + 5, hidden.bottom - 6, hidden.left + 7, hidden.right - 3)
    return [hidden, inner, Box(0, height, 0, width), Box(height - 9, height, 0, 11), Box(0, 1, width - 1, width)]


@pytest.mark.parametrize("mouth_px", [32, 64, 160])
@pytest.mark.parametrize("number", range(5))
def test_a_part_equals_that_of_the_whole(mouth_px: int, number: int) -> None:
    box = boxes(mouth_px)[number]
    generator = network(torch.float64)
    source, reference, audio = inputs(mouth_px, torch.float64)
    fast = MouthGenerator(generator, stage_size(mouth_px), box, HIDDEN[mouth_px])
    references = fast.references(reference)
    sources = fast.sources(source, references)
    made = fast.mouths(references, sources, audio)
    rows, columns = fast.box.slices
    whole = generator(source, reference.expand(2, -1, -1, -1), audio)
    torch.testing.assert_close(made, whole[:, :, rows, columns], rtol=0, atol=1e-10)
    assert box.within(fast.box) == box
    again = fast.mouths(references, fast.sources(source, references, sources.image_BC86), audio)
    assert torch.equal(again, made) or (again - made).abs().max() < 1e-10


@pytest.mark.parametrize("layout", ["correct", "lawdnet2024"])
def test_single_precision_agrees_to_a_hundred_thousandth(layout: str) -> None:
    generator = network(torch.float32, layout)
    source, reference, audio = inputs(256, torch.float32)
    fast = MouthGenerator(generator, stage_size(256), HIDDEN[256], HIDDEN[256])
    references = fast.references(reference)
    made = fast.mouths(references, fast.sources(source, references), audio)
    rows, columns = fast.box.slices
    whole = generator(source, reference.expand(2, -1, -1, -1), audio)
    assert (made - whole[:, :, rows, columns]).abs().max() < 1e-5
    assert made.std() > 0.01


def test_the_reach_is_neither_too_small_nor_the_whole() -> None:
    """A source px that the part reads changes it; one outside its reach is not read once the features are known."""
    generator = network(torch.float64)
    source, reference, audio = inputs(160, torch.float64, 1)
    box = Box(100, 120, 60, 80)
    fast = MouthGenerator(generator, stage_size(160), box, Box(0, 0, 0, 0))
    references = fast.references(reference)
    known = fast.sources(source, references)
    made = fast.mouths(references, known, audio)
    near, far = source.clone(), source.clone()
    near[:, :, 96, 70] += 1
    far[:, :, 60, 70] += 1
    changed = [
        fast.mouths(references, fast.sources(image, references, known.image_BC86), audio) for image in (near, far)
    ]
    assert not torch.equal(changed[0], made)
    assert torch.equal(changed[1], made)


def test_the_audio_and_every_reference_count() -> None:
    fast = MouthGenerator(network(torch.float32), stage_size(64), HIDDEN[64], HIDDEN[64])
    source, reference, audio = inputs(64, torch.float32)

    def made(reference_15HW: Tensor, audio_BC5: Tensor) -> Tensor:
        references = fast.references(reference_15HW)
        return fast.mouths(references, fast.sources(source, references), audio_BC5)

    usual = made(reference, audio)
    assert not torch.equal(made(reference, -audio), usual)
    for channel in range(0, 15, 3):
        other = reference.clone()
        other[channel] = 0
        assert not torch.equal(made(other, audio), usual)
