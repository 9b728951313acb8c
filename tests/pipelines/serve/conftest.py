"""One small network and one drawn head for all live tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from tests.support.live_heads import make_engine, make_template

pytest.importorskip("fastapi", reason="needs fastapi: pip install -e '.[serve]'")


@pytest.fixture(scope="session")
def live_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def live_template(live_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("head"), live_engine)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("live-")]


@pytest.fixture
def frees_everything() -> Iterator[None]:
    """Afterwards no thread of a session is left."""
    yield
    assert eventually(lambda: not live_threads()), live_threads()
