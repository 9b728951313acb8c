"""The published weights of networks (`TABLE`): where they are kept, and how they get there.

Files are searched in `--weights-dir`, in the folder that the environment variable LAWDNET_WEIGHTS names, and in the
cache. One that is in none of them is fetched into the cache when a command needs it, unless LAWDNET_OFFLINE is set.
Both may also be s3:// or gs:// URIs, from which published files are fetched first.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lawdnet.fetch import Bucket, FetchError, Source
from lawdnet.install import install_hint
from lawdnet.storage import Location, files_sha256, is_remote
from lawdnet.weights_table import TABLE, Weights

log = logging.getLogger(__name__)

WEIGHTS_ENV = "LAWDNET_WEIGHTS"
OFFLINE_ENV = "LAWDNET_OFFLINE"
NOT_WEIGHTS = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")
"""How files begin that are the page about the weights instead of the weights, in lower case."""


def cache_folder() -> Path:
    """Return the folder where fetched weights are kept: `lawdnet` in XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lawdnet"


def weights_folders(weights_dir: Location | None = None) -> list[Path]:
    """Return the folders to search, in order: the argument, the environment variable, the user's cache."""
    given = [str(weights_dir or ""), os.environ.get(WEIGHTS_ENV)]
    folders = [Path(folder).expanduser() for folder in given if folder and "://" not in folder]
    return list(dict.fromkeys([*folders, cache_folder()]))


def published(name: str) -> Weights:
    """Return the entry of `TABLE` with this name or file name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if entry := _known(name):
        return entry
    raise ValueError(f"weights: unknown {name!r}; choose from {', '.join(entry.name for entry in TABLE)}")


def _known(name: str) -> Weights | None:
    return next((entry for entry in TABLE if name in (entry.name, entry.file)), None)


def find_local(file: str, weights_dir: Location | None = None) -> Path | None:
    """Return the first file (or folder) of that name in `weights_folders`, or None; an absolute path is itself.

    A published file that is in none of them is fetched from `weights_dir` if that is a URI.

    Raises:
        ValueError: it does not hold weights, or it is in the cache and not the published file.
    """
    paths = (folder / Path(file).expanduser() for folder in weights_folders(weights_dir))
    path = next((path for path in paths if path.exists()), None)
    entry = _known(file)
    if path:
        check(path, entry, is_ours=path.parent == cache_folder())
    elif entry and weights_dir and is_remote(weights_dir):
        with suppress(FetchError):
            return fetch(entry, sources=[Bucket(str(weights_dir), entry.file)])
    return path


def find_weights(file: str, weights_dir: Location | None = None) -> Path:
    """Return a weights file (or folder); fetches it if it is in `TABLE` and in none of `weights_folders`.

    Args:
        file: file or folder name as published, or an absolute path.
        weights_dir: the folder or URI to search first.

    Raises:
        ValueError: as `find_local`, or the file is neither found nor fetched.
    """
    if path := find_local(file, weights_dir):
        return path
    remote = [weights_dir] if weights_dir and is_remote(weights_dir) else []
    searched = ", ".join(str(folder) for folder in [*remote, *weights_folders(weights_dir)])
    missing = f"{file}: not found in {searched} (set --weights-dir or {WEIGHTS_ENV})"
    entry = _known(file)
    if entry is None:
        raise ValueError(missing)
    try:
        return fetch(entry)
    except FetchError as error:
        advice = f"run on a machine with internet: lawdnet weights {entry.name}"
        raise ValueError(f"{missing}, and {error}; {advice}") from error


def check(path: Path, entry: Weights | None, *, is_ours: bool) -> None:
    """Check that a file holds weights.

    Args:
        path: the file; a folder is not looked into.
        entry: what is published under its name.
        is_ours: whether it was fetched, and so has to be the published file; a user's own may be another version.

    Raises:
        ValueError: the file is empty, a web page, or not the published one.
    """
    if path.is_dir():
        return
    advice = "delete it" + (f" and run: lawdnet weights {entry.name}" if entry else "")
    with path.open("rb") as file:
        begin = file.read(64).lstrip().lower()
    if not begin or begin.startswith(NOT_WEIGHTS):
        what = "a web page, or a pointer to the file, instead of the weights" if begin else "empty"
        raise ValueError(f"{path}: {what}; {advice}")
    if entry and is_ours:
        size, sha256, expected = path.stat().st_size, files_sha256([path]), entry.sha256 or _recorded(path)
        if size != (entry.size or size) or not sha256.startswith(expected):
            raise ValueError(
                f"{path}: not the published file: {size} bytes with SHA-256 {sha256}, expected "
                f"{entry.size or size} bytes with {expected}; {advice}"
            )


def fetch(entry: Weights, folder: Path | None = None, sources: Sequence[Source] | None = None) -> Path:
    """Fetch weights into a folder (the cache if None), unless they are there; other processes wait meanwhile.

    A damaged file is replaced. Without `sources`, LAWDNET_WEIGHTS is asked if it is a URI, then the entry's own.

    Raises:
        FetchError: no source gave them; the message says why, in one line.
    """
    path = (folder or cache_folder()) / entry.file
    unasked = entry.sources[:1] if sources is None and os.environ.get(OFFLINE_ENV) else ()
    sources = tuple(_sources(entry) if sources is None else sources)
    if (path, sources) in _failed:
        raise FetchError(_failed[path, sources])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"{path.parent}: cannot be created ({error.strerror}); name a folder with {WEIGHTS_ENV}"
        ) from error
    with _locked(path):
        if path.exists() and _is_good(path, entry):
            return path
        reasons = []
        for source in sources:
            try:
                _fetch_from(source, entry, path)
            except (FetchError, ValueError) as error:
                reasons.append(f"{source} did not give it ({error})")
            else:
                return path
        reasons += [f"{OFFLINE_ENV} is set, so {source} was not asked" for source in unasked]
    _failed[path, sources] = ", ".join(reasons)
    raise FetchError(_failed[path, sources])


def _is_good(path: Path, entry: Weights) -> bool:
    try:
        check(path, entry, is_ours=True)
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


_failed: dict[tuple[Path, tuple[Source, ...]], str] = {}
"""What could not be fetched, so that a build of many videos does not try again for each."""


def _sources(entry: Weights) -> list[Source]:
    bucket = os.environ.get(WEIGHTS_ENV, "")
    own: list[Source] = [Bucket(bucket, entry.file)] if "://" in bucket else []
    return own if os.environ.get(OFFLINE_ENV) else [*own, *entry.sources]


def _fetch_from(source: Source, entry: Weights, path: Path) -> None:
    size = f" ({entry.size / 1e6:.1f} MB)" if entry.size else ""
    log.warning("fetching %s%s from %s into %s: %s", entry.file, size, source, path.parent, entry.purpose)
    temporary = path.with_name(f".{path.name}.fetched")
    source.fetch(temporary)
    if temporary.is_file():
        try:
            check(temporary, entry, is_ours=True)
        except ValueError:
            temporary.unlink()
            raise
        _record(path).write_text(f"{files_sha256([temporary])}  {path.name}\n", encoding="utf-8")
    temporary.replace(path)


def _record(path: Path) -> Path:
    """The file beside fetched weights that holds their hash, as `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    try:
        return _record(path).read_text(encoding="utf-8").split()[0]
    except (FileNotFoundError, IndexError):
        return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file to fetch; it ends with the process that holds it."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def need_package(package: str, extra: str) -> None:
    """Check that an optional package is installed, without importing it.

    Raises:
        ValueError: it is not installed; the message says how to install the extra that includes it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{extra}: the package {package} is not installed; {install_hint(extra)}")
