"""What a job knows of its inputs between one start and the next: a small file for each, in DATASET/.build."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from lawdnet.data.manifest import BUILD
from lawdnet.data.schema import BUILD_STAGES
from lawdnet.storage import REQUESTS, Location, read_json, write_json

log = logging.getLogger(__name__)

STATE = "build.json"
DRIVER = "driver"
"""Mark of the build that is at work; see `lawdnet.tasks.lock`."""
ATTEMPTS = ".attempts"
MAX_ATTEMPTS = 3
"""Times that an input may take its worker with it before it is left alone."""

EMPTY_ROW: dict[str, Any] = {
    "video_id": "", "status": "", "reason": "", "detail": "", "split": "", "landmarks": "", "segments": 0, "frames": 0,
    "frames_used": 0, "seconds": 0.0, **{f"seconds_{stage}": 0.0 for stage in BUILD_STAGES}, "bytes": 0, "sha256": "",
    "landmarks_sha256": "",
}  # fmt: skip


@dataclass
class Outcome:
    """What became of one input."""

    inputs: list[str]
    """State of the video and of its CSV when it was built."""
    row: dict[str, Any]
    """Its row of videos.parquet, before rules, twins and splits."""
    segments: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of index.parquet, with `scores`."""
    features: dict[str, str] = field(default_factory=dict)
    """Stored extractors, with what their rows depend on."""
    sync: str | None = None
    """What its sync scores depend on; None where it has none."""

    result: str = ""
    """Of a render: the state of the file that came of it, as `lawdnet.storage.fingerprint` tells it."""

    @property
    def accepted(self) -> bool:
        """Whether it gave segments."""
        return self.row["status"] == "accepted"


def outcome_path(root: Location, key: str, folder: str = BUILD) -> Location:
    """Where the outcome of an input is kept: in a folder of the job's own."""
    return root / folder / f"{key}.json"


def read_outcome(root: Location, key: str, folder: str = BUILD) -> Outcome | None:
    """The outcome of an input; None where it has none that can be read."""
    try:
        return Outcome(**read_json(outcome_path(root, key, folder)))
    except (FileNotFoundError, ValueError, TypeError):  # what a power cut leaves is not even text
        return None


def read_outcomes(root: Location) -> dict[str, Outcome]:
    """All outcomes by key, in the order of their inputs' paths, without their segments: those take far more memory
    than all else, and `read_segments` gives them piece by piece."""
    names = [path.stem for path in (root / BUILD).glob("*.json") if path.name != STATE]

    def read(name: str) -> Outcome | None:
        outcome = read_outcome(root, name)
        if outcome:
            outcome.segments.clear()
        return outcome

    with ThreadPoolExecutor(REQUESTS) as pool:
        found = [(name, outcome) for name, outcome in zip(names, pool.map(read, names), strict=True) if outcome]
    return dict(sorted(found, key=lambda entry: entry[1].row["path"]))


def read_segments(root: Location, keys: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The segments of some outcomes, in the order of the keys."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        for key, content in zip(keys, pool.map(lambda key: read_json(outcome_path(root, key)), keys), strict=True):
            yield key, content["segments"]


def write_outcome(root: Location, key: str, outcome: Outcome, folder: str = BUILD) -> None:
    """Stores the outcome of an input; from here on the job skips it."""
    write_json(outcome_path(root, key, folder), asdict(outcome))


class Attempts:
    """How often one run of a job has begun an input: what a worker that died leaves for its successor."""

    def __init__(self, root: Location, run: str, folder: str = BUILD) -> None:
        self.folder, self.run = root / folder, run

    def begin(self, key: str) -> Mapping[str, Any]:
        """Counts one more; returns what was known before: `count`, and `reason` and `detail` where it was given up."""
        before = self._read(key)
        self._write(key, before | {"count": before["count"] + 1})
        return before

    def give_up(self, key: str, reason: str, detail: str) -> None:
        """The next one to begin this input shall not work on it."""
        self._write(key, {"run": self.run, "count": MAX_ATTEMPTS, "reason": reason, "detail": detail})

    def end(self, key: str) -> None:
        """The input has its outcome, whatever becomes of the mark."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", self._path(key), error)

    def _path(self, key: str) -> Location:
        return self.folder / f"{key}{ATTEMPTS}"

    def _write(self, key: str, content: Mapping[str, Any]) -> None:
        write_json(self._path(key), dict(content))

    def _read(self, key: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_json(self._path(key))
        except (FileNotFoundError, ValueError):
            found = {}
        # another run's are no evidence: whoever stopped it may have had other reasons
        return found if found.get("run") == self.run else {"run": self.run, "count": 0}
