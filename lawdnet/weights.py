"""What trained networks need beside this package: files, which are large, and optional packages."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from lawdnet.install import install_hint

WEIGHTS_ENV = "LAWDNET_WEIGHTS"
CACHE = Path("~/.cache/lawdnet")


def weights_folders(weights_dir: Path | None = None) -> list[Path]:
    """The folders looked in, first to last: the argument, the environment variable, the user's cache."""
    given = [weights_dir, os.environ.get(WEIGHTS_ENV), CACHE]
    folders = [Path(folder).expanduser() for folder in given if folder]
    return list(dict.fromkeys(folders))


def find_weights(name: str, weights_dir: Path | None = None, *, hint: str) -> Path:
    """The first file (or folder) of that name in `weights_folders`; an absolute path stands for itself.

    Args:
        name: file or folder name as it is published.
        weights_dir: looked in first.
        hint: where it is published; the end of the error message.

    Raises:
        ValueError: it is in none of them; names the file, every folder, and the hint.
    """
    folders = weights_folders(weights_dir)
    for path in (folder / Path(name).expanduser() for folder in folders):
        if path.exists():
            return path
    looked_in = ", ".join(str(folder) for folder in folders)
    raise ValueError(f"{name}: not found in {looked_in} (--weights-dir or {WEIGHTS_ENV} name a folder); {hint}")


def need_package(package: str, extra: str) -> None:
    """Check that an optional package is installed, without importing it.

    Raises:
        ValueError: it is not; names the extra of this package that brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{extra}: the package {package} is not installed; {install_hint(extra)}")
