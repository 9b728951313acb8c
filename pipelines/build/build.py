"""The dataset graph: videos → one actor call per video → segment files, index.parquet, videos.parquet, dataset.json.

Every input leaves a small file in DATASET/.build when it is done. A build that is killed and started again lists the
inputs, skips those, and ends with the same rows: the outputs depend on the inputs and the configuration alone. With
more features, other rules or another split the same folder is completed: no picture is decoded again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lawdnet.audio.base import AudioExtractor
from lawdnet.data.config import FORMAT_VERSION, BuildConfig, digest
from lawdnet.data.finalize import finish
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset
from lawdnet.data.rules import parse_rule
from lawdnet.data.transfer import refuse_inside
from lawdnet.landmarks.base import ready_network
from lawdnet.storage import Location, read_json, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.records import DRIVER, EMPTY_ROW, STATE, Outcome, read_outcomes, write_outcome
from lawdnet.types import RejectReason
from pipelines import executor
from pipelines.build.plan import check_gone, remaining
from pipelines.build.task import STALL_SECONDS, Order, VideoBuilder, extractors_of, feature_marks, source_of
from pipelines.cluster import metrics

log = logging.getLogger(__name__)

Row = dict[str, Any]
Progress = Callable[[Row, int, int], None]
"""Called with an input's row (with `stored` where an earlier build made it), the number of inputs done, and of all."""


def build(
    source: Location,
    root: Location,
    config: BuildConfig,
    *,
    weights_dir: Path | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    on_row: Progress | None = None,
) -> Dataset:
    """Builds, or completes, a dataset.

    Args:
        source: folder of videos, one video, a list file, or a remote prefix; never changed.
        root: folder of the dataset, here or in an object store.
        weights_dir: looked in first for the weights of extractors and landmark sources.
        sync: run or file of a sync network that gives every segment an offset and a confidence.
        gpu: share of a GPU that each worker takes; 0 works on CPUs.

    Raises:
        ValueError: no input, weights that are missing, or `root` was built from another source or with settings that
            decide its pictures, or another driver is at work on it.
    """
    source, root = _absolute(source), _absolute(root)
    refuse_inside(root, [source])
    items = list_inputs(source)
    config = _with_stored(source, root, config)
    extractors = extractors_of(config, str(weights_dir) if weights_dir else None)
    marks = feature_marks(config, extractors)
    if config.landmarks != "auto":
        source_of(config, config.landmarks, str(weights_dir) if weights_dir else None)  # says what is missing at once
    sync_mark = _check_sync(sync, config, marks)
    outcomes = read_outcomes(root)
    _check_rules(config, bool(sync_mark) or any(outcome.sync for outcome in outcomes.values()))
    work = remaining(
        items,
        outcomes,
        files={path.name for path in (root / SEGMENTS).glob("*.parquet")},
        marks=marks,
        sync_mark=sync_mark,
        finds_faces=config.landmarks == "auto" and ready_network(weights_dir) is not None,
    )
    check_gone(root, outcomes.keys() - work.keys(), outcomes, marks)
    with lock.held(root / BUILD / DRIVER):
        _claim(source, root, config)
        todo = [item | {"to_complete": kind == "complete"} for item in items if (kind := work[item["key"]])]
        done = [outcomes[key].row for key, kind in work.items() if not kind]
        for number, row in enumerate(done, 1):
            if on_row:
                on_row(row | {"stored": True}, number, len(items))
        if todo:
            order = Order(
                config=config,
                root=str(root),
                run=uuid.uuid4().hex,
                weights_dir=str(weights_dir) if weights_dir else None,
                sync=str(sync) if sync else None,
                sync_mark=sync_mark,
                stall_seconds=STALL_SECONDS,
            )
            _run(todo, order, root, len(items), gpu, on_row)
        return finish(root, config, _described(extractors, config), str(source))


def _described(extractors: Mapping[str, AudioExtractor], config: BuildConfig) -> dict[str, dict[str, Any]]:
    """What dataset.json says of each extractor, so that rendering can make the same one."""
    return {
        name: {
            "dim": made.feature_dim,
            "model_sha256": made.model_sha256,
            "options": dict(config.options.get(name, {})),
        }
        for name, made in extractors.items()
    }


def _absolute(place: Location) -> Location:
    return place.absolute() if isinstance(place, Path) else place


def _with_stored(source: Location, root: Location, config: BuildConfig) -> BuildConfig:
    """The configuration with the features that are stored already: they are added and never taken away.

    Raises:
        ValueError: the folder belongs to another source or another kind of pictures, or no build made it.
    """
    try:
        found = read_json(root / BUILD / STATE)
    except FileNotFoundError:
        if (root / MANIFEST).exists() or (root / SEGMENTS).exists():
            raise ValueError(f"{root}: holds a dataset that no build here made; choose another --out") from None
        found = None
    if found:
        if found["source"] != _name(source):
            raise ValueError(f"{root}: was built from {found['source']}; choose another --out")
        old, new = found["structure"], config.structure()
        if found["format_version"] != FORMAT_VERSION or old != new:
            changed = ", ".join(f"{k} {old.get(k)} → {new[k]}" for k in new if old.get(k) != new[k]) or "the format"
            raise ValueError(f"{root}: was built with other settings ({changed}); choose another --out")
        features = tuple(dict.fromkeys([*found["features"], *config.features]))
        options = {name: found["options"].get(name, {}) for name in features if name not in config.features}
        config = dataclasses.replace(config, features=features, options={**options, **config.options})
    return config


def _claim(source: Location, root: Location, config: BuildConfig) -> None:
    """From here on the folder belongs to this source and configuration; what is refused before binds nothing."""
    content = {"source": _name(source), "format_version": FORMAT_VERSION, "structure": config.structure()}
    options = {name: dict(config.options[name]) for name in config.features if name in config.options}
    write_json(root / BUILD / STATE, content | {"features": list(config.features), "options": options})


def _name(source: Location) -> str:
    return str(source.resolve()) if isinstance(source, Path) else str(source)


def _check_sync(sync: Path | None, config: BuildConfig, marks: Mapping[str, str]) -> str | None:
    """What sync scores depend on: the network, and the rows of the feature that it hears.

    Raises:
        ValueError: it cannot be read, or hears a feature that is not stored; or one is needed and not there.
    """
    if sync is None:
        if config.face == "sync":
            raise ValueError("face: sync needs a sync network; name a run or file with --sync")
        return None
    from lawdnet.evaluation.sync import SyncScorer  # brings torch, which builds without it do not need

    scorer = SyncScorer(sync)
    if scorer.feature and scorer.feature not in config.features:
        there = ", ".join(config.features)
        raise ValueError(f"{sync}: hears {scorer.feature}, which is not among the features {there}; add it")
    return digest([scorer.sha256, marks.get(scorer.feature or "")])


def _check_rules(config: BuildConfig, has_sync: bool) -> None:
    """A rule that will find nothing to judge is refused before the work, not after it.

    Raises:
        ValueError: it needs sync scores, and there is no network to give them.
    """
    for text in config.where:
        name = next((part.name for part in parse_rule(text).conditions if part.name.startswith("sync_")), None)
        if name and not has_sync:
            raise ValueError(f"rule {text!r}: {name} was not measured; name a run or file with --sync")


def _run(todo: Sequence[Row], order: Order, root: Location, total: int, gpu: float, on_row: Progress | None) -> None:
    done = total - len(todo)
    waiting = {item["key"]: item for item in todo}
    with closing(executor.answers(VideoBuilder, order, todo, gpu=gpu, name="build")) as answers:
        for answer in answers:
            executor.check_stop(answer)
            if waiting.pop(answer["key"], None):
                done += 1
                if on_row:
                    on_row(json.loads(answer["row"]), done, total)
    for item in waiting.values():
        done += 1
        row = {**EMPTY_ROW, "path": item["path"], "status": "failed", "reason": str(RejectReason.INTERNAL_ERROR)}
        row |= {"detail": "its outcome was lost; the workers' log says why, and the same build tries it again"}
        write_outcome(root, item["key"], Outcome(list(item["inputs"]), row))
        metrics.built(row)
        if on_row:
            on_row(row, done, total)
