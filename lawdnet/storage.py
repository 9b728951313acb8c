"""Files on this machine, on S3 and on Google Cloud Storage, through one set of functions.

A local location is a plain `pathlib.Path`; a remote one is a `UPath`, which has the same methods. Credentials, regions
and endpoints come from the usual settings of AWS and Google Cloud (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, instance roles,
…).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from lawdnet import ranges
from lawdnet.footers import Footers
from lawdnet.install import install_hint
from lawdnet.types import Beat, no_beat

if TYPE_CHECKING:
    from fsspec.callbacks import Callback
    from upath import UPath

log = logging.getLogger(__name__)

Location: TypeAlias = "Path | UPath"

REQUESTS = 32
"""Number of small files requested concurrently: each costs little but the wait for a response."""
FOOTERS = Footers(12 << 20)
"""Of the Parquet files that this process has read; in memory they take eight times as many bytes."""
CHUNK = 1 << 20
"""Bytes read at a time for a checksum."""
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "memory": "s3"}
"""Protocol of a URI → the extra that installs its packages."""
RETRIES = {"mode": "standard", "total_max_attempts": 6}
"""How a request to S3 is retried after a throttling or failing server or a broken connection; the waits double, up to
20 s. s3fs itself resumes a response body that breaks off, and gcsfs retries on its own. Nothing else in this file
retries."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": RETRIES}}}
"""Protocol → options of its fsspec file system."""


def locate(path: str | Location) -> Location:
    """Return the location that a path or URI names; a local path becomes absolute.

    Args:
        path: a local path, or `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `memory://NAME` (in this process, for tests).

    Raises:
        ValueError: a URI with another protocol, or one that needs an extra which is not installed.
    """
    if not isinstance(path, str):
        return path.absolute()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path)
    if scheme is None:
        return Path(path).absolute()
    protocol = scheme[1].lower()
    if protocol not in EXTRAS:
        raise ValueError(f"{path}: {protocol}:// is not supported; give a local path, s3:// or gs://")
    try:
        from upath import UPath

        # without a listings cache, because files that another worker wrote must be seen
        remote = UPath(path, use_listings_cache=False, **OPTIONS.get(protocol, {}))
        assert remote.fs  # creates the file system now, so that a missing package is reported here
    except ImportError as error:
        hint = install_hint(EXTRAS[protocol])
        raise ValueError(f"{path}: {protocol}:// needs packages that are not installed; {hint}") from error
    return remote


def is_remote(path: Location) -> bool:
    """Whether a location is outside the file system of this machine."""
    return not isinstance(path, Path)


@contextmanager
def atomic(path: Location, *, beat: Beat = no_beat) -> Iterator[Path]:
    """Give a temporary local path that becomes `path` when the block succeeds, and is deleted when it fails.

    When the block ends, a local file is renamed and a remote one uploaded, so a reader sees the whole file or none. If
    the block writes nothing, no file appears.

    Args:
        path: the file to write; missing local folders are created.
        beat: called as the upload makes progress.
    """
    with ExitStack() as stack:
        if isinstance(path, Path):
            folder = path.parent
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lawdnet-")))
        temporary = folder / f".{path.name}.{uuid4().hex[:8]}.tmp"
        stack.callback(temporary.unlink, missing_ok=True)
        yield temporary
        if not temporary.exists():
            return
        if isinstance(path, Path):
            os.replace(temporary, path)
        else:
            path.fs.put_file(str(temporary), path.path, callback=_callback(beat))


def remove_temporaries(folder: Location) -> None:
    """Remove what a killed process left half written in a local folder; remote files appear whole or not at all."""
    if isinstance(folder, Path):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


@contextmanager
def local_copy(
    path: Location, companions: Collection[str] = (), *, most: int | None = None, beat: Beat = no_beat
) -> Iterator[Path]:
    """Give a local path to a file: the file itself, or a download of the same name that is deleted after the block.

    Args:
        path: the file to read.
        companions: suffixes such as `.csv`; files that differ from `path` only in these are downloaded too, if they
            exist.
        most: a remote file of more bytes is not downloaded: under its local name `lawdnet.ranges.open_binary` reads it
            in parts, and nothing else can.
        beat: called as the download makes progress.

    Raises:
        FileNotFoundError: a remote `path` does not exist.
    """
    if isinstance(path, Path):
        yield path
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lawdnet-"))
        copy = Path(folder) / path.name
        if most is not None and path.fs.info(path.path)["size"] > most:
            stack.enter_context(ranges.in_parts(path, copy))
        else:
            path.fs.get_file(path.path, str(copy), callback=_callback(beat))
        for companion in (path.with_suffix(suffix) for suffix in companions):
            local = copy.with_name(companion.name)
            try:
                path.fs.get_file(companion.path, str(local))
            except FileNotFoundError:
                local.unlink(missing_ok=True)
        yield copy


def _callback(beat: Beat) -> Callback:
    from fsspec.callbacks import Callback  # the extras of the remote protocols bring fsspec

    class Beats(Callback):
        def call(self, *_: Any, **__: Any) -> None:
            beat()

    return Beats()


def write_json(path: Location, content: Any) -> None:
    """Write a JSON file atomically, indented, in UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def read_json(path: Location) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        json.JSONDecodeError: the file is damaged.
    """
    return json.loads(path.read_bytes())


def parquet_file(path: Location) -> pq.ParquetFile:
    """Open a Parquet file; only the parts that are asked for are read, and its footer once, if it does not change.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated or not a Parquet file.
    """
    try:
        if isinstance(path, Path):
            name = f"{path} {_local_fingerprint(path.stat())}"
            file = pq.ParquetFile(path, metadata=FOOTERS.get(name))
        else:  # a cache would read 50 MB around each column
            remote = path.fs.open(path.path, "rb", cache_type="none")
            details = getattr(remote, "details", {})  # without a tag, as in memory, nothing tells of a change
            tagged = details.get("ETag") or details.get("etag")
            name = f"{path} {_remote_fingerprint(details)}" if tagged else ""
            # fetches neighbouring columns in one request
            file = pq.ParquetFile(remote, metadata=FOOTERS.get(name), pre_buffer=True)
    except ArrowInvalid as error:
        raise ValueError(f"{path}: damaged ({error}); make the dataset again") from None
    if name:
        FOOTERS.keep(name, file.metadata)
    return file


def sha256(path: Location, *, beat: Beat = no_beat) -> str:
    """Return the SHA-256 (hex) of a file's content, read in chunks; `beat` is called after each."""
    digest = hashlib.sha256()
    with ranges.open_binary(path) if isinstance(path, Path) else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            beat()
    return digest.hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Return one SHA-256 (hex) for the files that make up a model: a single file's own, or that of all their digests.

    Each file is read only once per process, unless its size or modification time changes.
    """
    digests = []
    for path in paths:
        status = path.stat()
        digests.append(_cached_sha256(path.resolve(), status.st_size, status.st_mtime_ns))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=64)
def _cached_sha256(path: Path, _size: int, _modified_ns: int) -> str:
    """Size and modification time only serve as keys of the cache."""
    return sha256(path)


def fingerprint(path: Location) -> str:
    """Return size and modification time of a file, or size and ETag if remote; "" if there is no such file."""
    if isinstance(path, Path):
        try:
            status = path.stat()
        except OSError:
            return ""
        return _local_fingerprint(status)
    try:
        info = path.fs.info(path.path)
    except (FileNotFoundError, PermissionError):
        return ""
    return _remote_fingerprint(info) if info["type"] == "file" else ""


def bytes_of(fingerprint: str) -> int:
    """Return the size of the file that a fingerprint was taken of; 0 if there was none."""
    return int(fingerprint.partition(" ")[0] or 0)


def fingerprints(path: Location, companions: Sequence[str]) -> list[str]:
    """Return the fingerprints of a file and of those that differ from it only in their suffix.

    A remote folder costs a single request.

    Args:
        path: the file.
        companions: suffixes such as `.csv`.

    Returns:
        One fingerprint for the file, then one for each suffix.
    """
    if not path.name:
        return [""] * (1 + len(companions))
    if isinstance(path, Path):
        return [fingerprint(path), *(fingerprint(path.with_suffix(suffix)) for suffix in companions)]
    try:
        found = path.fs.find(path.parent.path, prefix=path.stem + path.suffix[:1], detail=True)
    except (FileNotFoundError, PermissionError):
        found = {}
    known = {name: _remote_fingerprint(info) for name, info in found.items()}
    return [known.get(path.path, ""), *(known.get(path.with_suffix(suffix).path, "") for suffix in companions)]


def scan(folder: Location, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Find all files with certain suffixes in a folder and its subfolders; names that begin with a dot are skipped.

    Links to folders are followed, each folder once, except links to a parent of the searched folder. A remote folder
    costs one request per 1000 objects.

    Args:
        folder: where to search.
        suffixes: in lower case, with their dots; those of the files are compared in lower case.

    Yields:
        Path relative to `folder`, with slashes, and fingerprint ("" for a broken link). Those of one folder come one
        after the other; otherwise they are in no particular order.

    Raises:
        ValueError: a remote folder cannot be listed.
    """
    if isinstance(folder, Path):
        yield from _scan_local(folder, suffixes)
        return
    try:
        listing = folder.fs.find(folder.path.rstrip("/"), detail=True)
    except Exception as error:  # each protocol's client raises its own errors
        raise ValueError(f"{folder}: cannot be listed ({error}); check the URI and your credentials") from error
    start = len(folder.path.rstrip("/")) + 1
    for path in sorted(listing, key=os.path.dirname):
        name = path[start:]
        if _has_suffix(name, suffixes) and "/." not in f"/{name}":
            yield name, _remote_fingerprint(listing[path])


def file_sizes(folder: Location, suffix: str) -> dict[str, int]:
    """Return name → bytes of the files of a folder, without its subfolders; a remote one costs a request per 1000."""
    if isinstance(folder, Path):
        with os.scandir(folder) if folder.exists() else nullcontext(()) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if _is_named(entry.name, suffix)}
    found = folder.fs.find(folder.path.rstrip("/"), maxdepth=1, detail=True)
    sizes = {path.rpartition("/")[2]: int(info["size"]) for path, info in found.items()}
    return {name: size for name, size in sizes.items() if _is_named(name, suffix)}


def _is_named(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


def _scan_local(root: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    seen = {_identity(parent) for parent in root.resolve().parents}
    start = len(os.path.join(root, ""))
    folders = [str(root)]
    links: list[str] = []
    while folders or links:
        # links last and by name, so that what they add does not depend on the order in which a folder lists its entries
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            identity = _identity(folder)
            entries = [] if identity in seen else [e for e in os.scandir(folder) if not e.name.startswith(".")]
        except OSError as error:
            log.warning("%s: cannot be read (%s); its content is skipped", folder, error.strerror)
            continue
        seen.add(identity)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                heapq.heappush(links, entry.path)
            elif _has_suffix(entry.name, suffixes):
                yield entry.path[start:], _entry_fingerprint(entry)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _has_suffix(name: str, suffixes: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _entry_fingerprint(entry: os.DirEntry[str]) -> str:
    try:
        return _local_fingerprint(entry.stat())
    except OSError:
        return ""


def _local_fingerprint(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote_fingerprint(info: dict[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag") or ""
    return f"{info['size']} {str(tag).strip(chr(34))}"
