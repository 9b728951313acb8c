"""Files wherever they are: folders of this machine, S3 and Google Cloud Storage through one set of functions.

A local place is a plain `pathlib.Path`; a remote one is a `UPath`, which has the same methods. Credentials, regions and
endpoints are those of AWS and Google Cloud themselves (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, instance roles, …).
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
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from lawdnet.install import install_hint
from lawdnet.types import Beat, no_beat

if TYPE_CHECKING:
    from fsspec.callbacks import Callback
    from upath import UPath

log = logging.getLogger(__name__)

Location: TypeAlias = "Path | UPath"

REQUESTS = 32
"""Small files that are asked for at the same time: the wait for an answer is all it costs."""
PIECE = 1 << 20
"""Bytes that are read at once for a checksum."""
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "memory": "s3"}
"""The protocols, and the extra that installs what each needs."""
RETRIES = {"mode": "standard", "total_max_attempts": 6}
"""Of one request to S3 that meets a full or failing server or a broken connection; the waits between them double, up to
20 s. s3fs itself goes on where the body of an answer breaks off, and gcsfs has the like built in. This is the only
place where anything is tried again."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": RETRIES}}}
"""Of the fsspec file system of a protocol."""


def locate(place: str | Location) -> Location:
    """The place that a path or an address names; a local path becomes absolute.

    Args:
        place: a local path, or `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `memory://NAME` (of this process, for tests).

    Raises:
        ValueError: an address of another kind, or one that needs an extra which is not installed.
    """
    if not isinstance(place, str):
        return place.absolute()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", place)
    if scheme is None:
        return Path(place).absolute()
    protocol = scheme[1].lower()
    if protocol not in EXTRAS:
        raise ValueError(f"{place}: {protocol}:// cannot be read; give a local path, s3:// or gs://")
    try:
        from upath import UPath

        # what another worker wrote must be seen: listings are not kept
        remote = UPath(place, use_listings_cache=False, **OPTIONS.get(protocol, {}))
        assert remote.fs  # made here, so that what is missing is said here
    except ImportError as error:
        hint = install_hint(EXTRAS[protocol])
        raise ValueError(f"{place}: {protocol}:// needs packages that are not installed; {hint}") from error
    return remote


def is_remote(path: Location) -> bool:
    """Whether a place is anywhere but in the file system of this machine."""
    return not isinstance(path, Path)


@contextmanager
def atomic(path: Location, *, beat: Beat = no_beat) -> Iterator[Path]:
    """A temporary local name that becomes `path` when the block ends well, and is gone when it does not.

    Nothing appears where the block has written nothing. A local file is renamed, a remote one uploaded when the block
    ends: a reader sees all of it or nothing.

    Args:
        beat: called as the upload gets on.
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


@contextmanager
def local_copy(path: Location, companions: Collection[str] = (), *, beat: Beat = no_beat) -> Iterator[Path]:
    """A file as a local one: itself, or a download under the same name that is gone when the block ends.

    Args:
        companions: suffixes such as `.csv`; files that differ from `path` in these alone come along where they exist.
        beat: called as the download gets on.

    Raises:
        FileNotFoundError: a remote `path` does not exist.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lawdnet-") as folder:
        copy = Path(folder) / path.name
        path.fs.get_file(path.path, str(copy), callback=_callback(beat))
        for companion in (path.with_suffix(suffix) for suffix in companions):
            beside = copy.with_name(companion.name)
            try:
                path.fs.get_file(companion.path, str(beside))
            except FileNotFoundError:
                beside.unlink(missing_ok=True)
        yield copy


def _callback(beat: Beat) -> Callback:
    from fsspec.callbacks import Callback  # fsspec comes with what makes a place remote

    class Beats(Callback):
        def call(self, *args: Any, **kwargs: Any) -> None:
            beat()

    return Beats()


def write_json(path: Location, content: Any) -> None:
    """Atomic, readable, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def read_json(path: Location) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        json.JSONDecodeError: it is damaged.
    """
    return json.loads(path.read_bytes())


def parquet_file(path: Location) -> pq.ParquetFile:
    """A Parquet file, of which only the parts that are asked for are read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no Parquet file, or cut short.
    """
    try:
        if isinstance(path, Path):
            return pq.ParquetFile(path)
        # neighbouring columns come in one request, and a cache would fetch 50 MB around each
        return pq.ParquetFile(path.fs.open(path.path, "rb", cache_type="none"), pre_buffer=True)
    except ArrowInvalid as error:
        raise ValueError(f"{path}: damaged ({error}); make the dataset again") from None


def sha256(path: Location, *, beat: Beat = no_beat) -> str:
    """Hex digest of a file's content, which is read piece by piece; `beat` is called for each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            beat()
    return digest.hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Return one SHA-256 (hex) for the files that make up a model: of a single file its own, else of all digests.

    A file is read once per process, as long as its size and modification time stay the same.
    """
    digests = []
    for path in paths:
        status = path.stat()
        digests.append(_cached_sha256(path.resolve(), status.st_size, status.st_mtime_ns))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=64)
def _cached_sha256(path: Path, size: int, modified_ns: int) -> str:  # size and time are keys of the cache
    return sha256(path)


def fingerprint(path: Location) -> str:
    """What changes when a file does: its size and time of change, where remote its size and ETag; "" without a file."""
    if isinstance(path, Path):
        try:
            status = path.stat()
        except OSError:
            return ""
        return _local_mark(status)
    try:
        info = path.fs.info(path.path)
    except (FileNotFoundError, PermissionError):
        return ""
    return _remote_mark(info) if info["type"] == "file" else ""


def fingerprints(path: Location, companions: Sequence[str]) -> list[str]:
    """Of a file and of those that differ from it in their suffix alone; where remote with a single request."""
    if not path.name:
        return [""] * (1 + len(companions))
    if isinstance(path, Path):
        return [fingerprint(path), *(fingerprint(path.with_suffix(suffix)) for suffix in companions)]
    try:
        found = path.fs.find(path.parent.path, prefix=path.stem + path.suffix[:1], detail=True)
    except (FileNotFoundError, PermissionError):
        found = {}
    marks = {name: _remote_mark(info) for name, info in found.items()}
    return [marks.get(path.path, ""), *(marks.get(path.with_suffix(suffix).path, "") for suffix in companions)]


def scan(folder: Location, suffixes: Collection[str]) -> dict[str, str]:
    """All files with certain suffixes in a folder, to its depth; names that begin with a dot are left out.

    Links to folders are followed, each folder once, but for links to a folder that the searched one lies in. A remote
    folder costs one request per 1000 objects.

    Args:
        suffixes: in lower case, with their dots; those of the files are compared in lower case.

    Returns:
        Path below `folder`, with slashes → fingerprint ("" where a link leads nowhere), in no particular order.

    Raises:
        ValueError: a remote folder cannot be listed.
    """
    if isinstance(folder, Path):
        return dict(_scan_local(folder, suffixes))
    try:
        listing = folder.fs.find(folder.path.rstrip("/"), detail=True)
    except Exception as error:  # each protocol's client has errors of its own
        raise ValueError(f"{folder}: cannot be listed ({error}); check the address and your credentials") from error
    start = len(folder.path.rstrip("/")) + 1
    names = ((path[start:], info) for path, info in listing.items())
    return {name: _remote_mark(info) for name, info in names if _suits(name, suffixes) and f"/{name}".find("/.") < 0}


def _scan_local(root: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    seen = {_identity(parent) for parent in root.resolve().parents}
    start = len(os.path.join(root, ""))
    folders, links = [str(root)], list[str]()
    while folders or links:
        # links last and by name, so that what they add does not depend on the order of a folder's entries
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            identity = _identity(folder)
            entries = [] if identity in seen else [e for e in os.scandir(folder) if not e.name.startswith(".")]
        except OSError as error:
            log.warning("%s: cannot be read (%s), what is in it is left out", folder, error.strerror)
            continue
        seen.add(identity)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                heapq.heappush(links, entry.path)
            elif _suits(entry.name, suffixes):
                yield entry.path[start:], _entry_mark(entry)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _suits(name: str, suffixes: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _entry_mark(entry: os.DirEntry[str]) -> str:
    try:
        return _local_mark(entry.stat())
    except OSError:
        return ""


def _local_mark(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote_mark(info: dict[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag") or ""
    return f"{info['size']} {str(tag).strip(chr(34))}"
