"""One Ray for the whole session: starting it takes longer than most tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# a local cluster asks for a token where some earlier Ray has left one in the user's home
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)


# tiny networks gain nothing from threads, and lose much where another process wants the cores
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray on this machine with two CPUs; `pipelines.resources.cluster()` finds and uses it."""
    import ray

    from pipelines import resources

    with resources.cluster(num_cpus=2):
        assert ray.is_initialized()
        yield
