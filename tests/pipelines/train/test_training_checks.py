"""What a stage refuses to start from, what it waits for, and why a run stops: all in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lawdnet.data.manifest import MANIFEST, SEGMENTS, Dataset
from lawdnet.data.schema import FEATURES, rewrite_segments, to_rows, with_columns
from lawdnet.models.export import to_legacy
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.legacy import generator_to_legacy
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.saved import load_generator
from lawdnet.report import run_report
from lawdnet.storage import write_json
from lawdnet.tasks.lock import held
from lawdnet.training import preflight
from lawdnet.training.checkpoint_store import METRICS, CheckpointStore
from lawdnet.training.config import make_config
from lawdnet.training.position import Position
from lawdnet.training.preflight import GateError
from lawdnet.training.steps import GanStep
from pipelines.train.train import RunOptions, Workers, _threads, train
from tests.support.runs import assert_same, grey, here, rows, tiny, weights
from tests.support.s3_server import S3Server


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """The same dataset under another manifest."""

    def change(**values: Any) -> Dataset:
        opened = grey(tmp_path / "other")
        write_json(tmp_path / "other" / MANIFEST, {**opened.info, **values})
        return Dataset(tmp_path / "other")

    return change


@pytest.mark.parametrize("kind", ["run", "old file"])
def test_another_generator_is_a_start(dataset: Dataset, kind: str, tmp_path: Path) -> None:
    train(dataset, tmp_path / "first", tiny(["frame_32"]), here())
    parent = tmp_path / "first" / "frame_32" / "epoch_0001"
    start = tmp_path / "first"
    if kind == "old file":
        start = parent = tmp_path / "old.pth"
        torch.save(to_legacy(tmp_path / "first" / "frame_32" / "epoch_0001"), start)
    config = tiny(["frame_32"], "frame_32.lr=1e-30", "seed=1")
    train(dataset, tmp_path / "second", config, here(init=str(start)))
    first, second = (load_generator(tmp_path / name / "frame_32" / "epoch_0001")[0] for name in ("first", "second"))
    assert_same(dict(first.state_dict()), dict(second.state_dict()))
    meta = json.loads((tmp_path / "second" / "frame_32" / "epoch_0001" / "meta.json").read_text())
    assert meta["parent"] == str(parent)
    assert len(meta["parent_hash"]) == 64
    with pytest.raises(ValueError, match=r"cannot start from .*: its generator has base_channels 4, not 8"):
        train(dataset, tmp_path / "third", tiny(["frame_32"], "base_channels=8"), here(init=str(start)))


def with_deepspeech(root: Path) -> Dataset:
    """The grey dataset with the feature that published generators hear."""
    opened = grey(root)

    def add(table: pa.Table) -> pa.Table:
        audio = to_rows(np.zeros((table["num_frames"][0].as_py(), 29), np.float32))
        return with_columns(table, {FEATURES + "deepspeech": audio})

    for path in (root / SEGMENTS).iterdir():
        rewrite_segments(path, path.with_suffix(".new"), add)
        path.with_suffix(".new").replace(path)
    extractors = {**opened.info["extractors"], "deepspeech": {"dim": 29, "model_sha256": "x", "options": {}}}
    write_json(root / MANIFEST, {**opened.info, "extractors": extractors})
    return Dataset(root)


def test_a_published_file_is_trained_further(tmp_path: Path) -> None:
    """With the warp layout it has learnt to live with, which is not the default."""
    torch.manual_seed(0)
    config = GeneratorConfig(audio_dim=29, base_channels=4, key_points=2, warp_layout="lawdnet2024")
    theirs, old = Generator(config), tmp_path / "netG_model_epoch_9.pth"
    state = {f"module.{name}": value for name, value in generator_to_legacy(theirs).items()}
    torch.save({"epoch": 9, "state_dict": {"net_g": state}, "optimizer": {}}, old)
    dataset, asked = with_deepspeech(tmp_path / "dataset"), ["audio_feature=deepspeech", "warp_grid=60"]
    with pytest.raises(ValueError, match=r"warp_layout lawdnet2024, not correct, normalise False, not True; --set"):
        train(dataset, tmp_path / "run", tiny(["frame_32"], *asked), here(init=str(old)))
    asked += ["warp_layout=lawdnet2024", "normalise=false"]
    still = tiny(["frame_32"], *asked, "frame_32.lr=1e-30")
    train(dataset, tmp_path / "run", still, here(init=str(old)))
    ours, meta = load_generator(tmp_path / "run" / "frame_32" / "epoch_0001")
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert (ours.config, meta["parent"]) == (config, str(old))
    further = tiny(["frame_32"], *asked, "frame_32.lr=1e-2", "ema_decay=0")
    train(dataset, tmp_path / "further", further, here(init=str(old)))
    moved = load_generator(tmp_path / "further" / "frame_32" / "epoch_0001")[0]
    pairs = zip(moved.parameters(), theirs.parameters(), strict=True)
    changes = [float((new - before).detach().abs().max()) for new, before in pairs]
    assert 1e-3 < max(changes) < 0.3


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"crop_width": 96}, [], r"crops 80 px wide, the dataset's have 96; build the dataset with --crop-width 80"),
        ({"extractors": {"mel": {"dim": 80, "model_sha256": None}}}, [], "its mel has 320 numbers per frame.* 80"),
        ({"extractors": {"mel": {"dim": 320, "model_sha256": "x"}}}, [], "its mel has None as the hash of its network"),
        (
            {"extractors": {"hubert": {"dim": 320}, "mel": {"dim": 320}}},
            ["audio_feature=hubert"],
            "it was trained with the feature mel, this run uses hubert; --set audio_feature=mel",
        ),
        ({}, ["base_channels=8"], "its generator has base_channels 4, not 8"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused(
    dataset: Dataset, other: Any, values: dict[str, Any], settings: list[str], message: str, tmp_path: Path
) -> None:
    train(dataset, tmp_path / "first", tiny(["frame_32"]), here())
    changed = other(**values)
    with pytest.raises(ValueError, match=f"frame_32 cannot start from .*: .*{message}"):
        train(changed, tmp_path / "second", tiny(["frame_32"], *settings), here(init=str(tmp_path / "first")))
    assert not (tmp_path / "second").exists()
    # the same for a parent in the run, whose run.json is lost
    (tmp_path / "first" / "run.json").unlink()
    with pytest.raises(ValueError, match=f"frame_64 cannot start from .*: .*{message}"):
        train(changed, tmp_path / "first", tiny(["frame_64"], *settings), here())


NO_VGG19 = "stages.weights.perceptual=0"


@pytest.mark.parametrize("preset", ["full", "published"])
def test_a_perceptual_loss_without_weights_is_refused(dataset: Dataset, preset: str, tmp_path: Path) -> None:
    stages = ["syncnet", "frame_64", "frame_128"]
    refusal = r"frame_64, frame_128: the perceptual loss needs VGG19 weights; .*s3://.*: --set stages.weights.\w+=0$"
    with pytest.raises(ValueError, match=refusal):
        train(dataset, tmp_path / "run", tiny(stages, preset=preset), here())
    with pytest.raises(ValueError, match=r"^frame_128: .*this loss: --set frame_128\.weights\.perceptual=0$"):
        train(dataset, tmp_path / "run", tiny(stages, "frame_64.weights.perceptual=0", preset=preset), here())
    assert not (tmp_path / "run").exists()
    train(dataset, tmp_path / "run", tiny(["frame_64"], NO_VGG19, preset=preset), here())
    assert (tmp_path / "run" / "frame_64" / "epoch_0001").exists()


def test_vgg19_in_an_object_store_is_used(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = s3.root / "vgg19.pth"
    torch.save(VGG19Features().state_dict(), tmp_path / "vgg19.pth")
    settings = tiny(["frame_64"], f"perceptual_weights={file}", preset="full")
    with pytest.raises(ValueError, match=r"s3://.*vgg19\.pth: no such file"):
        train(dataset, tmp_path / "run", settings, here())
    file.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"s3://.*vgg19\.pth: not the weights of torchvision's VGG19"):
        train(dataset, tmp_path / "run", settings, here())
    assert not (tmp_path / "run").exists()
    file.write_bytes((tmp_path / "vgg19.pth").read_bytes())
    train(dataset, tmp_path / "run", settings, here())
    (row,) = rows(tmp_path / "run", "frame_64", "epoch")
    assert row["perceptual"] > 0


def test_crops_narrower_than_a_stage_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    stages, wide = ["syncnet", "frame_64", "frame_128"], ["syncnet.mouth_px=128", "frame_128.mouth_px=96"]
    refusal = (
        "^syncnet needs crops 160 px wide, frame_128 needs crops 120 px wide; the dataset's are 80 px wide; "
        "build the dataset with --crop-width 160, or make the mouth smaller: "
        "--set syncnet.mouth_px=64 --set frame_128.mouth_px=64$"
    )
    with pytest.raises(ValueError, match=refusal):
        train(dataset, tmp_path / "run", tiny(stages, NO_VGG19, *wide, preset="full"), here())
    assert not (tmp_path / "run").exists()
    fitting = tiny(["frame_64"], NO_VGG19, "frame_64.mouth_px=64", preset="full")
    train(dataset, tmp_path / "run", fitting, here())
    train(dataset, tmp_path / "small", tiny(["frame_32"], "frame_32.mouth_px=96"), here())


def test_the_curriculum_names_its_own_settings(tmp_path: Path) -> None:
    config = tiny(["frame_64"], "frame_64.mouth_px=96", preset="full")
    with pytest.raises(ValueError, match=r"--set train\.perceptual_weights=FILE .*--set train\.stages\.weights"):
        preflight.check_recipe(config, config.stages, 80, in_curriculum=True)
    config = tiny(["frame_64"], NO_VGG19, "frame_64.mouth_px=96", preset="full")
    with pytest.raises(ValueError, match=r"--set build\.crop_width=120, .*--set train\.frame_64\.mouth_px=64$"):
        preflight.check_recipe(config, config.stages, 80, in_curriculum=True)
    with pytest.raises(ValueError, match=r"needs crops 120 px wide; .* 20 px wide; build .*=120$"):
        preflight.check_recipe(config, config.stages, 20, in_curriculum=True)


def test_an_unfinished_parent_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path, tiny(["frame_32"]), here())
    meta = tmp_path / "frame_32" / "epoch_0001" / "meta.json"
    write_json(meta, {**json.loads(meta.read_text()), "epochs": 3})
    with pytest.raises(ValueError, match=r"frame_64 needs frame_32, of which .* has only 1 of 3 epochs"):
        train(dataset, tmp_path, tiny(["frame_64"]), here())


def test_a_gate_holds_the_next_stage_back(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny(["syncnet", "frame_32"])
    running = here(gates=("accuracy>=0.95",), validate_every=1)
    with pytest.raises(GateError, match=r"frame_32 waits: syncnet has not passed accuracy>=0.95: it is 0"):
        train(dataset, tmp_path, config, running)
    assert not (tmp_path / "frame_32").exists()
    figures = tmp_path / "syncnet" / "epoch_0001" / METRICS
    write_json(figures, json.loads(figures.read_text()) | {"accuracy": 0.96})
    train(dataset, tmp_path, config, running)
    assert CheckpointStore(tmp_path / "frame_32").position() == Position(1, 0)
    assert json.loads((tmp_path / "run.json").read_text())["gates"] == ["accuracy>=0.95"]


def test_validation_of_a_sync_network_says_where_it_finds_the_sound(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path, tiny(["syncnet"]), here(validate_every=1))
    (row,) = rows(tmp_path, "syncnet", "validation")
    assert sum(count for name, count in row.items() if name.startswith("offset_at_")) == row["segments"] == 2
    page = tmp_path / "report.html"
    run_report(tmp_path, page)
    assert "Offsets of held-out segments" in page.read_text(encoding="utf8")


def test_a_run_has_one_driver_at_a_time(dataset: Dataset, tmp_path: Path) -> None:
    with held(tmp_path / ".driver"), pytest.raises(ValueError, match=f"{tmp_path}: process .* is working on it"):
        train(dataset, tmp_path, tiny(["frame_32"]), here())
    with held(tmp_path / ".driver"), pytest.raises(ValueError, match=f"{tmp_path}: process .* is working on it"):
        train(dataset, tmp_path, tiny(["clip_96"]), here())  # its checks of the run wait for the lock
    train(dataset, tmp_path, tiny(["frame_32"]), here())
    assert not (tmp_path / ".driver").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": ("psnr>=20",)}, "a generator that ignores the audio can pass this"),
        ({"gates": ("mouth>=0.8",)}, "unknown metric 'mouth'"),
        ({"gates": ("accuracy>=0.9",), "validate_every": 0}, "gates need validation"),
        ({"best": "beauty"}, "unknown metric 'beauty'"),
        ({"loggers": ("paper",)}, "unknown 'paper'"),
        ({"keep_last": 0}, "keep_last: must be at least 1"),
        ({"save_every_steps": -1}, "save_every_steps: must be 0"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**options)


def test_too_many_workers_for_the_machine(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--workers 999: this machine has"):
        train(dataset, tmp_path, tiny(["frame_32"]), RunOptions(workers=Workers(999, 999)))


def test_a_loss_that_stays_bad_stops_the_run(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped steps name their segments; the last good checkpoint is named, and stays as it was."""
    config = tiny(["frame_32"], "frame_32.epochs_constant=2", "max_skipped=1")
    train(dataset, tmp_path, tiny(["frame_32"], "max_skipped=1"), here())
    before = weights(tmp_path, "frame_32")
    losses = GanStep._generator_losses
    monkeypatch.setattr(GanStep, "_generator_losses", lambda self, *a: tuple_with_nan(losses(self, *a)))
    with pytest.raises(RuntimeError, match=r"frame_32 stopped: .*not finite: total.*last good checkpoint is .*0001"):
        train(dataset, tmp_path, config, here())
    assert_same(before, weights(tmp_path, "frame_32"), 0)
    alarms = [row["text"] for row in rows(tmp_path, "frame_32", "alarm")]
    assert len(alarms) == 2
    assert all("Its segments: " in text and "-000" in text for text in alarms)
    monkeypatch.undo()
    train(dataset, tmp_path, config, here())
    assert CheckpointStore(tmp_path / "frame_32").position() == Position(2, 0)


def test_a_sync_loss_that_never_starts_is_one_alarm(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker tells of it; the log has it once, also after resuming."""
    monkeypatch.setattr("pipelines.train.worker.gather", lambda value: [value, value])

    def alarms(epochs: int) -> list[str]:
        settings = (
            "clip_96.init_from=null",
            "sync_below=0.01",
            "plateau_steps=12",
            f"clip_96.epochs_constant={epochs}",
        )
        train(dataset, tmp_path, tiny(["syncnet", "clip_96"], *settings), here())
        return [row["text"] for row in rows(tmp_path, "clip_96", "alarm")]

    assert alarms(1) == [], "7 steps"
    (text,) = alarms(2)
    assert text.startswith("clip_96: the sync loss still does not count after 12 steps: its mean is ")
    assert alarms(4) == [text]


def tuple_with_nan(found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> tuple[torch.Tensor, Any]:
    total, metrics = found
    return total * torch.nan, metrics | {"total": total * torch.nan}


@pytest.mark.parametrize(
    ("preset", "name", "workers", "threads"),
    [("small", "frame_32", 1, 1), ("small", "frame_64", 1, 4), ("small", "frame_64", 4, 2), ("full", "frame_256", 2, 4),
     ("full", "frame_256", 20, 1)],
)  # fmt: skip
def test_small_batches_are_computed_in_one_thread(
    preset: str, name: str, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert _threads(make_config(preset).stage(name), workers) == threads
