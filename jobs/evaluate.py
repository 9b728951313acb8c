"""Measures a trained network on held-out videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.data.manifest import Dataset
    from lawdnet.data.segment_list import SegmentRef
    from lawdnet.evaluation.appearance import Appearance
    from lawdnet.evaluation.landmarks import LandmarksByRow
    from lawdnet.evaluation.window import Window
    from lawdnet.report.evaluation import EvaluationTable, SideBySide
    from lawdnet.storage import Location
    from lawdnet.types import UInt8

ROWS = {"generated": "", "baseline": "baseline_", "truth": "truth_"}
"""Columns of the table, and the prefix that their metrics have."""
CROSS = "cross_"
"""Prefix of the metrics of mouths that another person's audio drives."""
CAPTIONS = {"truth_": "truth", "": "generated", "baseline_": "baseline", CROSS: "driven by another person's audio"}
"""Row → its caption beside the others in a video."""


def evaluate(
    checkpoint: options.Checkpoint,
    dataset: options.Dataset,
    split: Annotated[
        str,
        typer.Option(help="val: the held-out videos; train: the training videos, to see what was learnt by heart."),
    ] = "val",
    sync: options.MeasuringSync = None,
    limit: Annotated[int, typer.Option(min=1, help="Most segments to measure per video, spread evenly over it.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed that chooses the frames to measure and the reference images.")] = 0,
    gate: Annotated[
        list[str],
        typer.Option(
            metavar="RULE",
            help="Fail unless this holds, such as 'opening_correlation>=0.5'; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    html: Annotated[
        str, typer.Option(metavar="FILE", help="Also write a report with videos side by side.", show_default=False)
    ] = "",
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure a generator or a sync network on a dataset's held-out videos.

    The table shows the generated mouths beside the truth (what a perfect generator would get) and a baseline that
    ignores the audio: still mouths of the same person, a new one every 9 frames. A generator that does not beat the
    baseline at opening_correlation or sync_… has not learnt to follow the audio, whatever its PSNR. A second table is
    about mouths that another person's audio drives.

    Example: `lawdnet evaluate run dataset --sync run --gate 'opening_correlation>=0.5'`
    """
    with console.parsing_options():
        from lawdnet.training.gates import check_gates, parse_gate

        gates = [parse_gate(text) for text in gate]
    from lawdnet.data.manifest import Dataset
    from lawdnet.evaluation.plan import plan
    from lawdnet.storage import locate

    network = console.existing(locate(checkpoint))

    opened = Dataset(locate(dataset))
    refs = plan(opened.segments(), limit=limit, split=split)
    if not refs:
        raise ValueError(
            f"{dataset}: no segments of split {split!r}; build with a larger --set val_fraction, or give --split train"
        )
    extras = Extras.open(console.located(weights_dir), device, with_videos=bool(html))
    content = _measure(network, opened, refs, sync, extras, device=device, seed=seed)
    figures: dict[str, float] = content["figures"]
    content |= {"split": split, "videos": len({ref.video_id for ref in refs})}
    content["failed"] = check_gates(gates, figures, content["kind"])
    content["protocol"] |= {"dataset": opened.hash, "split": split, "most segments of a video": limit, "seed": seed}
    scope = f"{console.count(content['videos'], 'video')}, {console.count(int(figures['segments']), 'segment')}"
    title = f"{content['stage']} of {checkpoint} on {scope} of {dataset} ({split})"
    lines = [title, *table(content), *(f"note: {note}" for note in content["notes"])]
    if html:
        _write_report(html, title, content, extras)
        lines.append(f"report: {html}")
    console.result(content, lines, as_json)
    if content["failed"]:
        raise ValueError(f"gate not passed: {'; '.join(content['failed'])}")


@dataclass
class Extras:
    """What is measured besides a validation's metrics, on the frames that it shows."""

    landmarks: LandmarksByRow | None
    appearance: Appearance
    videos: SideBySide | None
    notes: list[str]

    @classmethod
    def open(cls, weights_dir: Location | None, device: str, *, with_videos: bool) -> Extras:
        """Open what can be opened; a note says what cannot."""
        from lawdnet.evaluation.appearance import Appearance
        from lawdnet.evaluation.landmarks import LandmarksByRow, MeshLandmarker, find_bundle
        from lawdnet.models.device import pick_device
        from lawdnet.report.evaluation import SideBySide

        appearance = Appearance.open(weights_dir, str(pick_device(device)))
        notes = [f"not measured: {name}; {reason}" for name, reason in appearance.missing.items()]
        landmarks = None
        try:
            landmarks = LandmarksByRow(MeshLandmarker(find_bundle(weights_dir, fetch=True)))
        except ValueError as error:
            notes.append(str(error))
        return cls(landmarks, appearance, SideBySide() if with_videos else None, notes)

    def add(self, window: Window, shown: Mapping[str, UInt8]) -> None:
        """Take the frames of a window; called by `validate`."""
        rows = {"truth_": window.truth_THW3, **shown}
        points = window.points(window.truth_THW3.shape[2])
        for row, frames_THW3 in shown.items():
            count = len(frames_THW3)
            true_THW3 = window.truth_THW3[:count]
            self.appearance.add(row, true_THW3, frames_THW3, points[:count], same_words=row != CROSS)
        if self.videos:
            self.videos.add(window.ref.segment_id, {text: rows[row] for row, text in CAPTIONS.items() if row in rows})

    def protocol(self) -> dict[str, Any]:
        """Return what was measured with which files."""
        found: dict[str, Any] = {"appearance": self.appearance.protocol()}
        if self.landmarks:
            found["landmarks"] = {"text": "face_landmarker.task's mesh", "sha256": self.landmarks.landmarker.sha256}
        return found


def _measure(
    checkpoint: Location,
    dataset: Dataset,
    refs: list[SegmentRef],
    sync: Path | None,
    extras: Extras,
    *,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """Measure the generator or sync network in `checkpoint`."""
    from lawdnet.models.saved import read_meta

    folder = None if checkpoint.is_file() else find_network(checkpoint)
    with console.Meter("evaluate", "segments") as meter:
        if folder and read_meta(folder)["kind"] == "syncnet":
            return _measure_syncnet(folder, dataset, refs, device=device, seed=seed, meter=meter)
        return _measure_generator(
            folder or checkpoint, dataset, refs, sync, extras, device=device, seed=seed, meter=meter
        )


def find_network(path: Location) -> Location:
    """Find the newest generator checkpoint below a path, or the newest sync network's if there is no generator.

    Raises:
        ValueError: there is neither.
    """
    from lawdnet.models.saved import find_checkpoint

    try:
        return find_checkpoint(path)
    except ValueError as error:
        try:
            return find_checkpoint(path, "syncnet")
        except ValueError:
            raise error from None


def _measure_generator(
    checkpoint: Location,
    dataset: Dataset,
    refs: list[SegmentRef],
    sync: Path | None,
    extras: Extras,
    *,
    device: str,
    seed: int,
    meter: console.Meter,
) -> dict[str, Any]:
    from lawdnet.evaluation.plan import LONG_CLIPS, foreign_segments
    from lawdnet.evaluation.sync import SyncScorer
    from lawdnet.evaluation.validation import metrics, validate
    from lawdnet.inference.loading import open_generator
    from lawdnet.models.device import pick_device
    from lawdnet.types import CLIP_FRAMES

    chosen = pick_device(device)
    generator, meta = open_generator(checkpoint)
    _check_feature(checkpoint, meta, dataset, meta["audio_feature"], generator.config.audio_dim)
    scorer = SyncScorer(sync, str(chosen)) if sync else None
    sums = validate(
        generator.to(chosen),
        refs,
        mouth_px=int(meta["mouth_px"]),
        audio=meta["audio_feature"],
        stored_width=dataset.crop_width,
        device=chosen,
        scorer=scorer,
        landmarks=extras.landmarks,
        foreign=foreign_segments(refs),
        clips=LONG_CLIPS,
        seed=seed,
        on_segment=meter.update,
        on_frames=extras.add,
    )
    figures = metrics(sums) | extras.appearance.results()
    notes = _notes(meta, dataset, refs)
    if scorer and scorer.sha256 == meta.get("syncnet_hash"):
        notes.append(
            "lip sync was measured by the network that it was trained against, so its sync metrics are too good"
        )
    notes += [*_missing(figures), *extras.notes]
    protocol = {
        **extras.protocol(),
        "mouth_px": int(meta["mouth_px"]),
        "most frames of a segment": CLIP_FRAMES * LONG_CLIPS,
    }
    if scorer:
        protocol["sync"] = {"text": scorer.name, "sha256": scorer.sha256}
    stage = meta.get("stage", "generator")
    return {"stage": stage, "kind": "gan", "figures": figures, "notes": notes, "protocol": protocol}


def _missing(figures: Mapping[str, float]) -> list[str]:
    """Say which metrics of a generator were not measured, and what they need."""
    from lawdnet.training.gates import VALIDATION_METRICS

    missing: dict[str, list[str]] = {}
    for name, metric in VALIDATION_METRICS.items():
        if metric.kind == "gan" and name not in figures:
            missing.setdefault(metric.needs, []).append(name)
    return [f"not measured: {', '.join(names)}; needs {needs}" for needs, names in missing.items()]


def _measure_syncnet(
    folder: Location, dataset: Dataset, refs: list[SegmentRef], *, device: str, seed: int, meter: console.Meter
) -> dict[str, Any]:
    from lawdnet.evaluation.plan import LONG_CLIPS, foreign_segments
    from lawdnet.evaluation.validation import metrics, offsets, validate_sync
    from lawdnet.models.device import pick_device
    from lawdnet.models.saved import load_syncnet, read_meta
    from lawdnet.types import CLIP_FRAMES

    chosen = pick_device(device)
    meta = read_meta(folder)
    syncnet = load_syncnet(folder)
    _check_feature(folder, meta, dataset, meta["sync_feature"], syncnet.config.audio_dim)
    sums = validate_sync(
        syncnet.to(chosen),
        refs,
        feature=meta["sync_feature"],
        device=chosen,
        foreign=foreign_segments(refs),
        clips=LONG_CLIPS,
        seed=seed,
        on_segment=meter.update,
    )
    return {
        "stage": meta["stage"],
        "kind": "syncnet",
        "figures": metrics(sums),
        "offsets": offsets(sums),
        "notes": _notes(meta, dataset, refs),
        "protocol": {"most frames of a segment": CLIP_FRAMES * LONG_CLIPS},
    }


def _check_feature(checkpoint: Location, meta: Mapping[str, Any], dataset: Dataset, name: str, wanted: int) -> None:
    """Check that the dataset has the network's audio feature, computed with the same weights.

    Raises:
        ValueError: the feature is missing (also of some videos only), or has another dimension or other weights.
    """
    dataset.check_feature(name)
    found = dataset.feature_dim(name)
    if found != wanted:
        raise ValueError(f"{checkpoint}: needs {wanted} {name} values per frame, but {dataset.root} has {found}")
    hashes = [
        known.get(name, {}).get("model_sha256") for known in (meta.get("features", {}), dataset.info["extractors"])
    ]
    if None not in hashes and hashes[0] != hashes[1]:
        raise ValueError(
            f"{dataset.root}: its {name} features were computed with other weights than those that {checkpoint} was "
            "trained with"
        )


def _notes(meta: Mapping[str, Any], dataset: Dataset, refs: list[SegmentRef]) -> list[str]:
    known = meta.get("dataset_hash")
    if known == dataset.hash and any(ref.split == "train" for ref in refs):
        return ["the network was trained on these videos: this shows what it learnt by heart"]
    if known != dataset.hash:
        return [
            "the network was trained on another dataset; the test is fair only if none of these people is in that one"
        ]
    return []


def table(content: Mapping[str, Any]) -> list[str]:
    """Return a line per metric with a column for each of ROWS; for a sync network its metrics and the offsets found."""
    lines = []
    for part in tables(content):
        head = [("", "".join(f"{column:>11}" for column in part.columns))] if len(part.columns) > 1 else []
        rows = [(name, f"{''.join(f'{cell:>11}' for cell in cells)}  {text}") for name, cells, text in part.rows]
        title = [] if part.columns == list(ROWS) or content["kind"] == "syncnet" else [f"{part.title}:"]
        lines += [*title, *console.columns([*head, *rows])]
    if content["kind"] == "syncnet":
        found = ", ".join(f"{offset:+d}: {number}" for offset, number in content["offsets"].items() if number)
        lines += console.columns([("offsets", f"{found}  frames: segments; positive = the audio is late")])
    return lines


def tables(content: Mapping[str, Any]) -> list[EvaluationTable]:
    """Return the tables: reconstruction and cross-audio of a generator, or one of a sync network."""
    from lawdnet.report.evaluation import EvaluationTable
    from lawdnet.training.gates import VALIDATION_METRICS

    figures = content["figures"]
    texts = {name: metric.text for name, metric in VALIDATION_METRICS.items() if metric.kind == content["kind"]}
    texts |= {name: part["text"] for name, part in content["protocol"].get("appearance", {}).items()}

    def rows(prefixes: list[str]) -> list[tuple[str, list[str], str]]:
        return [
            (name, [f"{figures[row + name]:.4g}" if row + name in figures else "–" for row in prefixes], text)
            for name, text in texts.items()
            if prefixes[0] + name in figures
        ]

    if content["kind"] == "syncnet":
        return [EvaluationTable(title="True mouths", columns=["accuracy"], rows=rows([""]))]
    found = [EvaluationTable(title="Own audio (reconstruction)", columns=list(ROWS), rows=rows([*ROWS.values()]))]
    if cross := rows([CROSS]):
        found.append(EvaluationTable(title="Driven by another person's audio", columns=["generated"], rows=cross))
    return found


def _write_report(html: str, title: str, content: Mapping[str, Any], extras: Extras) -> None:
    from lawdnet.report.evaluation import SideBySide, evaluation_report
    from lawdnet.storage import locate

    flat = {name: value for name, value in content["protocol"].items() if not isinstance(value, dict)}
    nested = {"landmarks": content["protocol"].get("landmarks"), "sync": content["protocol"].get("sync")}
    nested |= content["protocol"].get("appearance", {})
    flat |= {name: f"{part['text']}; SHA-256 {part['sha256']}" for name, part in nested.items() if part}
    evaluation_report(
        locate(html),
        title=title,
        tables=tables(content),
        notes=content["notes"],
        protocol={name: str(value) for name, value in flat.items()},
        videos=extras.videos or SideBySide(),
    )


if __name__ == "__main__":
    console.run(evaluate)
