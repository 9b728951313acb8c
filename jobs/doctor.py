"""Checks that this machine has what lawdnet needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jobs import console, options
from lawdnet.install import install_hint

GIB = 2**30
PACKAGE = "lawdnet"
CODECS: tuple[tuple[str, Literal["r", "w"]], ...] = (
    ("h264", "r"),
    ("h264", "w"),
    ("aac", "r"),
    ("aac", "w"),
    ("hevc", "r"),
    ("vp9", "r"),
    ("opus", "r"),
)
REQUIRED_CODECS = 4
"""The first codecs are required, since we write them; the others are for reading some inputs."""
MIN_SHARED_BYTES = 512 * 2**20
MIN_DISK_BYTES = 5 * GIB


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    is_ok: bool
    detail: str
    is_required: bool = False


def doctor(as_json: options.Json = False) -> None:
    """Check versions, codecs, memory, disk, GPU and optional packages.

    The exit code is 1 only if something required is missing. Example: `lawdnet doctor`
    """
    checks = [*_python(), *_packages(), *_codecs(), *_machine(), *_gpus(), *_extras(), *_weights(), _ray_address()]
    width = max(len(check.name) for check in checks)
    lines = [f"{_mark(check)} {check.name:<{width}}  {check.detail}" for check in checks]
    broken = [check.name for check in checks if check.is_required and not check.is_ok]
    lines.append(f"broken: {', '.join(broken)}" if broken else "everything required works")
    console.result([asdict(check) for check in checks], lines, as_json)
    if broken:
        raise typer.Exit(1)


def _mark(check: Check) -> str:
    if check.is_ok:
        return "✓"
    return "✗" if check.is_required else "–"


def _python() -> Iterator[Check]:
    yield Check("Python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}", True)


def _packages() -> Iterator[Check]:
    """Check the package's own dependencies."""
    yield Check(PACKAGE, True, importlib.metadata.version(PACKAGE), True)
    for requirement in _requirements():
        if _applies(requirement, ""):
            yield _installed(requirement.name, str(requirement.specifier), is_required=True)


def _requirements() -> Iterator[Requirement]:
    for text in importlib.metadata.requires(PACKAGE) or []:
        yield Requirement(text)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(name: str, specifier: str, is_required: bool) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, f"not installed; pip install '{name}{specifier}'", is_required)
    is_ok = SpecifierSet(specifier).contains(version, prereleases=True)
    return Check(name, is_ok, version if is_ok else f"{version}, but {specifier} is required", is_required)


def _extras() -> Iterator[Check]:
    """Check the optional extras; each missing one comes with the command that installs it."""
    for extra in importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        wanted = [r for r in _requirements() if _applies(r, extra) and not _applies(r, "")]
        missing = [r.name for r in wanted if not _installed(r.name, str(r.specifier), False).is_ok]
        advice = f"missing {', '.join(missing)}; {install_hint(extra)}"
        yield Check(f"extra {extra}", not missing, advice if missing else "installed")


def _codecs() -> Iterator[Check]:
    try:
        import av.codec
    except ImportError as error:
        yield Check("codecs", False, f"PyAV does not load: {error}", True)
        return
    for position, (name, mode) in enumerate(CODECS):
        title = f"{name} {'decoder' if mode == 'r' else 'encoder'}"
        try:
            found = av.codec.Codec(name, mode).name
        except ValueError:  # PyAV's UnknownCodecError is one
            yield Check(title, False, "missing in PyAV; pip install --force-reinstall av", position < REQUIRED_CODECS)
        else:
            yield Check(title, True, found, position < REQUIRED_CODECS)


def _machine() -> Iterator[Check]:
    yield Check("CPUs", (os.cpu_count() or 1) >= 2, f"{os.cpu_count()} (shared by training and sampling)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("memory", memory >= 4 * GIB, f"{memory / GIB:.1f} GiB")
    shared = Path("/dev/shm")
    if shared.exists():
        total = shutil.disk_usage(shared).total
        advice = "" if total >= MIN_SHARED_BYTES else "; Ray and training need 0.5 GiB (docker run --shm-size=1g)"
        yield Check(str(shared), total >= MIN_SHARED_BYTES, f"{total / GIB:.1f} GiB{advice}")
    for title, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        yield Check(title, free >= MIN_DISK_BYTES, f"{free / GIB:.0f} GiB free in {folder}")


def _gpus() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("GPU", False, f"torch does not load: {error}")
        return
    if not torch.cuda.is_available():
        yield Check("GPU", False, f"none (CUDA in torch: {torch.version.cuda or 'no'}); training runs on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        yield Check(f"GPU {index}", True, detail)


def _weights() -> Iterator[Check]:
    """Check the published weights that are here; those of the landmarks are listed even if they are not."""
    from jobs.weights import describe
    from lawdnet.weights import TABLE

    for row in map(describe, TABLE):
        if row["path"] or row["problem"] != "not here" or row["name"] == TABLE[0].name:
            missing = f"{row['problem']}; fetched at first use, or by: lawdnet weights {row['name']}"
            yield Check(f"weights {row['name']}", bool(row["path"]), row["path"] or missing)


def _ray_address() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    return Check("RAY_ADDRESS", True, address or "not set: commands start Ray on this machine")


if __name__ == "__main__":
    console.run(doctor)
