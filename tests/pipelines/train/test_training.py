"""Stages on Ray Train: the chain, its refusals, and resuming."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import find_checkpoint, read_meta, read_state
from lawdnet.training.loggers import read_jsonl
from pipelines.train.train import METRICS, RunOptions, train
from tests.support.runs import grey, here, tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


def test_refusals_come_before_anything_is_written(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stages, settings, message in (
        (["frame_64"], [], "frame_64 needs frame_32, which .* has not trained"),
        (["clip_96"], ["clip_96.init_from=null"], r"clip_96 needs syncnet.*--set clip_96.weights.sync=0"),
        (["frame_32"], ["perceptual_weights=missing.pth"], "missing.pth: no such file"),
        (["frame_32"], ["audio_feature=hubert"], "no feature 'hubert'; the dataset has mel"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataset, run, tiny(stages, *settings))
    assert not run.exists()


def test_a_chain_of_all_kinds_of_stages(dataset: Dataset, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []
    names = ["syncnet", "frame_32", "clip_96"]
    config = tiny(names, "clip_96.init_from=frame_32")
    train(dataset, run, config, here(), on_epoch=lambda stage, row: seen.append((stage.name, row["epoch"])))
    assert seen == [(name, 1) for name in names]
    last = find_checkpoint(run)
    meta = read_meta(last)
    assert (meta["stage"], meta["parent"]) == ("clip_96", "frame_32/epoch_0001")
    assert meta["dataset_hash"] == dataset.hash
    assert (run / "frame_32" / "samples" / "epoch_0001.png").exists()
    networks = read_state(last)["networks"]
    assert networks.keys() == {"generator", "image_discriminator", "clip_discriminator", "lip_reader"}
    parent = read_state(run / "frame_32" / "epoch_0001")["networks"]["generator"]
    assert any(not torch.equal(networks["generator"][key], value) for key, value in parent.items())

    before = last.stat().st_mtime_ns
    train(dataset, run, config, here())  # nothing is left to do
    assert find_checkpoint(run).stat().st_mtime_ns == before

    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        train(dataset, run, tiny(names, "clip_96.init_from=frame_32", "seed=1"), here())
    with pytest.raises(ValueError, match=r"other settings \(frame_32\)"):
        train(dataset, run, tiny(["frame_32"], "frame_32.batch_size=1"), here())


def kill_workers(ready: Callable[[], bool]) -> tuple[threading.Thread, threading.Event]:
    """Kills this session's training workers with -9 once `ready` says so."""
    killed = threading.Event()

    def wait_and_kill() -> None:
        deadline = time.time() + 120
        while time.time() < deadline and not ready():
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # others come and go meanwhile
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed.set()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread, killed


def test_a_killed_worker_resumes_and_ends_as_undisturbed(dataset: Dataset, tmp_path: Path, ray_session: None) -> None:
    """kill -9 in the second epoch, after a checkpoint within it: at most that many steps are done again, and told."""
    config = tiny(["frame_32"], "frame_32.epochs_constant=2", "frame_32.samples_per_segment=24")
    train(dataset, tmp_path / "calm", config)
    folder = tmp_path / "rough" / "frame_32"
    thread, killed = kill_workers(lambda: any(folder.glob("epoch_0001_step_*/meta.json")))
    train(dataset, tmp_path / "rough", config, RunOptions(save_every_steps=5))
    thread.join()
    assert killed.is_set()
    rows = read_jsonl(folder / METRICS)
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"][-1] == 2
    resumed = [row for row in rows if row["kind"] == "resume"][-1]
    assert resumed["epoch"] == 1
    assert resumed["step"] % 5 == 0
    assert resumed["step"] > 0
    # the step under way counts, and five more if the kill came while a checkpoint was written
    assert resumed["repeated_steps"] <= 11
    calm, rough = (read_state(find_checkpoint(tmp_path / name))["networks"]["generator"] for name in ("calm", "rough"))
    for key, value in calm.items():
        torch.testing.assert_close(rough[key], value, rtol=0, atol=1e-6)
