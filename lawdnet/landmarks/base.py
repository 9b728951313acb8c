"""The interface of landmark sources, and how one is chosen.

To add one: write a class with `name`, `model_sha256` and `faces` in its own file, and register it in `__init__`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from lawdnet.types import Face, Rejected, RejectReason, UInt8, Video

ROWS_TOLERANCE = 1
"""How many landmark rows may be missing or surplus at the end; OpenFace often loses the last frame."""
NETWORKS = ("face-alignment", "mediapipe")
"""Sources that detect faces in frames, in the order in which `auto` prefers them."""
MIN_FACE_PX = 4
"""Smallest extent of a face's points, in px."""
BATCH = 16
"""Frames processed together."""
MAX_BATCH_BYTES = 256 << 20
"""Most memory that a batch of frames may take: of large frames, fewer are processed together."""

Frames = Iterable[tuple[int, UInt8]]
"""(source frame index, RGB frame H×W×3) of every tick, as from `lawdnet.video.decode`."""


class LandmarkSource(Protocol):
    """Finds the faces of a video."""

    name: str
    reads_frames: bool
    """Whether `faces` uses the pixels of the frames; otherwise they need not be decoded."""

    @property
    def model_sha256(self) -> str | None:
        """SHA-256 of the weights; None if there are none."""
        ...

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """Yield the faces of every tick, in order; an empty list if there are none.

        Frames are pulled as needed, at most one batch ahead, and always to the end. A source frame that is shown at
        several ticks is processed once.

        Raises:
            Rejected: NO_LANDMARKS, BAD_LANDMARKS, LANDMARK_COUNT (before a frame is pulled), or what decoding raises.
        """
        ...


SOURCES: dict[str, type[LandmarkSource]] = {}


def make_source(name: str, **options: Any) -> LandmarkSource:
    """Create a landmark source by name, with its own options.

    Raises:
        ValueError: unknown name or option, a package that is not installed, or weights that are missing.
    """
    known = source_options(name)
    for option in options:
        if option not in known:
            hint = f"choose from {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"landmarks: {name} has no option {option!r}; {hint}")
    return SOURCES[name](**options)


def source_options(name: str) -> dict[str, Any]:
    """Return the options of a source and their defaults.

    Raises:
        ValueError: there is no such source; the message lists the sources.
    """
    if name not in SOURCES:
        raise ValueError(f"landmarks: unknown source {name!r}; choose from {', '.join(sorted(SOURCES))}")
    return {option: given.default for option, given in inspect.signature(SOURCES[name]).parameters.items()}


def csv_of(video_path: Path) -> Path:
    """Return the path of the CSV next to a video: `talk.csv`, or `talk.CSV` if only that exists."""
    lower = video_path.with_suffix(".csv")
    upper = video_path.with_suffix(".CSV")
    return upper if upper.is_file() and not lower.is_file() else lower


def has_csv(video_path: Path) -> bool:
    """Whether there is a CSV next to a video."""
    return csv_of(video_path).is_file()


def source_for(path: Path, name: str = "auto", weights_dir: Path | None = None) -> LandmarkSource:
    """Create the source for one video.

    Args:
        path: the video.
        name: a name in `SOURCES`, or `auto`; see `resolve_auto`.
        weights_dir: the folder searched first by a source that has weights.

    Raises:
        ValueError: as `make_source`.
        Rejected: as `resolve_auto`.
    """
    if name == "auto":
        name = resolve_auto(path, weights_dir)
    options = {"weights_dir": weights_dir} if "weights_dir" in source_options(name) else {}
    return make_source(name, **options)


def resolve_auto(path: Path, weights_dir: Path | None = None) -> str:
    """Return the source that `auto` means for one video: its CSV, or else the first detector that can be used here.

    Raises:
        Rejected: NO_LANDMARKS; the message says what was tried.
    """
    if name := "openface" if has_csv(path) else ready_network(weights_dir):
        return name
    detail = f"no {csv_of(path).name} next to it, and neither {' nor '.join(NETWORKS)} can be used"
    raise Rejected(RejectReason.NO_LANDMARKS, f"{detail} (--landmarks {NETWORKS[0]} says what is missing)")


def ready_network(weights_dir: Path | None = None) -> str | None:
    """Return the first detector whose package and weights are installed, or None."""
    for name in NETWORKS:
        try:
            make_source(name, weights_dir=weights_dir)
        except ValueError:
            continue
        return name
    return None


def in_batches(video: Video, frames: Frames, find: Callable[[list[UInt8]], list[list[Face]]]) -> Iterator[list[Face]]:
    """Yield the faces of every tick from a function on lists of frames, which gets each source frame once."""
    size = max(1, min(BATCH, MAX_BATCH_BYTES // max(1, 3 * video.height * video.width)))
    shown = ((next(ticks)[1], 1 + sum(1 for _ in ticks)) for _, ticks in groupby(frames, key=itemgetter(0)))
    while batch := list(islice(shown, size)):
        found = find([frame_HW3 for frame_HW3, _ in batch])
        for faces, (_, ticks) in zip(found, batch, strict=True):
            yield from (list(faces) for _ in range(ticks))
