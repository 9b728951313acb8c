"""Tests here take a device: the CPU in every run, so that they are known to work, and CUDA with `-m gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

SLOW_ON_A_CPU = {"fp16", "bf16", "tf32", "clip_96"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a CPU, one number format and the small stages are enough in every run."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if (
            callspec
            and callspec.params.get("device") == "cpu"
            and SLOW_ON_A_CPU & set(map(str, callspec.params.values()))
        ):
            item.add_marker(pytest.mark.slow)


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device under test."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU on this machine")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, matmul.fp32_precision, cudnn.conv.fp32_precision
    yield torch.device(request.param)
    cudnn.benchmark, matmul.fp32_precision, cudnn.conv.fp32_precision = before
