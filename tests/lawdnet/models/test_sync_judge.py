"""SyncNet v2: reading its file, shapes, clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lawdnet.models.syncnet_v2 import SyncNetV2


def test_reads_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SyncNetV2()
    path = tmp_path / "syncnet_v2.model"
    torch.save(network.state_dict(), path)
    judge = SyncNetV2.from_file(path)
    assert not judge.training
    mfcc = torch.randn(2, 1, 13, 20)
    torch.testing.assert_close(judge.embed_audio(mfcc), network.eval().embed_audio(mfcc))


def test_missing_and_foreign_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.model: no such file"):
        SyncNetV2.from_file(tmp_path / "absent.model")
    path = tmp_path / "other.model"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.model: not the weights of syncnet_v2\.model"):
        SyncNetV2.from_file(path)


def test_other_shapes_are_refused() -> None:
    network = SyncNetV2().eval()
    with pytest.raises(ValueError, match="faces: shape"):
        network.embed_lip(torch.zeros(1, 3, 4, 224, 224))
    with pytest.raises(ValueError, match="mfcc: shape"):
        network.embed_audio(torch.zeros(1, 1, 13, 19))
