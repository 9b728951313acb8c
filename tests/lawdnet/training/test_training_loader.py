"""Processes that draw samples: what they bring together, and what becomes of them when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import SampleSpec
from lawdnet.training import loader
from lawdnet.training.loader import Batch, rank_batches
from lawdnet.training.position import Position
from tests.support.runs import grey

ROOT = Path(__file__).resolve().parents[3]
SPEC = SampleSpec(mouth_px=32, num_frames=1, batch_size=4, samples_per_segment=8, audio="mel", sync="mel", windows=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


def drawn(dataset: Dataset, loaders: int, spec: SampleSpec = SPEC) -> list[Batch]:
    stream = rank_batches(
        dataset.segments("train"), spec, seed=3, rank=1, world=2, stored_width=80, epochs=2, start=Position(0, 1),
        virtual_ranks=5, accumulate=2, loaders=loaders,
    )  # fmt: skip
    return [batch for step in stream for batch in step]


@pytest.mark.parametrize("contrast", [False, True])
def test_any_number_of_processes_draws_the_same(dataset: Dataset, contrast: bool) -> None:
    """Two virtual ranks of five, two batches of each to a step, and more processes than segments of a group."""
    spec = replace(SPEC, contrast=contrast)
    torch.manual_seed(7)
    wanted, seed = drawn(dataset, 0, spec), torch.random.get_rng_state()
    for loaders in (1, 5):
        found = drawn(dataset, loaders, spec)
        assert torch.equal(torch.random.get_rng_state(), seed), "nothing is drawn from the trainer's numbers"
        assert len(found) == len(wanted) > 8
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.keys() == theirs.keys()
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values, err_msg=name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = grey(tmp_path / "dataset")
    victim = Path(dataset.segments("train")[0].path)
    whole = victim.read_bytes()
    for damage in ("page", "footer", "missing"):
        if damage == "missing":
            victim.unlink()
        else:
            half = len(whole) // 2
            victim.write_bytes(whole[:4] + b"\xff" * half + whole[4 + half :] if damage == "page" else whole[:half])
        for loaders in (0, 2):
            with pytest.raises(ValueError, match=rf"{victim}: segment a-000\d cannot be read \(") as caught:
                drawn(dataset, loaders)
            assert "Traceback" not in f"{caught.value}"


PROGRAM = """
import sys, time
from pathlib import Path
from lawdnet.data.manifest import Dataset
from lawdnet.training.loader import rank_batches
from tests.lawdnet.training.test_training_loader import SPEC
segments = Dataset(Path(sys.argv[1])).segments("train")
if __name__ == "__main__":
    import ray
    stream = rank_batches(segments, SPEC, seed=3, rank=0, world=1, stored_width=80, epochs=10**6, loaders=2)
    next(stream)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(100):
            next(stream)
"""


@pytest.fixture
def trainer(dataset: Dataset, tmp_path: Path) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(dataset.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def drawing(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that draw: those of the server that forks them."""
    return [two for one in psutil.Process(process.pid).children() for two in one.children()]


def test_they_end_with_their_trainer_and_know_no_ray(trainer: subprocess.Popen[str]) -> None:
    found = drawing(trainer)
    assert len(found) == 2
    assert not any("/ray/" in Path(f"/proc/{one.pid}/maps").read_text() for one in found)
    trainer.kill()
    gone, alive = psutil.wait_procs(found, timeout=30)
    assert (len(gone), alive) == (2, [])


def test_one_that_is_killed_is_an_error(trainer: subprocess.Popen[str]) -> None:
    os.kill(drawing(trainer)[0].pid, signal.SIGKILL)
    _, errors = trainer.communicate("\n" * 10, timeout=60)
    assert trainer.returncode == 1
    assert "RuntimeError: a process that draws samples was killed (" in errors
    assert "use fewer: --loaders" in errors


def test_little_shared_memory_means_no_processes(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They would be killed when it is full."""
    wanted = drawn(dataset, 0)
    usage = loader.shutil.disk_usage("/")._replace(free=1 << 16)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(loader, "_drawn_by", lambda *given: pytest.fail("processes were started"))
    assert len(drawn(dataset, 2)) == len(wanted)
    assert "samples are drawn in the trainer's process" in caplog.text
