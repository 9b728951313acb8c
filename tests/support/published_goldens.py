"""Values computed with the published code, and the rule by which its parameters and inputs were filled."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
needs_goldens = pytest.mark.skipif(
    not (REFERENCE / "golden.npz").is_file(), reason="golden.npz is not next to the repository"
)


def published_state(network: str) -> dict[str, Tensor]:
    """Return the filled state of `generator`, `discriminator`, `syncnet` or `syncnet_v2` under published names."""
    return {
        name: _fill(name, shape, index) for index, (name, shape) in enumerate(sorted(published_shapes(network).items()))
    }


@cache
def published_shapes(network: str) -> dict[str, tuple[int, ...]]:
    keys = json.loads((REFERENCE / "state_dict_keys.json").read_text())
    return {name: tuple(shape) for name, shape in keys[network]}


def image(*shape: int) -> Tensor:
    """Return values in [0, 1)."""
    return _hash(math.prod(shape), 1001).view(shape).float()


def audio(*shape: int) -> Tensor:
    """Return values in [-1, 1)."""
    return (2 * _hash(math.prod(shape), 2001) - 1).view(shape).float()


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.load(REFERENCE / "golden.npz")[name])


def _hash(count: int, seed: int) -> Tensor:
    noise = np.sin(12.9898 * np.arange(1, count + 1, dtype=np.float64) + 78.233 * seed) * 43758.5453
    return torch.from_numpy(noise - np.floor(noise))


def _fill(name: str, shape: tuple[int, ...], index: int) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if name.endswith("running_mean"):
        return torch.zeros(shape)
    if name.endswith("running_var"):
        return torch.ones(shape)
    fan = 10_000 if len(shape) == 1 else math.prod(shape[1:])
    return ((2 * _hash(math.prod(shape), index + 1) - 1) * math.sqrt(6 / fan)).view(shape).float()
