"""Measures a trained network on held-out videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.data.manifest import Dataset, SegmentRef

ROWS = {"generated": "", "baseline": "baseline_", "truth": "truth_"}
"""Columns of the table, and the prefix that their metrics have."""


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
            help="Fail unless this holds, such as 'mouth_correlation>=0.8'; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure a generator or a sync network on a dataset's held-out videos.

    The table shows the generated mouths beside the truth (what a perfect generator would get) and a baseline that
    ignores the audio: still mouths of the same person, a new one every 9 frames. A generator that does not beat the
    baseline at mouth_correlation or sync_… has not learnt to follow the audio, whatever its PSNR.

    Example: `lawdnet evaluate run dataset --sync run --gate 'mouth_correlation>=0.8'`
    """
    with console.parsing_options():
        from lawdnet.training.gates import check_gates, parse_gate

        gates = [parse_gate(text) for text in gate]
    console.existing(checkpoint)
    from lawdnet.data.manifest import Dataset
    from lawdnet.evaluation.plan import plan
    from lawdnet.storage import locate

    opened = Dataset(locate(dataset))
    refs = plan(opened.segments(), limit=limit, split=split)
    if not refs:
        raise ValueError(
            f"{dataset}: no segments of split {split!r}; build with a larger --set val_fraction, or give --split train"
        )
    content = _measure(checkpoint, opened, refs, sync, device=device, seed=seed)
    figures: dict[str, float] = content["figures"]
    content |= {"split": split, "videos": len({ref.video_id for ref in refs})}
    content["failed"] = check_gates(gates, figures, content["kind"])
    scope = f"{console.count(content['videos'], 'video')}, {console.count(int(figures['segments']), 'segment')}"
    lines = [f"{content['stage']} of {checkpoint} on {scope} of {dataset} ({split})", *table(content)]
    lines += [f"note: {note}" for note in content["notes"]]
    console.result(content, lines, as_json)
    if content["failed"]:
        raise ValueError(f"gate not passed: {'; '.join(content['failed'])}")


def _measure(
    checkpoint: Path, dataset: Dataset, refs: list[SegmentRef], sync: Path | None, *, device: str, seed: int
) -> dict[str, Any]:
    """Measure the generator or sync network in `checkpoint`."""
    from lawdnet.models.saved import read_meta

    folder = None if checkpoint.is_file() else find_network(checkpoint)
    with console.Meter("evaluate", "segments") as meter:
        if folder and read_meta(folder)["kind"] == "syncnet":
            return _measure_syncnet(folder, dataset, refs, device=device, seed=seed, meter=meter)
        return _measure_generator(folder or checkpoint, dataset, refs, sync, device=device, seed=seed, meter=meter)


def find_network(path: Path) -> Path:
    """Find the newest generator checkpoint below a path, or the newest sync network's if there is no generator.

    Raises:
        ValueError: there is neither.
    """
    from lawdnet.models.saved import find_checkpoint

    try:
        return cast("Path", find_checkpoint(path))  # below a local path
    except ValueError as error:
        try:
            return cast("Path", find_checkpoint(path, "syncnet"))
        except ValueError:
            raise error from None


def _measure_generator(
    checkpoint: Path,
    dataset: Dataset,
    refs: list[SegmentRef],
    sync: Path | None,
    *,
    device: str,
    seed: int,
    meter: console.Meter,
) -> dict[str, Any]:
    from lawdnet.evaluation.sync import SyncScorer
    from lawdnet.evaluation.validation import metrics, validate
    from lawdnet.inference.engine import open_generator
    from lawdnet.models.device import pick_device

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
        seed=seed,
        on_segment=meter.update,
    )
    figures = metrics(sums)
    notes = _notes(meta, dataset, refs)
    if scorer and scorer.sha256 == meta.get("syncnet_hash"):
        notes.append(
            "lip sync was measured by the network that it was trained against, so its sync metrics are too good"
        )
    notes += _missing(figures)
    return {"stage": meta.get("stage", "generator"), "kind": "gan", "figures": figures, "notes": notes}


def _missing(figures: Mapping[str, float]) -> list[str]:
    """Say which metrics of a generator were not measured, and what they need."""
    from lawdnet.training.gates import VALIDATION_METRICS

    missing: dict[str, list[str]] = {}
    for name, metric in VALIDATION_METRICS.items():
        if metric.kind == "gan" and name not in figures:
            missing.setdefault(metric.needs, []).append(name)
    return [f"not measured: {', '.join(names)}; needs {needs}" for needs, names in missing.items()]


def _measure_syncnet(
    folder: Path, dataset: Dataset, refs: list[SegmentRef], *, device: str, seed: int, meter: console.Meter
) -> dict[str, Any]:
    from lawdnet.evaluation.validation import metrics, offsets, validate_sync
    from lawdnet.models.device import pick_device
    from lawdnet.models.saved import load_syncnet, read_meta

    chosen = pick_device(device)
    meta = read_meta(folder)
    syncnet = load_syncnet(folder)
    _check_feature(folder, meta, dataset, meta["sync_feature"], syncnet.config.audio_dim)
    sums = validate_sync(
        syncnet.to(chosen),
        refs,
        feature=meta["sync_feature"],
        device=chosen,
        seed=seed,
        on_segment=meter.update,
    )
    return {
        "stage": meta["stage"],
        "kind": "syncnet",
        "figures": metrics(sums),
        "offsets": offsets(sums),
        "notes": _notes(meta, dataset, refs),
    }


def _check_feature(checkpoint: Path, meta: Mapping[str, Any], dataset: Dataset, name: str, wanted: int) -> None:
    """Check that the dataset has the network's audio feature, computed with the same weights.

    Raises:
        ValueError: the feature is missing, or has another dimension or other weights.
    """
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
    from lawdnet.training.gates import VALIDATION_METRICS

    figures = content["figures"]
    if content["kind"] == "syncnet":
        rows = [
            (name, f"{figures[name]:8.4g}  {VALIDATION_METRICS[name].text}")
            for name in ("accuracy", "offset_within_one")
        ]
        found = ", ".join(f"{offset:+d}: {number}" for offset, number in content["offsets"].items() if number)
        return console.columns([*rows, ("offsets", f"{found}  frames: segments; positive = the audio is late")])
    head = "".join(f"{name:>11}" for name in ROWS)
    rows = [("", head)]
    for name in (name for name in VALIDATION_METRICS if name in figures):
        cells = (f"{figures[row + name]:11.4g}" if row + name in figures else f"{'–':>11}" for row in ROWS.values())
        rows.append((name, f"{''.join(cells)}  {VALIDATION_METRICS[name].text}"))
    return console.columns(rows)


if __name__ == "__main__":
    console.run(evaluate)
