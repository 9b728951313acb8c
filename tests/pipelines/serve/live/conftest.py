"""One small network and one drawn head for all live tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from tests.support.live_heads import make_engine, make_template
from tests.support.live_host import eventually, live_threads


@pytest.fixture(scope="session")
def live_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def live_template(live_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("head"), live_engine)


@pytest.fixture
def frees_everything() -> Iterator[None]:
    """Afterwards no thread of a session is left."""
    yield
    assert eventually(lambda: not live_threads()), live_threads()
