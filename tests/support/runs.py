"""Tiny runs on grey frames, in this process, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import read_state
from lawdnet.training.checkpoint_store import CheckpointStore
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loggers import METRICS, read_jsonl
from lawdnet.training.options import RunOptions
from lawdnet.training.virtual_ranks import Workers
from tests.support.small_datasets import make_dataset

TINY = [
    "base_channels=4",
    "sync_channels=4",
    "disc_channels=4",
    "disc_max_channels=8",
    "warp_grid=4",
    "key_points=2",
    "stages.mouth_px=32",
    "stages.batch_size=2",
    "stages.samples_per_segment=2",
    "stages.epochs_constant=1",
    "stages.epochs_decay=0",
]
HERE = Workers(0, 0)


def tiny(stages: list[str], *settings: str, preset: str = "small") -> TrainConfig:
    return make_config(preset, stages, [*TINY, *settings])


def here(**options: Any) -> RunOptions:
    return RunOptions(**{"workers": HERE, "validate_every": 0, **options})


def grey(root: Path) -> Dataset:
    """Seven segments to train on (7 batches in an epoch of `tiny`), two held out."""
    return make_dataset(root, {"a": [{}] * 3, "b": [{}] * 4, "val_c": [{}] * 2})


def weights(run: Path, stage: str) -> dict[str, Any]:
    newest = CheckpointStore(run / stage).newest_good()
    assert isinstance(newest, Path)
    return read_state(newest)


def assert_same(first: Any, second: Any, tolerance: float = 1e-6) -> None:
    """Compare everything that resuming needs, except random states."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if key == "random":
            continue
        if isinstance(value, dict):
            assert_same(value, second[key], tolerance)
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(second[key], value, rtol=0, atol=tolerance)
        else:
            assert second[key] == value, key


def rows(run: Path, stage: str, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / stage / METRICS) if row.get("kind") == kind]
