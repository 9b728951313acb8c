"""Many videos and many speeches: each pair becomes one file, one outcome, and nobody else's problem.

OUT/VIDEO--SPEECH.mp4 appears whole or not at all. OUT/.render keeps what became of each pair, so that a job that was
killed and is started again renders what is missing; OUT/renders.json lists all pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2

from lawdnet import storage
from lawdnet.face.track import one_face
from lawdnet.landmarks import source_for
from lawdnet.landmarks.base import ready_network
from lawdnet.models.saved import STATE, find_checkpoint
from lawdnet.storage import REQUESTS, Location, locate, sha256, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.inputs import CSV_SUFFIXES, opened
from lawdnet.tasks.records import DRIVER, MAX_ATTEMPTS, Attempts, Outcome, read_outcome, write_outcome
from lawdnet.tasks.watchdog import Watchdog
from lawdnet.training.checkpoint_store import local_folder
from lawdnet.types import Rejected, RejectReason
from pipelines import executor
from pipelines.cluster import metrics, resources
from pipelines.executor import check_stop, full_disk, is_full_disk
from pipelines.render.pairs import check_outs

if TYPE_CHECKING:
    from lawdnet.inference.engine import Engine, Summary
    from lawdnet.inference.template import Template

log = logging.getLogger(__name__)

OUTCOMES = ".render"
LEDGER = "renders.json"
LEFT = re.compile(r"\.(.+\.mp4)\.[0-9a-f]{8}\.mp4")
"""A result that is written and has not got its name yet."""
SPEECHES_AT_ONCE = 8
"""Of one video: a worker prepares it for so many, and others may take the rest."""
STALL_SECONDS = 300.0
"""A video or a speech that does not get on by a single picture or window of sound for this long is given up."""

EMPTY = {"status": "", "reason": "", "detail": "", "frames": 0, "passed_through": 0, "seconds": 0.0}

Row = dict[str, Any]
T = TypeVar("T")
Progress = Callable[[Row, int, int], None]
"""Called with a pair's row (with `stored` where an earlier job made it), the number of pairs done, and of all."""


@dataclasses.dataclass(frozen=True)
class RenderOrder:
    """What all workers are told."""

    network: str
    """A checkpoint's folder or an old file."""
    root: str
    run: str
    """Name of this run of the job."""
    landmarks: str
    face: str
    weights_dir: str | None
    device: str
    stall_seconds: float


def render(
    checkpoint: Location,
    pairs: Sequence[Row],
    root: Location,
    *,
    landmarks: str = "auto",
    face: str = "largest",
    weights_dir: Path | None = None,
    gpu: float = 0.0,
    on_row: Progress | None = None,
) -> list[Row]:
    """Renders the pairs that are not done, or were done with other files, another network or other settings.

    Args:
        checkpoint: a run, a stage, a checkpoint or a published `.pth`, where every worker can read it.
        pairs: of `pipelines.render.pairs`.
        root: folder of the results, here or in an object store.
        landmarks, face: as `lawdnet.landmarks` and `lawdnet.face.track.choose` take them.
        weights_dir: looked in first for the weights of landmark sources and audio features.
        gpu: share of a GPU that each worker takes; 0 works on CPUs.

    Returns:
        A row per pair, in their order: `video`, `speech`, `out` (below `root`), `status` rendered | rejected | failed,
        `reason`, `detail`, `frames`, `passed_through` (frames without a face) and `seconds`.

    Raises:
        OSError: the disk is full.
        ValueError: no such checkpoint or landmark source, a result that would replace an input, or another driver is
            at work on `root`.
    """
    from lawdnet.inference.engine import Engine

    network = checkpoint if checkpoint.is_file() else find_checkpoint(checkpoint)
    check_outs(pairs, root)
    one_face(face)
    if landmarks != "auto":
        source_for(Path(), landmarks, weights_dir)  # says what is missing at once
    with _opened_network(network) as path:
        Engine(path, device="cpu", weights_dir=weights_dir)  # the same
    marks = [sha256(network if network.is_file() else network / STATE), face]
    finds = (ready_network(weights_dir) or "") if landmarks == "auto" else landmarks
    pairs = [pair | {"inputs": [*pair["inputs"], *marks, _sees(pair, landmarks, finds)]} for pair in pairs]
    order = RenderOrder(
        network=str(network),
        root=str(root),
        run=uuid.uuid4().hex,
        landmarks=landmarks,
        face=face,
        weights_dir=str(weights_dir) if weights_dir else None,
        device="cuda" if gpu else "cpu",
        stall_seconds=STALL_SECONDS,
    )
    with lock.held(root / OUTCOMES / DRIVER):
        done: dict[str, Row] = {}
        for pair, row in _as_they_come(pairs, order, gpu):
            done[pair["key"]] = {name: value for name, value in row.items() if name != "stored"}
            if on_row:
                on_row(row, len(done), len(pairs))
        rows = [done[pair["key"]] for pair in pairs]
        write_json(root / LEDGER, {"network": str(network), "network_sha256": marks[0], "pairs": rows})
        _sweep(root, pairs)
    return rows


def _sees(pair: Row, landmarks: str, finds: str) -> str:
    """Where a pair's landmarks come from; one that had none is tried again when something can find them."""
    return "openface" if landmarks == "auto" and pair["inputs"][1] else finds


def _as_they_come(pairs: Sequence[Row], order: RenderOrder, gpu: float) -> Iterator[tuple[Row, Row]]:
    """Pairs with their rows: what is stored at once, the others when they are done."""
    root = locate(order.root)
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = list(zip(pairs, pool.map(lambda pair: _stored(root, pair), pairs), strict=True))
    yield from ((pair, row | {"stored": True}) for pair, row in found if row)
    if todo := [pair for pair, row in found if not row]:
        yield from _run(todo, order, gpu)


def _stored(root: Location, pair: Row) -> Row | None:
    """What became of a pair earlier, where it would become the same today."""
    found = read_outcome(root, pair["key"], OUTCOMES)
    if found is None or found.inputs != list(pair["inputs"]) or found.row["out"] != pair["out"]:
        return None
    if found.row["status"] == "rejected":  # rights come back, and so do object stores
        return found.row if found.row["reason"] != RejectReason.UNREADABLE else None
    # the file may be gone, or another job's with a video and a speech of the same names
    is_ours = found.result and found.result == storage.fingerprint(root / pair["out"])
    return found.row if found.row["status"] == "rendered" and is_ours else None


def _run(todo: Sequence[Row], order: RenderOrder, gpu: float) -> Iterator[tuple[Row, Row]]:
    """What workers make of the pairs; one whose outcome was lost with its worker is `failed`."""
    waiting = {pair["key"]: pair for pair in todo}
    with resources.cluster():
        at_once = min(SPEECHES_AT_ONCE, -(-len(todo) // resources.workers(gpu)))
        items = list(_items(todo, at_once))
        for answer in executor.answers(Renderer, order, items, gpu=gpu, name="render", many=True):
            check_stop(answer)
            if pair := waiting.pop(answer["key"], None):  # work that is tried again says twice what it had done
                yield pair, json.loads(answer["row"])
    for pair in waiting.values():
        detail = "its outcome was lost; the workers' log says why, and the same job tries it again"
        row = _row(pair, Refused("failed", RejectReason.INTERNAL_ERROR, detail))
        metrics.rendered(row)
        yield pair, row


def _items(todo: Sequence[Row], at_once: int) -> Iterator[Row]:
    """Pairs of one video, a few at a time, with a key of their own."""
    by_video: dict[bytes, list[Row]] = {}
    for pair in todo:
        by_video.setdefault(pair["video_source"], []).append(pair)
    for pairs in by_video.values():
        for start in range(0, len(pairs), at_once):
            part = pairs[start : start + at_once]
            key = hashlib.sha256(" ".join(pair["key"] for pair in part).encode()).hexdigest()[:16]
            yield {"key": key, "video_source": part[0]["video_source"], "pairs": part}


def _sweep(root: Location, pairs: Sequence[Row]) -> None:
    """Removes what killed workers have left half written."""
    if not isinstance(root, Path):
        return
    outs = {root / pair["out"] for pair in pairs}
    for folder in {root / OUTCOMES, *(out.parent for out in outs)}:
        for path in folder.glob(".*"):
            whole = LEFT.fullmatch(path.name)
            if path.suffix == ".tmp" or (whole and folder / whole[1] in outs):
                path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why something gave no result."""

    status: str
    reason: RejectReason
    detail: str


class Renderer:
    """A few pairs of one video in, a row for each out; the network loads once, the video is prepared once."""

    def __init__(self, order: RenderOrder) -> None:
        from lawdnet.inference.engine import Engine

        cv2.setNumThreads(1)  # Ray counts one CPU for this actor
        self.order, self.root = order, locate(order.root)
        self.weights_dir = Path(order.weights_dir) if order.weights_dir else None
        self.attempts = Attempts(self.root, order.run, OUTCOMES)
        self.watchdog = Watchdog(order.stall_seconds)
        with _opened_network(locate(order.network)) as path:
            self.engine: Engine = Engine(
                path, device=order.device, weights_dir=self.weights_dir, beat=self.watchdog.beat
            )  # fmt: skip

    def __call__(self, item: Row) -> Iterator[Row]:
        """Renders the pairs one by one and stores each outcome; whatever happens, there is a row.

        But for a full disk, which is no fault of a pair: `stop` then says why all should stop.
        """
        try:
            yield from self._answers(item)
        except OSError as error:
            yield {"key": "", "row": "", "stop": full_disk(error, self.root)}

    def _answers(self, item: Row) -> Iterator[Row]:
        found = [(pair, _stored(self.root, pair)) for pair in item["pairs"]]  # by a worker that has died of the next
        yield from (_answer(pair, row) for pair, row in found if row)
        with ExitStack() as stack:
            if todo := [pair for pair, row in found if not row]:
                template = self._guarded(item["key"], lambda: self._prepare(item, stack))
                yield from (_answer(pair, self._outcome(pair, template)) for pair in todo)

    def _outcome(self, pair: Row, template: Template | Refused) -> Row:
        if isinstance(template, Refused):
            row = _row(pair, template)
        else:
            row = _row(pair, self._guarded(pair["key"], lambda: self._render(pair, template)))
        result = storage.fingerprint(self.root / pair["out"]) if row["status"] == "rendered" else ""
        write_outcome(self.root, pair["key"], Outcome(list(pair["inputs"]), row, result=result), OUTCOMES)
        metrics.rendered(row)
        return row

    def _guarded(self, key: str, work: Callable[[], T]) -> T | Refused:
        """The work's result; it is watched, and left alone when it has taken its process with it too often."""
        before = self.attempts.begin(key)
        if before["count"] >= MAX_ATTEMPTS:
            detail = f"took its worker process with it {MAX_ATTEMPTS} times (out of memory, or a crash in a codec)"
            reason = RejectReason(before.get("reason", RejectReason.CRASH))
            made: T | Refused = Refused("rejected", reason, before.get("detail", detail))
        else:
            detail = f"no picture and no sound got done for {self.order.stall_seconds:.0f} s"
            with self.watchdog.watching(lambda: self.attempts.give_up(key, RejectReason.TIMEOUT, detail)):
                made = _attempted(work)
        self.attempts.end(key)
        return made

    def _prepare(self, item: Row, stack: ExitStack) -> Template:
        """The item's video, which stays open as long as the stack."""
        place = locate(os.fsdecode(item["video_source"]))
        video = stack.enter_context(opened(place, CSV_SUFFIXES, beat=self.watchdog.beat))
        source = source_for(video, self.order.landmarks, self.weights_dir)
        return self.engine.prepare(video, source, face=self.order.face)

    def _render(self, pair: Row, template: Template) -> Summary:
        out, beat = self.root / pair["out"], self.watchdog.beat
        place = locate(os.fsdecode(pair["speech_source"]))
        with opened(place, beat=beat) as speech, storage.atomic(out, beat=beat) as temporary:
            video = temporary.with_suffix(".mp4")
            made = self.engine.render(template, speech, video)
            video.replace(temporary)
            return made


def _attempted(work: Callable[[], T]) -> T | Refused:
    try:
        return work()
    except Rejected as error:
        return Refused("rejected", error.reason, error.detail)
    except Exception as error:  # one pair must not take the others with it
        if is_full_disk(error):
            raise
        log.exception("a pair failed")
        return Refused("failed", RejectReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def _row(pair: Row, made: Summary | Refused) -> Row:
    row = {name: pair[name] for name in ("video", "speech", "out")}
    if isinstance(made, Refused):
        detail = made.detail.encode("utf8", "backslashreplace").decode("utf8")  # it may name a file
        return row | EMPTY | {"status": made.status, "reason": str(made.reason), "detail": detail}
    figures = {"frames": made.frames, "passed_through": made.passed_through, "seconds": round(made.seconds, 3)}
    return row | EMPTY | {"status": "rendered", **figures}


def _answer(pair: Row, row: Row) -> Row:
    return {"key": pair["key"], "row": json.dumps(row), "stop": ""}


def _opened_network(network: Location) -> AbstractContextManager[Path]:
    return local_folder(network) if network.is_dir() else storage.local_copy(network)
