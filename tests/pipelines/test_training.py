"""Stages on Ray Train: the chain, its refusals, and going on where a run stopped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import find_checkpoint, read_meta, read_state, stage_checkpoints
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loggers import read_jsonl
from pipelines.dataset import build
from pipelines.training import METRICS, train
from tests.pipelines.conftest import copy

TINY = ["base_channels=4", "sync_channels=4", "disc_channels=4", "disc_max_channels=8", "warp_grid=4", "key_points=2",
        "stages.mouth_px=32", "stages.batch_size=2", "stages.samples_per_segment=2", "stages.epochs_constant=1",
        "stages.epochs_decay=0"]  # fmt: skip


def tiny(stages: list[str], *settings: str) -> TrainConfig:
    return make_config("small", stages, [*TINY, *settings])


@pytest.fixture(scope="module")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Dataset:
    folder = tmp_path_factory.mktemp("source")
    for name in ("a", "b", "c"):
        copy(drawn, folder / f"{name}.mp4")
    return build(folder, tmp_path_factory.mktemp("out") / "dataset", BuildConfig(crop_width=80))


def test_refusals_come_before_anything_is_written(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stages, settings, message in (
        (["frame_128"], [], "frame_128 needs frame_64, which .* has not trained"),
        (["clip_256"], ["clip_256.init_from=null"], r"clip_256 needs syncnet.*--set clip_256.weights.sync=0"),
        (["frame_64"], ["perceptual_weights=missing.pth"], "missing.pth: no such file"),
        (["frame_64"], ["audio_feature=hubert"], "no feature 'hubert'; it holds mel"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataset, run, tiny(stages, *settings))
    assert not run.exists()


def test_a_chain_of_all_kinds_of_stages(dataset: Dataset, tmp_path: Path, ray_session: None) -> None:
    run, seen = tmp_path / "run", []
    names = ["syncnet", "frame_64", "clip_256"]
    config = tiny(names, "clip_256.init_from=frame_64")
    train(dataset, run, config, on_epoch=lambda stage, row: seen.append((stage.name, row["epoch"])))
    assert seen == [(name, 1) for name in names]
    last = find_checkpoint(run)
    meta = read_meta(last)
    assert (meta["stage"], meta["parent"]) == ("clip_256", "frame_64/epoch_0001")
    assert meta["dataset_hash"] == dataset.hash
    assert (run / "frame_64" / "samples" / "epoch_0001.png").exists()
    networks = read_state(last)["networks"]
    assert networks.keys() == {"generator", "image_discriminator", "clip_discriminator"}
    parent = read_state(run / "frame_64" / "epoch_0001")["networks"]["generator"]
    assert any(not torch.equal(networks["generator"][key], value) for key, value in parent.items())

    before = last.stat().st_mtime_ns
    train(dataset, run, config)  # nothing is left to do
    assert find_checkpoint(run).stat().st_mtime_ns == before

    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        train(dataset, run, tiny(names, "clip_256.init_from=frame_64", "seed=1"))
    with pytest.raises(ValueError, match=r"other settings \(frame_64\)"):
        train(dataset, run, tiny(["frame_64"], "frame_64.batch_size=1"))


def test_a_killed_worker_goes_on_and_ends_as_undisturbed(dataset: Dataset, tmp_path: Path, ray_session: None) -> None:
    """kill -9 in the second epoch: the third ends with the weights of a run that nobody killed."""
    config = tiny(["frame_64"], "frame_64.epochs_constant=3", "frame_64.samples_per_segment=8")
    train(dataset, tmp_path / "calm", config)
    killed = threading.Event()

    def kill_after_first_epoch() -> None:
        folder = tmp_path / "rough" / "frame_64"
        deadline = time.time() + 120
        while time.time() < deadline and not (folder.exists() and stage_checkpoints(folder)):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.set()

    thread = threading.Thread(target=kill_after_first_epoch)
    thread.start()
    train(dataset, tmp_path / "rough", config)
    thread.join()
    assert killed.is_set()
    rows = read_jsonl(tmp_path / "rough" / "frame_64" / METRICS)
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"][-1] == 3
    calm, rough = (read_state(find_checkpoint(tmp_path / name))["networks"]["generator"] for name in ("calm", "rough"))
    for key, value in calm.items():
        torch.testing.assert_close(rough[key], value, rtol=0, atol=1e-6)
