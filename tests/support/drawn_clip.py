"""One short drawn clip under many names: what builds are tested on."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

SECONDS = 3.0


def copy(drawn: Path, to: Path, *, csv: bool = True) -> Path:
    """The clip under another name, and with other bytes: an MP4 box that players skip says the name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    name = str(to.name).encode()
    to.write_bytes(drawn.read_bytes() + struct.pack(">I4s", 8 + len(name), b"free") + name)
    if csv:
        shutil.copy(drawn.with_suffix(".csv"), to.with_suffix(".csv"))
    return to


def copies(drawn: Path, folder: Path, names: Iterable[str], *, csv: bool = True) -> Path:
    """Fill a folder with the clip under several names, and return it."""
    for name in names:
        copy(drawn, folder / name, csv=csv)
    return folder
