"""Published weights, for tests that need the real ones: no test fetches any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lawdnet.weights import published

FOLDERS = "LAWDNET_TEST_WEIGHTS"
"""Environment variable: a folder that `lawdnet weights NAME --weights-dir FOLDER` has filled."""
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def real_weights(name: str) -> Path:
    """The folder with these weights; skips the test where they are not."""
    entry = published(name)
    for folder in (os.environ.get(FOLDERS), SHARED / "weights"):
        if folder and (Path(folder) / entry.file).exists():
            return Path(folder)
    pytest.skip(f"needs {entry.file} in ../shared/weights or {FOLDERS} (lawdnet weights {name} --weights-dir …)")


def people(*names: str) -> list[Path]:
    """Clips of real people; skips the test where they are not."""
    found = [SHARED / "media" / "people" / f"{name}.mp4" for name in names]
    if not all(path.is_file() for path in found):
        pytest.skip("needs ../shared/media/people")
    return found
