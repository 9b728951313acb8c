"""The dataset graph: videos → one task per video → segment files, index.parquet, videos.parquet, dataset.json.

The task of a long video only divides it; its spans are tasks of their own, and their records are joined to its own.
Where there are many small segment files, more tasks pack them into shards.

Every input leaves a small record in DATASET/.build when it is done. A build that is killed and started again lists the
inputs, skips those, and ends with the same rows: the outputs depend on the inputs and the configuration alone. With
more features, other rules or another split the same folder is completed: no frame is decoded again.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from lawdnet.audio.base import AudioExtractor
from lawdnet.audio.silero import Silero
from lawdnet.data.config import FORMAT_VERSION, SILERO, VOICING, BuildConfig, digest
from lawdnet.data.group_by import check_paths, column_name, face_distance
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset
from lawdnet.data.publish import publish
from lawdnet.data.records import STATE, VideoRecord, video_records
from lawdnet.data.rules import parse_rule
from lawdnet.data.settle import settle
from lawdnet.data.span_records import join, span_records
from lawdnet.data.transfer import refuse_inside
from lawdnet.evaluation.face_embedding import FaceEmbedder
from lawdnet.landmarks.base import prepare_landmarks
from lawdnet.storage import Location, file_sizes, read_json, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.inputs import InputList, list_inputs
from lawdnet.tasks.task import STALL_SECONDS, OnProgress
from pipelines.build.networks import NetworkPool
from pipelines.build.pack import pack
from pipelines.build.plan import Plan, Work
from pipelines.build.span import SpanItem, SpanTask, span_store
from pipelines.build.task import (
    BuildJob,
    VideoTask,
    extractors_of,
    feature_marks,
    networks_of,
    source_of,
    weights_place,
)
from pipelines.cluster import metrics
from pipelines.executor import Execute, complete

log = logging.getLogger(__name__)


def build(
    source: Location,
    root: Location,
    config: BuildConfig,
    *,
    weights_dir: Location | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    on_progress: OnProgress[VideoRecord] | None = None,
    stall_seconds: float = STALL_SECONDS,
    execute: Execute | None = None,
) -> Dataset:
    """Build a dataset, or complete it.

    Args:
        source: folder of videos, one video, a list file, or a remote prefix; never changed.
        root: folder of the dataset, local or in an object store.
        weights_dir: searched first for the weights of extractors and landmark sources.
        sync: run or file of a sync network that gives every segment an offset and a confidence.
        gpu: share of a GPU that each process for networks takes; 0 computes them in the workers, on CPUs.
        on_progress: called with the record of every input.
        stall_seconds: a video that makes no progress for this long is given up.
        execute: where the work is done; on Ray if None.

    Raises:
        ValueError: no input, weights are missing, `root` was built from another source or with settings that decide
            its crops, or another driver is working on it.
        DiskFull: the disk is full.
    """
    source, root = _absolute(source), _absolute(root)
    refuse_inside(root, [source])
    inputs = list_inputs(source)
    with lock.held(root / BUILD / lock.DRIVER):  # first, so that nobody changes what is read of the folder
        config = _with_stored(source, root, config, weights_dir)
        job = BuildJob(
            root=str(root),
            stall_seconds=stall_seconds,
            config=config,
            weights_dir=str(weights_dir) if weights_dir else None,
            sync=str(sync) if sync else None,
        )
        extractors = extractors_of(config, job.weights_dir)
        marks = feature_marks(config, extractors)
        job, plan, work = _plan(inputs, root, job, marks, on_progress)
        _claim(source, root, config)
        with _networks(job, gpu) as pool:
            do = partial(complete, job=job, gpu=gpu if pool else 0, on_progress=on_progress, execute=execute or pool)
            videos = do(
                VideoTask, items=work.items, store=video_records(root), stored={}, before=work.ready, name="build"
            )
            divided = work.divided | {key: record for key, record in videos if record.borders}
            spans, stored = plan.spans(divided, work.items, root)
            if spans:
                deque(do(SpanTask, items=spans, store=span_store(root), stored=stored, name="build spans"), maxlen=0)
                _join(root, spans, config)
        settled = settle(root, config, plan.listed)
        pack(job, settled.videos, config.pack_files, execute)
        return publish(root, config, _described(extractors, config), str(source), marks, settled)


def _networks(job: BuildJob, gpu: float) -> AbstractContextManager[NetworkPool | None]:
    """Processes of their own for the networks, if they get GPUs."""
    if not gpu:
        return nullcontext()
    if networks_of(job):
        return NetworkPool(networks_of, job, gpu)
    log.warning("--gpu: nothing in this build computes on a GPU, so CPUs do the work")
    return nullcontext()


def _plan(
    inputs: InputList,
    root: Location,
    job: BuildJob,
    marks: Mapping[str, str],
    on_progress: OnProgress[VideoRecord] | None,
) -> tuple[BuildJob, Plan, Work]:
    """Check everything that can be checked before the work, and say what the work is.

    Raises:
        ValueError: as `build`.
    """
    config = job.config
    column = column_name(config.group_by)
    if config.group_by:
        check_paths([file.path for file in inputs], config.group_by, [file.columns.get(column, "") for file in inputs])
    have_csv = [bool(file.csv_fingerprint) for file in inputs]
    finds_faces = prepare_landmarks(config.landmarks, have_csv, lambda name: source_of(config, name, job.weights_dir))
    if config.speech == SILERO:
        Silero(weights_place(job.weights_dir))
    if face_distance(config.group_by):
        FaceEmbedder.find(weights_place(job.weights_dir))
    job = dataclasses.replace(job, sync_mark=_check_sync(job.sync, config, marks))
    plan = Plan(
        inputs=inputs,
        files=file_sizes(root / SEGMENTS, ".parquet").keys(),
        marks=marks,
        sync_mark=job.sync_mark,
        finds_faces=finds_faces,
        group_by=config.group_by,
    )
    work = plan.work(root, on_progress)
    _check_rules(config, bool(job.sync_mark) or work.has_sync)
    work.check_gone(root)
    return job, plan, work


def _join(root: Location, items: Sequence[SpanItem], config: BuildConfig) -> None:
    """Make the records of the videos from those of their spans."""
    store = video_records(root)
    for key, own in groupby(items, key=attrgetter("video_key")):
        record, spans = store.read(key), span_records(root).read_many([item.key for item in own], brief=False)
        assert record
        joined = join(record, list(spans.values()), config.min_frames)
        if joined != record:
            store.write(key, joined)
        if record.status == "divided":
            metrics.count_video(joined)


def _described(extractors: Mapping[str, AudioExtractor], config: BuildConfig) -> dict[str, dict[str, Any]]:
    """What dataset.json says about each extractor, so that rendering can make the same one."""
    return {
        name: {
            "dim": made.feature_dim,
            "model_sha256": made.model_sha256,
            "options": dict(config.options.get(name, {})),
        }
        for name, made in extractors.items()
    }


def _absolute(location: Location) -> Location:
    return location.absolute() if isinstance(location, Path) else location


def _with_stored(source: Location, root: Location, config: BuildConfig, weights_dir: Location | None) -> BuildConfig:
    """The configuration with the features that are stored already, which are never removed, and no `auto` for speech.

    Raises:
        ValueError: the folder belongs to another source or another kind of crops, or no build made it.
    """
    try:
        found = read_json(root / BUILD / STATE)
    except FileNotFoundError:
        if (root / MANIFEST).exists() or (root / SEGMENTS).exists():
            raise ValueError(f"{root}: holds a dataset that was not made by a build; choose another --out") from None
        found = None
    if config.speech == "auto":
        has_network = found["structure"].get("speech") == SILERO if found else Silero.is_here(weights_dir)
        config = dataclasses.replace(config, speech=SILERO if has_network else VOICING)
    if found:
        if found["source"] != _name(source):
            raise ValueError(f"{root}: was built from {found['source']}; choose another --out")
        if found["format_version"] != FORMAT_VERSION:
            text = f"was begun in dataset format {found['format_version']}, this version of lawdnet builds"
            raise ValueError(f"{root}: {text} {FORMAT_VERSION}; run: lawdnet upgrade {shlex.quote(str(root))}")
        old, new = found["structure"], config.structure()
        if old != new:
            changed = ", ".join(
                f"{k} {old.get(k)} → {new.get(k)}" for k in dict.fromkeys([*old, *new]) if old.get(k) != new.get(k)
            )
            raise ValueError(f"{root}: was built with other settings ({changed}); choose another --out")
        features = tuple(dict.fromkeys([*found["features"], *config.features]))
        options = {name: found["options"].get(name, {}) for name in features if name not in config.features}
        config = dataclasses.replace(config, features=features, options={**options, **config.options})
    return config


def _claim(source: Location, root: Location, config: BuildConfig) -> None:
    """Bind the folder to this source and configuration; a build that is refused before this binds nothing."""
    content = {"source": _name(source), "format_version": FORMAT_VERSION, "structure": config.structure()}
    options = {name: dict(config.options[name]) for name in config.features if name in config.options}
    write_json(root / BUILD / STATE, content | {"features": list(config.features), "options": options})


def _name(source: Location) -> str:
    return str(source.resolve()) if isinstance(source, Path) else str(source)


def _check_sync(sync: str | None, config: BuildConfig, marks: Mapping[str, str]) -> str | None:
    """Hash of what sync scores depend on: the network, and the rows of the feature that it hears.

    Raises:
        ValueError: the network cannot be read or hears a feature that is not stored, or one is needed and not given.
    """
    if sync is None:
        if config.face == "sync":
            raise ValueError("face: sync needs a sync network; name a run or file with --sync")
        return None
    from lawdnet.evaluation.sync import SyncScorer  # brings torch, which builds without it do not need

    scorer = SyncScorer(Path(sync))
    if scorer.feature and scorer.feature not in config.features:
        stored = ", ".join(config.features)
        raise ValueError(f"{sync}: hears {scorer.feature}, which is not among the features {stored}; add it")
    return digest([scorer.sha256, marks.get(scorer.feature or "")])


def _check_rules(config: BuildConfig, has_sync: bool) -> None:
    """Refuse a rule about scores that nothing will measure before the work, not after it.

    Raises:
        ValueError: a rule needs sync scores, and there is no network to give them.
    """
    for text in config.where:
        name = next((part.name for part in parse_rule(text).conditions if part.name.startswith("sync_")), None)
        if name and not has_sync:
            raise ValueError(f"rule {text!r}: {name} was not measured; name a run or file with --sync")
