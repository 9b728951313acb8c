"""Many videos and many audio files: each pair becomes one file and one record, and is nobody else's problem.

OUT/VIDEO--SPEECH.mp4 appears whole or not at all. OUT/.render keeps what became of each pair, so that a job that was
killed and is started again renders what is missing; OUT/renders.json lists all pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lawdnet import storage
from lawdnet.face.track import one_face
from lawdnet.landmarks.base import DETECTOR, make_with_weights, prepare_landmarks
from lawdnet.models.saved import STATE, find_checkpoint
from lawdnet.storage import REQUESTS, Location, sha256, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.task import STALL_SECONDS, OnProgress
from lawdnet.types import RejectReason
from pipelines.executor import Execute, complete
from pipelines.render.pairs import RECORDS, PairRecord, RenderPair, check_outs, pair_records
from pipelines.render.task import RenderJob, RenderTask, opened_network

LEDGER = "renders.json"
UNFINISHED = re.compile(r"\.(.+\.mp4)\.[0-9a-f]{8}\.mp4")
"""A result that is being written and has not got its name yet."""


def render(
    checkpoint: Location,
    pairs: Sequence[RenderPair],
    root: Location,
    *,
    landmarks: str = "auto",
    face: str = "largest",
    weights_dir: Location | None = None,
    gpu: float = 0.0,
    on_progress: OnProgress[PairRecord] | None = None,
    stall_seconds: float = STALL_SECONDS,
    execute: Execute | None = None,
) -> list[PairRecord]:
    """Render the pairs that are not done, or were done with other files, another network or other settings.

    Args:
        checkpoint: a run, a stage, a checkpoint or a published `.pth`, where every worker can read it.
        root: folder of the results, local or in an object store.
        landmarks, face: as `lawdnet.landmarks` and `lawdnet.face.track.choose` take them.
        weights_dir: searched first for the weights of landmark sources and audio features.
        gpu: share of a GPU that each worker takes; 0 runs on CPUs.
        on_progress: called with the record of every pair.
        stall_seconds: a video or a pair that makes no progress for this long is given up.
        execute: where the work is done; on Ray if None.

    Returns:
        A record per pair, in their order.

    Raises:
        DiskFull: the disk is full.
        ValueError: no such checkpoint or landmark source, a result that would replace an input, or another driver is
            working on `root`.
    """
    network = checkpoint if checkpoint.is_file() else find_checkpoint(checkpoint)
    check_outs(pairs, root)
    one_face(face)
    have_csv = [pair.has_csv for pair in pairs]
    finds_faces = prepare_landmarks(landmarks, have_csv, lambda name: make_with_weights(name, weights_dir))
    _check_engine(network, weights_dir)
    settings = [sha256(network if network.is_file() else network / STATE), face]
    finds = landmarks if landmarks != "auto" else DETECTOR if finds_faces else ""
    pairs = [replace(pair, inputs=[*pair.inputs, *settings, _source(pair, landmarks, finds)]) for pair in pairs]
    job = RenderJob(
        root=str(root),
        stall_seconds=stall_seconds,
        network=str(network),
        landmarks=landmarks,
        face=face,
        weights_dir=str(weights_dir) if weights_dir else None,
        device="cuda" if gpu else "cpu",
    )
    with lock.held(root / RECORDS / lock.DRIVER):
        store = pair_records(root)
        valid = _valid(root, pairs, store.read_many(pair.key for pair in pairs))
        work = complete(
            RenderTask, job, pairs, store, valid, name="render", gpu=gpu, on_progress=on_progress, execute=execute
        )
        done = dict(work)
        records = [done[pair.key] for pair in pairs]
        _write_ledger(root, network, settings[0], records)
        _sweep(root, pairs)
    return records


def _write_ledger(root: Location, network: Location, digest: str, records: Sequence[PairRecord]) -> None:
    columns = [record.columns() for record in records]
    write_json(root / LEDGER, {"network": str(network), "network_sha256": digest, "pairs": columns})


def _check_engine(network: Location, weights_dir: Location | None) -> None:
    """Say at once what is missing, not in every worker.

    Raises:
        ValueError: the network or its audio feature cannot be used.
    """
    from lawdnet.inference.engine import Engine

    with opened_network(network) as path:
        Engine(path, device="cpu", weights_dir=weights_dir)


def _source(pair: RenderPair, landmarks: str, finds: str) -> str:
    """Where a pair's landmarks come from; one that had none is tried again when something can find them."""
    return "openface" if landmarks == "auto" and pair.has_csv else finds


def _valid(root: Location, pairs: Sequence[RenderPair], records: Mapping[str, PairRecord]) -> dict[str, PairRecord]:
    """The records of pairs whose result would be the same today."""
    found = [(pair, records[pair.key]) for pair in pairs if pair.key in records]
    with ThreadPoolExecutor(REQUESTS) as pool:
        are_valid = pool.map(lambda entry: _is_valid(root, *entry), found)
        return {pair.key: record for (pair, record), is_valid in zip(found, are_valid, strict=True) if is_valid}


def _is_valid(root: Location, pair: RenderPair, record: PairRecord) -> bool:
    # a result stays, although the network that found its landmarks is not there now
    known = slice(None, -1) if record.is_rendered and not pair.inputs[-1] else slice(None)
    if record.inputs[known] != pair.inputs[known] or record.out != pair.out:
        return False
    if record.status == "rejected":  # permissions come back, and so do object stores
        return record.reason != RejectReason.UNREADABLE
    # the file may be gone, or another job's with a video and an audio file of the same names
    is_ours = bool(record.result) and record.result == storage.fingerprint(root / pair.out)
    return record.is_rendered and is_ours


def _sweep(root: Location, pairs: Sequence[RenderPair]) -> None:
    """Remove what killed workers left half written."""
    if not isinstance(root, Path):
        return
    outs = {root / pair.out for pair in pairs}
    for folder in {root / RECORDS, *(out.parent for out in outs)}:
        storage.remove_temporaries(folder)
        for path in folder.glob(".*.mp4"):
            whole = UNFINISHED.fullmatch(path.name)
            if whole and folder / whole[1] in outs:
                path.unlink(missing_ok=True)
