"""Small media files whose pictures tell their own index and whose sound is known sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.media import Media


@pytest.fixture
def media(tmp_path: Path) -> Media:
    return Media(tmp_path)
