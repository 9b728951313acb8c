"""Datasets and renders that lawdnet 0.1.0 made are completed, not made again."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lawdnet.audio.io import write_wav
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import BUILD
from lawdnet.data.records import STATE
from lawdnet.models.generator import Generator as GeneratorNetwork
from lawdnet.models.generator import GeneratorConfig
from lawdnet.synthetic import make_speech
from pipelines.build.build import build
from pipelines.render.pairs import RECORDS, all_pairs
from pipelines.render.render import render
from tests.lawdnet.tasks.test_records import BEFORE
from tests.support.drawn_clip import copy
from tests.support.in_process import map_in_process
from tests.support.tiny_checkpoints import checkpoint

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0, near_duplicates="keep")  # older records have no hashes


class Counting:
    """Works in this process, and remembers on what."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, task: Any, job: Any, items: Sequence[Any], **options: Any) -> Generator[Any, None, None]:
        self.names += [item.name for item in items]
        yield from map_in_process(task, job, items, **options)


def as_before(folder: Path, columns: dict[str, str]) -> None:
    """Rewrite the records of a folder as version 1 had them: the fields of the row stood apart."""
    for path in folder.glob("*.json"):
        if path.name == STATE:
            continue
        record = json.loads(path.read_text())
        steps = {f"seconds_{step}": seconds for step, seconds in record.pop("step_seconds", {}).items()}
        row = steps | {new: record[old] for old, new in columns.items()}
        content = {"inputs": record["inputs"], "row": row, "segments": record.get("rows", [])}
        content |= {"features": record.get("features", {}), "sync": record.get("sync")}
        path.write_text(json.dumps(content | {"result": record.get("result", "")}))
        assert content.keys() | {"result"} == BEFORE.keys()


def test_a_dataset(drawn: Path, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "dataset"
    copy(drawn, source / "a.mp4")
    copy(drawn, source / "b.mp4")
    (source / "text.mp4").write_text("no video")
    before = build(source, root, CONFIG, execute=map_in_process)
    index, videos = before.index(), before.videos()
    as_before(root / BUILD, {name: name for name in BEFORE["row"] if not name.startswith("seconds_")})
    work = Counting()
    again = build(source, root, CONFIG, execute=work)
    assert work.names == []
    assert again.info == before.info
    assert again.index().equals(index)
    assert again.videos().equals(videos)
    averaged = BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lawdnet.data.segments.decode_ticks", lambda *a, **k: pytest.fail("a frame was decoded"))
        assert build(source, root, averaged, execute=work).feature_dim("mel") == 80
    assert work.names == ["a.mp4", "b.mp4"]


def test_a_record_that_cannot_be_read_stops_the_build(drawn: Path, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "dataset"
    copy(drawn, source / "a.mp4")
    build(source, root, CONFIG, execute=map_in_process)
    (record,) = (path for path in (root / BUILD).glob("*.json") if path.name != STATE)
    record.write_text('{"version": 99, "inputs": []}')
    work = Counting()
    with pytest.raises(ValueError, match=r"record version 99, .*; update lawdnet\); delete it to do this item again"):
        build(source, root, CONFIG, execute=work)
    assert work.names == []
    record.unlink()
    build(source, root, CONFIG, execute=work)
    assert work.names == ["a.mp4"]


def test_renders(drawn: Path, tmp_path: Path) -> None:
    copy(drawn, tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    (tmp_path / "speeches").mkdir()
    write_wav(tmp_path / "speeches" / "bye.wav", make_speech(0.4, 1).audio_S)
    torch.manual_seed(0)
    generator = GeneratorNetwork(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))
    meta = {"mouth_px": 32, "crop_width": 80, "features": {"mel": {"dim": 320}}}
    checkpoint(tmp_path / "run" / "clip_256" / "epoch_0012", generator=generator, meta=meta)
    root = tmp_path / "out"
    pairs = all_pairs(tmp_path / "videos", tmp_path / "speeches", root)
    before = render(tmp_path / "run", pairs, root, execute=map_in_process)
    assert [record.status for record in before] == ["rendered", "rejected"]
    names = ("video", "speech", "out", "status", "reason", "detail", "frames", "passed_through", "seconds")
    as_before(root / RECORDS, {name: name for name in names})
    work = Counting()
    again = render(tmp_path / "run", pairs, root, execute=work)
    assert work.names == []
    assert [record.columns() for record in again] == [record.columns() for record in before]
