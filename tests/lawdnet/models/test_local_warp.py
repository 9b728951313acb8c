"""The warp: identity, meaning of its numbers, gradients, precision, chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.published import PublishedWarp
from lawdnet.models import warp as warp_module
from lawdnet.models.warp import LocalAffineWarp, average_move, cell_centres


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_parameters(points: int, maps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    parameters = torch.rand(7, points, maps, dtype=dtype, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    parameters[2] = parameters[2].abs() + 0.1
    return parameters


def small_warp(layout: str = "correct", *, moving: bool = True) -> LocalAffineWarp:
    warp = LocalAffineWarp(channels=6, code_dim=8, key_points=3, grid=12, layout=layout)
    if moving:
        torch.nn.init.normal_(warp.similarity.weight, std=0.3)
    return warp


def direct_move(parameters_7NM: Tensor, grid: int) -> Tensor:
    """The formula word for word, everything at once."""
    x, y = cell_centres(grid, grid, parameters_7NM)
    key_x, key_y, radius, scale, angle, shift_x, shift_y = parameters_7NM[..., None, None]
    from_x, from_y = x - key_x, y - key_y
    effect = torch.exp(-torch.hypot(from_x, from_y) / radius)
    turn, factor, weight = math.pi * angle * effect, 1 + scale * effect, torch.softmax(effect, dim=0)
    place_x = factor * (from_x * turn.cos() + from_y * turn.sin()) + shift_x * effect + key_x
    place_y = factor * (from_y * turn.cos() - from_x * turn.sin()) + shift_y * effect + key_y
    return torch.stack(((weight * place_x).sum(0) - x, (weight * place_y).sum(0) - y), dim=1)


@pytest.mark.parametrize(("height", "width"), [(13, 10), (26, 20), (104, 80)])
def test_starts_as_the_identity(height: int, width: int) -> None:
    feature = torch.randn(2, 6, height, width)
    warped = small_warp(moving=False)(feature, torch.randn(2, 8))
    torch.testing.assert_close(warped, feature, atol=1e-4, rtol=0)
    smooth = cell_centres(height, width, feature)[:1].expand(2, 6, -1, -1)
    torch.testing.assert_close(small_warp(moving=False)(smooth, torch.randn(2, 8)), smooth, atol=1e-5, rtol=0)


def test_moves_follow_the_formula() -> None:
    parameters = random_parameters(points=4, maps=5)
    torch.testing.assert_close(average_move(parameters, 9), direct_move(parameters, 9))


def test_gradient_is_that_of_finite_differences() -> None:
    parameters = random_parameters(points=3, maps=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: average_move(p, 5), (parameters,))


def test_gradient_is_that_of_autograd_also_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (random_parameters(points=5, maps=7).requires_grad_() for _ in range(2))
    upstream = torch.randn(7, 2, 10, 10, dtype=torch.float64)
    direct_move(theirs, 10).backward(upstream)
    monkeypatch.setattr(warp_module, "CHUNK_CELLS_CPU", 3 * 100)
    average_move(ours, 10).backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


def results(warp: LocalAffineWarp) -> list[Tensor]:
    """The warped feature and every gradient."""
    feature, code = torch.randn(2, 6, 13, 10, generator=torch.Generator().manual_seed(1)), torch.ones(2, 8)
    warp.zero_grad()
    warped = warp(feature.requires_grad_(), code.requires_grad_())
    warped.square().sum().backward()
    return [
        warped.detach(),
        *(tensor.grad for tensor in (feature, code, *warp.parameters()) if tensor.grad is not None),
    ]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_is_equal_in_both_directions_and_one_graph(backend: str) -> None:
    warp = small_warp()
    eager = results(warp)
    warp.compile(backend=backend, fullgraph=True)
    compiled = results(warp)
    assert len(compiled) == len(eager) == 11
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("layout", "size"), [("correct", (12, 12)), ("lawdnet2024", (26, 20))])
def test_benchmark_compares_with_the_same_function(layout: str, size: tuple[int, int]) -> None:
    """The published code resizes places where we resize moves: the same on the field's own grid."""
    theirs = PublishedWarp(6, 8, 3, 12, layout)
    ours = LocalAffineWarp(6, 8, 3, 12, layout)
    ours.load_state_dict(theirs.state_dict())
    feature, code = torch.randn(2, 6, *size), torch.randn(2, 8)
    torch.testing.assert_close(ours(feature, code), theirs(feature, code), atol=1e-4, rtol=0)


def test_whole_layer_passes_gradcheck() -> None:
    warp = LocalAffineWarp(channels=2, code_dim=3, key_points=2, grid=4, layout="correct").double()
    torch.nn.init.normal_(warp.similarity.weight, std=0.05)
    feature, code = torch.randn(1, 2, 5, 4, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(warp, (feature.requires_grad_(), code.requires_grad_()))


def test_a_key_point_on_a_cell_centre_with_the_least_radius_stays_finite() -> None:
    parameters = torch.zeros(7, 1, 1)
    parameters[2] = warp_module.MIN_RADIUS
    parameters.requires_grad_()
    move = average_move(parameters, 5)
    move.square().sum().backward()
    assert move.isfinite().all()
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()


def test_shift_samples_from_where_it_points() -> None:
    """x first, to the right: all points pull sampling one pixel to the right, so the image moves left."""
    warp = small_warp(moving=False)
    with torch.no_grad():
        warp.radius.bias.fill_(50.0)
        warp.key_points.weight.zero_()
        warp.key_points.bias.zero_()
        shift = warp.similarity.bias.view(3, 6, 4)[..., 2:]
        shift[..., 0] = math.atanh(2 / 20 / 0.9)
    feature = torch.zeros(1, 6, 26, 20)
    feature[:, :, 13, 12] = 1
    warped = warp(feature, torch.zeros(1, 8))
    assert warped[0, 0].argmax() == 13 * 20 + 11


def test_every_channel_is_warped_by_its_own_field() -> None:
    warp, feature, code = small_warp(), torch.randn(2, 6, 13, 10), torch.randn(2, 8)
    other = feature.clone()
    other[:, 2] += 1
    changed = (warp(other, code) - warp(feature, code)).abs().amax(dim=(0, 2, 3)) > 0
    assert changed.tolist() == [channel == 2 for channel in range(6)]


def test_published_layout_is_scrambled() -> None:
    smooth = cell_centres(26, 20, torch.zeros(()))[:1].expand(1, 6, -1, -1)
    assert (small_warp("lawdnet2024", moving=False)(smooth, torch.randn(1, 8)) - smooth).abs().mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_keep_exact_positions(dtype: torch.dtype) -> None:
    warp, feature, code = small_warp(), torch.randn(1, 6, 13, 10).to(dtype), torch.randn(1, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        warped = warp(feature, code)
    assert warped.dtype == dtype
    torch.testing.assert_close(warped, warp(feature.float(), code.float()).to(dtype))


def test_memory_layout_does_not_matter() -> None:
    warp, feature, code = small_warp(), torch.randn(2, 6, 13, 10), torch.randn(2, 8)
    torch.testing.assert_close(warp(feature.to(memory_format=torch.channels_last), code), warp(feature, code))
