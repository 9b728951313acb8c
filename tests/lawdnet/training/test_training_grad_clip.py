import math

import pytest
import torch
from torch import nn

from lawdnet.training.grad_clip import MEMORY, GradClipper


def gradient(*values: float) -> list[nn.Parameter]:
    """Parameters whose gradient has these values, and one that has none."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(len(values) + 1)]
    for parameter, value in zip(parameters, values, strict=False):
        parameter.grad = torch.tensor([value])
    return parameters


def length(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


def clip(clipper: GradClipper, name: str, parameters: list[nn.Parameter]) -> float:
    """Clip, and count what was found, as a step does."""
    norm = float(clipper(name, parameters))
    clipper.update(name, norm)
    return norm


def test_a_spike_is_cut_to_twice_the_mean_and_keeps_its_direction() -> None:
    clipper = GradClipper(2.0)
    for _ in range(5):
        usual = gradient(3.0, 4.0)
        assert clip(clipper, "g", usual) == pytest.approx(5)
        assert length(usual) == 5, "what is usual is left alone, whatever its length"
    spike = gradient(300.0, 400.0)
    assert clip(clipper, "g", spike) == pytest.approx(500), "the norm as it was"
    assert [float(p.grad) for p in spike[:2] if p.grad is not None] == pytest.approx([6, 8])
    assert clipper.means["g"] == pytest.approx((5 * 5 + 10) / 6), "what was cut off is not remembered"


def test_each_network_has_its_own_mean() -> None:
    clipper = GradClipper(2.0)
    clip(clipper, "small", gradient(0.01))
    large = gradient(100.0)
    clip(clipper, "large", large)
    assert length(large) == 100


def test_the_mean_follows_a_change() -> None:
    clipper = GradClipper(2.0)
    for value in [1.0] * 5 + [10.0] * 10 * MEMORY:
        clip(clipper, "g", gradient(value))
    assert clipper.means["g"] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_told_and_forgotten(bad: float) -> None:
    clipper = GradClipper(2.0)
    clip(clipper, "g", gradient(1.0))
    before = clipper.state_dict()
    assert not math.isfinite(clip(clipper, "g", gradient(bad)))
    assert clipper.state_dict() == before


def test_without_a_limit_nothing_is_cut() -> None:
    clipper, spike = GradClipper(0), gradient(1e6)
    clip(clipper, "g", gradient(1.0))
    clip(clipper, "g", spike)
    assert length(spike) == 1e6


def test_it_goes_on_where_it_stopped() -> None:
    first, again = GradClipper(2.0), GradClipper(2.0)
    for value in (1.0, 2.0, 3.0):
        clip(first, "g", gradient(value))
    again.load_state_dict(first.state_dict())
    clip(first, "g", gradient(50.0))
    clip(again, "g", gradient(50.0))
    assert again.state_dict() == first.state_dict()
