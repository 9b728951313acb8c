"""What a source of landmarks is, and the sources there are.

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
"""Landmark rows that may be missing or too many at the end; OpenFace often loses the last frame."""
NETWORKS = ("face-alignment", "mediapipe")
"""Sources that find faces in pictures, in the order in which `auto` prefers them."""
MIN_FACE_PX = 4
"""Points closer together than this are no face."""
BATCH = 16
"""Pictures that are looked at together."""
MAX_BATCH_BYTES = 256 << 20
"""Fewer pictures where they are so large that a batch would take more memory than this."""

Frames = Iterable[tuple[int, UInt8]]
"""(source frame index, RGB picture H×W×3) of every tick, as `lawdnet.video.decode` gives them."""


class LandmarkSource(Protocol):
    """Finds the faces of a video."""

    name: str
    reads_pictures: bool
    """Whether `faces` looks at the pictures; a source that does not is spared their decoding."""

    @property
    def model_sha256(self) -> str | None:
        """Of the weights; None where there are none."""
        ...

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """The faces of every tick, in order; an empty list where there is none.

        Pictures are pulled as they are needed, at most one batch ahead, and always to the end. A source frame that is
        shown on several ticks is looked at once.

        Raises:
            Rejected: NO_LANDMARKS, BAD_LANDMARKS, LANDMARK_COUNT (before a picture is pulled), or what decoding raises.
        """
        ...


SOURCES: dict[str, type[LandmarkSource]] = {}


def make_source(name: str, **options: Any) -> LandmarkSource:
    """A landmark source by name, with its own options.

    Raises:
        ValueError: unknown name or option, a package that is not installed, weights that are not there.
    """
    known = source_options(name)
    for option in options:
        if option not in known:
            there_are = f"there are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"landmarks: {name} has no option {option!r}; {there_are}")
    return SOURCES[name](**options)


def source_options(name: str) -> dict[str, Any]:
    """The options of a source and their defaults.

    Raises:
        ValueError: there is no such source; the message lists those there are.
    """
    if name not in SOURCES:
        raise ValueError(f"landmarks: unknown source {name!r}; there are {', '.join(sorted(SOURCES))}")
    return {option: given.default for option, given in inspect.signature(SOURCES[name]).parameters.items()}


def csv_of(video_path: Path) -> Path:
    """The CSV beside a video: `talk.csv`, or `talk.CSV` where only that exists."""
    lower, upper = video_path.with_suffix(".csv"), video_path.with_suffix(".CSV")
    return upper if upper.is_file() and not lower.is_file() else lower


def has_csv(video_path: Path) -> bool:
    """Whether a CSV lies beside a video."""
    return csv_of(video_path).is_file()


def source_for(path: Path, name: str = "auto", weights_dir: Path | None = None) -> LandmarkSource:
    """The source for one video.

    Args:
        name: of `SOURCES`, or `auto`; see `resolve_auto`.
        weights_dir: looked in first, by a source that has weights.

    Raises:
        ValueError: as `make_source`.
        Rejected: as `resolve_auto`.
    """
    name = resolve_auto(path, weights_dir) if name == "auto" else name
    return make_source(name, **({"weights_dir": weights_dir} if "weights_dir" in source_options(name) else {}))


def resolve_auto(path: Path, weights_dir: Path | None = None) -> str:
    """The source that `auto` means for one video: its CSV, else the first that finds faces in pictures and is ready.

    Raises:
        Rejected: NO_LANDMARKS, with what was looked for.
    """
    if name := "openface" if has_csv(path) else ready_network(weights_dir):
        return name
    detail = f"no {csv_of(path).name} beside it, and neither {' nor '.join(NETWORKS)} is ready"
    raise Rejected(RejectReason.NO_LANDMARKS, f"{detail} (--landmarks {NETWORKS[0]} says what it lacks)")


def ready_network(weights_dir: Path | None = None) -> str | None:
    """The first source that finds faces in pictures and has what it needs; None where none has."""
    for name in NETWORKS:
        try:
            make_source(name, weights_dir=weights_dir)
        except ValueError:
            continue
        return name
    return None


def in_batches(video: Video, frames: Frames, find: Callable[[list[UInt8]], list[list[Face]]]) -> Iterator[list[Face]]:
    """The faces of every tick by a function that takes a list of pictures; each source frame goes in once."""
    size = max(1, min(BATCH, MAX_BATCH_BYTES // max(1, 3 * video.height * video.width)))
    shown = ((next(ticks)[1], 1 + sum(1 for _ in ticks)) for _, ticks in groupby(frames, key=itemgetter(0)))
    while batch := list(islice(shown, size)):
        found = find([picture for picture, _ in batch])
        for faces, (_, ticks) in zip(found, batch, strict=True):
            yield from (list(faces) for _ in range(ticks))
