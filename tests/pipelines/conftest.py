"""One short drawn clip, made once, from which the tests make good and bad inputs."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from lawdnet.synthetic import write_talking_head

SECONDS = 3.0


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good video of 75 frames with its CSV."""
    path = tmp_path_factory.mktemp("drawn") / "good.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=SECONDS, size=(160, 128))
    return path


def copy(drawn: Path, to: Path, *, csv: bool = True) -> Path:
    """The clip under another name, and with other bytes: an MP4 box that players skip says the name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    name = str(to.name).encode()
    to.write_bytes(drawn.read_bytes() + struct.pack(">I4s", 8 + len(name), b"free") + name)
    if csv:
        shutil.copy(drawn.with_suffix(".csv"), to.with_suffix(".csv"))
    return to
