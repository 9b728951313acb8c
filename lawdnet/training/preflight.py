"""What a stage starts from, and the checks before it: the parent exists, is finished, fits and has passed its gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lawdnet.face.geometry import stage_size
from lawdnet.models.generator import GeneratorConfig
from lawdnet.models.legacy import load_legacy_generator
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.saved import META, STATE, find_checkpoint, read_meta
from lawdnet.storage import Location, local_copy, locate, sha256
from lawdnet.training import gates
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.checkpoint_store import CheckpointStore, metrics_of, position_of
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from lawdnet.training.shapes import generator_config
from lawdnet.training.stages import Stage


class GateError(RuntimeError):
    """A stage is finished but has not passed the gates for the next one."""


def with_perceptual(config: TrainConfig) -> TrainConfig:
    """Check the VGG19 file before workers start, and make its path absolute so that they find it.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    if not config.perceptual_weights:
        return config
    file = locate(config.perceptual_weights)
    VGG19Features.from_file(file)
    return dataclasses.replace(config, perceptual_weights=str(file))


def check_recipe(config: TrainConfig, todo: Sequence[Stage], crop_width: int, *, in_curriculum: bool = False) -> None:
    """Check that the stages to train have what their numbers say: VGG19 weights, and crops that need no enlarging.

    The preset `small` may enlarge crops.

    Args:
        crop_width: width of the dataset's crops in px.
        in_curriculum: whether settings are those of `lawdnet curriculum`, which names the part before the key.

    Raises:
        ValueError: names the stages, what they need, and what to do.
    """
    option = "--set train." if in_curriculum else "--set "
    without = [stage.name for stage in todo if stage.kind == "gan" and stage.weights.perceptual]
    if without and not config.perceptual_weights:
        is_all = len(without) == sum(stage.kind == "gan" for stage in config.stages)
        off = " ".join(f"{option}{name}.weights.perceptual=0" for name in (["stages"] if is_all else without))
        raise ValueError(
            f"{', '.join(without)}: the perceptual loss needs VGG19 weights; give torchvision's vgg19-dcbb9e9d.pth "
            f"with {option}perceptual_weights=FILE (a path or s3://…), or train without this loss: {off}"
        )
    widths = {stage.name: stage_size(stage.mouth_px)[1] for stage in todo}
    narrow = {name: width for name, width in widths.items() if width > crop_width}
    if not narrow or config.preset == "small":
        return
    needs = ", ".join(f"{name} needs crops {width} px wide" for name, width in narrow.items())
    wider = f"{'--set build.crop_width=' if in_curriculum else '--crop-width '}{max(narrow.values())}"
    remedy = f"build the dataset with {wider}"
    if mouth_px := crop_width * 4 // 5 // 32 * 32:
        remedy += f", or make the mouth smaller: {' '.join(f'{option}{name}.mouth_px={mouth_px}' for name in narrow)}"
    raise ValueError(f"{needs}; the dataset's are {crop_width} px wide; {remedy}")


def check_chain(run: Location, config: TrainConfig, todo: list[Stage], data: Lineage, init: str) -> None:
    """Check that every stage to train has its parents: finished in the run, earlier in the list, or given by `init`.

    Raises:
        ValueError: a parent is missing or unfinished, or was trained for other crops, features or networks.
    """
    coming: set[str] = set()
    for stage in todo:
        if stage.name not in coming and (parent := _outside(stage, config, init)):
            check_fits(parent, stage, config, data)
        elif stage.init_from and stage.init_from not in coming:
            check_fits(finished(run, stage.init_from, stage.name), stage, config, data)
        if stage.kind == "gan" and stage.weights.sync and "syncnet" not in coming:
            check_fits(finished(run, "syncnet", stage.name), stage, config, data)
        coming.add(stage.name)


def parent_of(stage: Stage, run: Location, config: TrainConfig, init: str) -> Location | None:
    """The checkpoint or old file from which a stage starts; None if it starts from scratch."""
    if outside := _outside(stage, config, init):
        return outside
    return finished(run, stage.init_from, stage.name) if stage.init_from else None


def _outside(stage: Stage, config: TrainConfig, init: str) -> Location | None:
    """The checkpoint or old file that `init` names, for the first generator stage; None for other stages."""
    first = next((row for row in config.stages if row.kind == "gan"), None)
    if not init or stage != first:
        return None
    location = locate(init)
    return location if location.suffix == ".pth" else find_checkpoint(location)


def weights_hash(parent: Location) -> str:
    """SHA-256 of the tensors of a checkpoint, or of an old file."""
    return sha256(parent / STATE if (parent / META).exists() else parent)


def name_in(run: Location, parent: Location) -> str:
    """The path of a checkpoint relative to the run; the whole path if it lies elsewhere."""
    return str(parent).removeprefix(f"{run}/")


def epochs_done(stage_folder: Location) -> int:
    """Complete epochs of a stage's newest good checkpoint; 0 without one."""
    found = CheckpointStore(stage_folder).newest_good()
    return position_of(found).epoch if found else 0


def finished(run: Location, name: str, child: str) -> Location:
    """The last checkpoint of a finished stage.

    Raises:
        ValueError: there is none, or the stage is not finished.
    """
    found = CheckpointStore(run / name).newest_good()
    if not found:
        hint = f", or --set {child}.weights.sync=0" if name == "syncnet" else ""
        raise ValueError(f"{child} needs {name}, which {run} has not trained; add it to --stages{hint}")
    epoch, epochs = position_of(found).epoch, read_meta(found)["epochs"]
    if epoch < epochs:
        done = f"{epoch} of {epochs} epochs"
        raise ValueError(f"{child} needs {name}, of which {run} has only {done}; add it to --stages to finish it")
    return found


def check_fits(parent: Location, stage: Stage, config: TrainConfig, data: Lineage) -> None:
    """Check that the parent was trained for the same crops, features and networks.

    Raises:
        ValueError: it was not; the message says what differs.
    """
    needs = f"{stage.name} cannot start from {parent}"
    if parent.suffix == ".pth":
        _check_old(parent, config, data, needs)
        return
    meta = read_meta(parent)
    if meta["crop_width"] != data.crop_width:
        raise ValueError(
            f"{needs}: it was trained on crops {meta['crop_width']} px wide, the dataset's have "
            f"{data.crop_width}; build the dataset with --crop-width {meta['crop_width']}"
        )
    name = "sync_feature" if meta["kind"] == "syncnet" else "audio_feature"
    wanted = getattr(config, name)
    if meta[name] != wanted:
        raise ValueError(
            f"{needs}: it was trained with the feature {meta[name]}, this run uses {wanted}; "
            f"--set {name}={meta[name]}, or start without it"
        )
    old, new = meta["features"].get(wanted, {}), data.features[wanted]
    for key, what in (("dim", "numbers per frame"), ("model_sha256", "as the hash of its network")):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{needs}: its {wanted} has {old.get(key)} {what}, the dataset's {new.get(key)}; "
                "build the dataset with the same features"
            )
    if meta["kind"] == "gan":
        old_shapes = dataclasses.asdict(GeneratorConfig(**meta["generator"]))
        _check_shapes(old_shapes, dataclasses.asdict(generator_config(config, new["dim"])), needs)


def _check_old(file: Location, config: TrainConfig, data: Lineage, needs: str) -> None:
    """Check an old file, which states the name and size of its feature, but no crop width."""
    with local_copy(file) as local:
        generator, known = load_legacy_generator(local)
    if known["audio_feature"] != config.audio_feature:
        raise ValueError(
            f"{needs}: it was trained with the feature {known['audio_feature']}, this run uses {config.audio_feature}; "
            f"--set audio_feature={known['audio_feature']}"
        )
    dim = data.features[config.audio_feature]["dim"]
    _check_shapes(dataclasses.asdict(generator.config), dataclasses.asdict(generator_config(config, dim)), needs)


def _check_shapes(old: dict[str, Any], new: dict[str, Any], needs: str) -> None:
    differs = [f"{key} {old[key]}, not {new[key]}" for key in new if old[key] != new[key]]
    if differs:
        raise ValueError(f"{needs}: its generator has {', '.join(differs)}; --set the same, or start without it")


def check_gates(run: Location, config: TrainConfig, options: RunOptions, before: Sequence[Stage]) -> None:
    """Check that the stages ahead of the first of `before` have passed the gates for their kind.

    Raises:
        GateError: names the stage and every condition that does not hold.
    """
    if not before:
        return
    wanted = [gates.parse_gate(text) for text in options.gates]
    ahead = config.stages[: [stage.name for stage in config.stages].index(before[0].name)]
    for stage in ahead:
        last = CheckpointStore(run / stage.name).complete()[-1]
        failed = gates.check_gates(wanted, metrics_of(last), stage.kind)
        if failed:
            hint = f"train it longer (--set {stage.name}.epochs_constant=…) or change --gate"
            raise GateError(f"{before[0].name} waits: {stage.name} has not passed {'; '.join(failed)}; {hint}")
