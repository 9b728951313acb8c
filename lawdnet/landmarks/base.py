"""The interface of landmark sources, and how one is chosen.

To add one: write a class with `name`, `model_sha256` and `faces` in its own file, and register it in `__init__`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from lawdnet.networks import in_order
from lawdnet.storage import Location
from lawdnet.types import Face, Rejected, RejectReason, UInt8, Video

log = logging.getLogger(__name__)

ROWS_TOLERANCE = 1
"""How many landmark rows may be missing or surplus at the end; OpenFace often loses the last frame."""
DETECTOR = "mediapipe"
"""The source that `auto` means for a video without a CSV."""
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

        Frames are pulled as needed, at most one batch ahead (one per call, where several are made at once), and always
        to the end. A source frame that is shown at several ticks is processed once.

        Args:
            video: as probed; `num_frames` and `shown_T` are those of the ticks that are asked for, which may be a part.
            frames: these ticks.

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


def source_for(path: Path, name: str = "auto", weights_dir: Location | None = None) -> LandmarkSource:
    """Create the source for one video; see `choose_source`.

    Args:
        path: the video.
        name: a name in `SOURCES`, or `auto`.
        weights_dir: the folder searched first by a source that has weights.
    """
    return choose_source(path, name, lambda chosen: make_with_weights(chosen, weights_dir))


def make_with_weights(name: str, weights_dir: Location | None) -> LandmarkSource:
    """Create a source with the folder that is searched first for its weights, if it has any; see `make_source`."""
    options = {"weights_dir": weights_dir} if "weights_dir" in source_options(name) else {}
    return make_source(name, **options)


def choose_source(path: Path, name: str, make: Callable[[str], LandmarkSource]) -> LandmarkSource:
    """Return `make` of the source for one video; `auto` means the CSV next to it, or else `DETECTOR`.

    Raises:
        ValueError: the source that was named cannot be made.
        Rejected: NO_LANDMARKS for `auto`, if there is no CSV and the detector cannot be made.
    """
    if name != "auto":
        return make(name)
    if has_csv(path):
        return make("openface")
    try:
        return make(DETECTOR)
    except ValueError as error:
        raise Rejected(RejectReason.NO_LANDMARKS, f"no {csv_of(path).name} next to it, and {error}") from error


def prepare_landmarks(name: str, have_csv: Collection[bool], make: Callable[[str], LandmarkSource]) -> bool:
    """Check, and fetch, what the landmarks of many videos need, before workers do.

    Args:
        name: a name in `SOURCES`, or `auto`.
        have_csv: for each video, whether there is a CSV next to it.
        make: creates a source.

    Returns:
        Whether a video without a CSV can have landmarks.

    Raises:
        ValueError: the source that was named cannot be made. For `auto`, that is a warning.
    """
    if name != "auto":
        return make(name).reads_frames
    if all(have_csv):
        return False
    try:
        make(DETECTOR)
    except ValueError as error:
        log.warning("videos without a CSV will be rejected: %s", error)
        return False
    return True


def in_batches(
    video: Video, frames: Frames, find: Callable[[list[UInt8]], list[list[Face]]], calls: int = 1
) -> Iterator[list[Face]]:
    """Yield the faces of every tick from a function on lists of frames, which gets each source frame once.

    Args:
        video: as probed.
        frames: as in `LandmarkSource.faces`.
        find: returns the faces of each frame of a list.
        calls: how many calls of `find` may be made at once, from threads.
    """
    size = _batch_size(3 * video.height * video.width, calls)
    shown = ((next(ticks)[1], 1 + sum(1 for _ in ticks)) for _, ticks in groupby(frames, key=itemgetter(0)))

    def found(batch: list[tuple[UInt8, int]]) -> Iterator[tuple[list[Face], int]]:
        faces = find([frame_HW3 for frame_HW3, _ in batch])
        return zip(faces, [ticks for _, ticks in batch], strict=True)

    for batch in in_order(found, iter(lambda: list(islice(shown, size)), []), calls):
        for faces, ticks in batch:
            yield from (list(faces) for _ in range(ticks))


def _batch_size(frame_bytes: int, calls: int) -> int:
    """Return how many frames are processed together.

    If there are several calls, it divides `BATCH`: a GPU fills its batches with whole calls.
    """
    fitting = max(1, min(BATCH, MAX_BATCH_BYTES // calls // max(1, frame_bytes)))
    return fitting if calls == 1 else 1 << (fitting.bit_length() - 1)
