"""lawdnet evaluate, compare and export, from the command line to the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from jobs.cli import app
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.legacy import load_legacy_generator
from lawdnet.models.saved import STATE
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.storage import sha256
from lawdnet.synthetic import write_talking_head
from lawdnet.video import decode, write_video
from tests.support.drawn_datasets import drawn_dataset, drawn_segment
from tests.support.s3_server import S3Server
from tests.support.tiny_checkpoints import checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a run with an untrained generator and sync network."""
    root: Path = tmp_path_factory.mktemp("evaluate")
    videos = {name: [drawn_segment(name, n)] for n, name in enumerate(("val_a", "val_b", "seen"))}
    drawn_dataset(root / "dataset", videos)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))
    syncnet = SyncNet(SyncNetConfig(audio_dim=320, base_channels=2, face_px=32, head="cosine"))
    meta = {"mouth_px": 32, "crop_width": 80, "features": {"mel": {"dim": 320}}, "dataset_hash": "drawn"}
    judge = checkpoint(root / "run" / "syncnet" / "epoch_0003", "syncnet", syncnet=syncnet, meta=meta)
    meta["syncnet_hash"] = sha256(judge / STATE)
    checkpoint(root / "run" / "clip_96" / "epoch_0012", generator=generator, meta=meta)
    return root


def test_evaluate_shows_the_truth_and_a_baseline(folder: Path) -> None:
    answer = run("evaluate", folder / "run", folder / "dataset", "--device", "cpu")
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("clip_96 of")
    assert "on 2 videos, 2 segments of" in lines[0]
    assert lines[1].split() == ["generated", "baseline", "truth"]
    rows = {line.split()[0]: line.split()[1:4] for line in lines[2:]}
    assert rows["psnr"][2] == "–"
    assert float(rows["mouth_correlation"][2]) > 0.95
    needed = "not measured: sync_distance, sync_confidence, sync_in_time; needs a sync network (--sync)"
    assert f"note: {needed}" in lines


def test_evaluate_as_json(folder: Path) -> None:
    sync = ("--sync", folder / "run")
    answer = run("evaluate", folder / "run", folder / "dataset", "--split", "train", *sync, "--json")
    content = json.loads(answer.stdout)
    assert (content["videos"], content["split"], content["kind"]) == (1, "train", "gan")
    assert {"psnr", "baseline_psnr", "truth_mouth_correlation", "truth_sync_distance"} <= content["figures"].keys()
    assert "learnt by heart" in content["notes"][0]
    assert "trained against, so its sync metrics are too good" in content["notes"][1]


def test_a_run_and_a_dataset_in_a_bucket_are_measured_alike(folder: Path, s3: S3Server) -> None:
    assert s3.root is not None
    for path in folder.rglob("*"):
        if path.is_file():
            (s3.root / str(path.relative_to(folder))).write_bytes(path.read_bytes())
    for stage in ("run", "run/syncnet"):
        local, remote = (
            json.loads(run("evaluate", where / stage, where / "dataset", "--json").stdout)
            for where in (folder, s3.root)
        )
        assert local["figures"].keys() == remote["figures"].keys()
        assert all(remote["figures"][name] == pytest.approx(value) for name, value in local["figures"].items())


def test_evaluate_says_what_was_measured_and_what_is_missing(folder: Path) -> None:
    content = json.loads(run("evaluate", folder / "run", folder / "dataset", "--sync", folder / "run", "--json").stdout)
    assert content["protocol"]["dataset"] == "drawn"
    assert content["protocol"]["sync"]["sha256"] == sha256(folder / "run" / "syncnet" / "epoch_0003" / STATE)
    assert content["protocol"]["most frames of a segment"] == 108
    assert any("lawdnet weights face_landmarker" in note for note in content["notes"])
    assert any(note.startswith("not measured: fid; ") for note in content["notes"])
    names = {"sync_accuracy_25", "truth_sync_foreign_25", "cross_sync_accuracy_9", "cross_sync_distance"}
    assert names <= content["figures"].keys()


def test_cross_audio_stands_apart_from_reconstruction(folder: Path) -> None:
    answer = run("evaluate", folder / "run", folder / "dataset", "--sync", folder / "run")
    first, second = answer.stdout.split("Driven by another person's audio:")
    assert "psnr" in first
    assert "psnr" not in second
    assert "sync_accuracy_25" in second


def test_evaluate_writes_a_report_with_videos(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    answer = run("evaluate", folder / "run", folder / "dataset", "--html", page)
    assert answer.exit_code == 0, answer.output
    html = page.read_text(encoding="utf8")
    assert html.count('<video src="data:video/mp4;base64,') == 2
    assert "truth, generated, baseline, driven by another person" in html
    assert "opening_correlation" in html, "as a note that it was not measured"
    assert "<td>dataset</td><td>drawn</td>" in html


def test_a_missed_gate_is_a_failure(folder: Path) -> None:
    missed = run("evaluate", folder / "run", folder / "dataset", "--gate", "mouth_correlation>=0.9")
    assert missed.exit_code == 1
    assert "psnr" in missed.stdout, "the table is shown anyway"
    assert "gate not passed: mouth_correlation>=0.9: it is" in missed.stderr
    assert run("evaluate", folder / "run", folder / "dataset", "--gate", "mouth_correlation>=-1").exit_code == 0
    wrong = run("evaluate", folder / "run", folder / "dataset", "--gate", "psnr>=20")
    assert (wrong.exit_code, "ignores the audio" in wrong.stderr) == (2, True)


def test_evaluate_measures_a_sync_network(folder: Path) -> None:
    answer = run("evaluate", folder / "run" / "syncnet", folder / "dataset", "--json")
    content = json.loads(answer.stdout)
    assert content["kind"] == "syncnet"
    assert sum(content["offsets"].values()) == 2
    assert 0 <= content["figures"]["accuracy"] <= 1
    assert "positive = the audio is late" in run("evaluate", folder / "run" / "syncnet", folder / "dataset").stdout


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"audio_feature": "hubert"}, "no feature 'hubert'; the dataset has mel"),
        ({"generator": {"audio_dim": 29}}, "needs 29 mel values per frame"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(folder: Path, tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    config = GeneratorConfig(**{"base_channels": 4, "warp_grid": 8, "audio_dim": 320} | meta.pop("generator", {}))
    checkpoint(tmp_path / "c", generator=Generator(config), meta={"mouth_px": 32, **meta})
    answer = run("evaluate", tmp_path / "c", folder / "dataset")
    assert (answer.exit_code, message in answer.stderr) == (1, True), answer.stderr


def test_evaluate_needs_held_out_segments(folder: Path) -> None:
    answer = run("evaluate", folder / "run", folder / "dataset", "--split", "test")
    assert (answer.exit_code, "no segments of split 'test'" in answer.stderr) == (1, True)
    assert run("evaluate", folder / "nothing", folder / "dataset").exit_code == 1


def test_export_refuses_what_the_published_code_would_scramble(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "netG.pth"
    refused = run("export", folder / "run", "--out", out)
    assert (refused.exit_code, out.exists()) == (1, False)
    assert "scrambles it" in refused.stderr
    assert "--force writes it anyway" in refused.stderr
    forced = run("export", folder / "run", "--out", out, "--force", "--json")
    content = json.loads(forced.stdout)
    assert (content["stage"], content["epoch"], len(content["problems"])) == ("clip_96", 12, 3)
    assert load_legacy_generator(out)[0].config.warp_layout == "correct"
    assert run("export", folder / "run", "--out", tmp_path / "file.txt").exit_code == 2


def test_an_exported_file_has_the_metrics_of_its_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "netG.pth"
    assert run("export", folder / "run", "--out", out, "--force").exit_code == 0
    figures = [
        json.loads(run("evaluate", path, folder / "dataset", "--json").stdout)["figures"]
        for path in (folder / "run", out)
    ]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of the same drawn head with different speech, and a shortened copy of the second."""
    root: Path = tmp_path_factory.mktemp("clips")
    for speech, name in enumerate(("real", "other")):
        write_talking_head(root / f"{name}.mp4", identity=1, motion=2, speech=3 + speech, seconds=2, size=(160, 128))
    write_video(root / "short.mp4", [picture for _, picture in decode(root / "other.mp4")][:20])
    return root


def test_compare_measures_what_it_can(clips: Path, folder: Path) -> None:
    answer = run("compare", clips / "real.mp4", clips / "other.mp4", "--sync", folder / "run", "--json")
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert (content["frames"], content["mouth_frames"], content["missing"]) == (50, 50, {})
    assert content["figures"]["lmd"] > 0.01
    assert content["figures"]["mouth_correlation"] < 0.7
    assert np.isfinite(list(content["sync"]["truth"].values())).all()
    same = json.loads(run("compare", clips / "real.mp4", clips / "real.mp4", "--json").stdout)["figures"]
    assert (same["psnr"], same["lmd"], round(same["mouth_correlation"], 6)) == (100, 0, 1)


def test_compare_says_what_differs_and_what_is_missing(clips: Path) -> None:
    answer = run("compare", clips / "other.mp4", clips / "short.mp4", "--landmarks", "openface")
    assert answer.exit_code == 0, answer.output
    assert "lengths differ: 20 and 50 frames" in answer.stdout
    assert "not measured: landmarks of short.mp4 (no short.csv" in answer.stdout
    bare = run("compare", clips / "other.mp4", clips / "short.mp4", "--landmarks", "none", "--json")
    assert json.loads(bare.stdout)["figures"].keys() == {"psnr", "ssim"}
    wrong = run("compare", clips / "other.mp4", clips / "short.mp4", "--landmarks", "eyes")
    assert (wrong.exit_code, "unknown source 'eyes'" in wrong.stderr) == (1, True)
