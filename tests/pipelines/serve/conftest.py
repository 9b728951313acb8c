"""One small server for all tests that do not change how it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lawdnet.inference.engine import Engine
from tests.support.serving import Running, running, small_generator, until


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_generator(tmp_path_factory.mktemp("network") / "clip_96" / "epoch_0001")


@pytest.fixture(scope="session")
def engine(network: Path) -> Engine:
    return Engine(network, device="cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, engine: Engine, drawn: Path) -> Iterator[Running]:
    """A server with the template `anna`."""
    with running(tmp_path_factory.mktemp("server"), engine, posts_per_minute=1e6) as found:
        found.service.pin_template(drawn, name="anna")
        until(lambda: found.service.template("anna").state == "ready")
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found
