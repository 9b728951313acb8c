"""What trained networks need besides this package: weights files, which are large, and optional packages."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from lawdnet.install import install_hint

WEIGHTS_ENV = "LAWDNET_WEIGHTS"
CACHE = Path("~/.cache/lawdnet")


def weights_folders(weights_dir: Path | None = None) -> list[Path]:
    """Return the folders to search, in order: the argument, the environment variable, the user's cache."""
    given = [weights_dir, os.environ.get(WEIGHTS_ENV), CACHE]
    folders = [Path(folder).expanduser() for folder in given if folder]
    return list(dict.fromkeys(folders))


def find_weights(name: str, weights_dir: Path | None = None, *, hint: str) -> Path:
    """Return the first file (or folder) of that name in `weights_folders`; an absolute path is taken as it is.

    Args:
        name: file or folder name as published.
        weights_dir: the folder to search first.
        hint: where the file is published; it ends the error message.

    Raises:
        ValueError: no folder has it; the message names the file, every folder and the hint.
    """
    folders = weights_folders(weights_dir)
    for path in (folder / Path(name).expanduser() for folder in folders):
        if path.exists():
            return path
    searched = ", ".join(str(folder) for folder in folders)
    raise ValueError(f"{name}: not found in {searched} (set --weights-dir or {WEIGHTS_ENV}); {hint}")


def need_package(package: str, extra: str) -> None:
    """Check that an optional package is installed, without importing it.

    Raises:
        ValueError: it is not installed; the message says how to install the extra that includes it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{extra}: the package {package} is not installed; {install_hint(extra)}")
