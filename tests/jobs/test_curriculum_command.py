"""`lawdnet curriculum`: from videos to renders of held-out people; a second run repeats nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from lawdnet.data.manifest import Dataset
from lawdnet.synthetic import write_member
from lawdnet.training.stages import SMALL
from lawdnet.video import probe

TINY = ["base_channels=4", "sync_channels=4", "disc_channels=4", "disc_max_channels=8", "warp_grid=4", "key_points=2",
        "stages.mouth_px=32", "stages.batch_size=2", "stages.samples_per_segment=2", "stages.epochs_constant=1",
        "stages.epochs_decay=0"]  # fmt: skip
SETTINGS = ["build.crop_width=80", "build.val_fraction=0.7", *(f"train.{setting}" for setting in TINY)]
OPTIONS = ["--preset", "small", "--workers", "0", *(word for text in SETTINGS for word in ("--set", text))]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["curriculum", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("corpus")
    for index in range(5):
        write_member(folder, index, seconds=2.4, seed=1)
    return folder


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, Result]:
    out: Path = tmp_path_factory.mktemp("made") / "out"
    answer = run(corpus, "--out", out, *OPTIONS)
    assert answer.exit_code == 0, answer.output
    return out, answer


def files(out: Path) -> dict[Path, int]:
    kinds = ("dataset/segments/*.parquet", "run/*/epoch_*/state.pt", "renders/*.mp4")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in out.glob(kind)}


def test_the_whole_curriculum(corpus: Path, made: tuple[Path, Result]) -> None:
    out, answer = made
    rows = Dataset(out / "dataset").videos().to_pylist()
    held_out = [Path(row["path"]).stem for row in rows if row["split"] == "val"]
    assert 2 <= len(held_out) < len(rows) == 5
    own = {f"{name}--{name}.mp4" for name in held_out}
    others = {f"{name}--{then}.mp4" for name, then in zip(held_out, held_out[1:] + held_out[:1], strict=True)}
    assert {path.name for path in (out / "renders").glob("*.mp4")} == own | others
    assert probe(out / "renders" / min(own)).num_frames in (60, 61)  # the last AAC packet is not cut
    assert {path.parent.parent.name for path in out.glob("run/*/epoch_0001/state.pt")} == {
        stage.name for stage in SMALL
    }
    lines = answer.stdout.splitlines()
    assert lines[1] == f"clip_96 of {out / 'run'} on held-out videos"
    assert lines[2].split() == ["generated", "baseline", "truth"]
    assert any(line.split()[0] == "mouth_correlation" for line in lines[3:])
    assert f"  pairs   {2 * len(held_out)} of {2 * len(held_out)} rendered" in lines
    assert all(step in answer.stderr for step in ("build 5/5 videos: ", "train 5/5 epochs: ", "render 4/4 pairs: "))
    page = (out / "report.html").read_text(encoding="utf8")
    assert all(f"renders/{name}" in page for name in own | others)
    assert "mouth_correlation" in page
    assert "dataset.html" in page
    assert (out / "run.html").is_file()


@pytest.mark.slow
def test_a_second_run_repeats_nothing(corpus: Path, made: tuple[Path, Result]) -> None:
    out, _ = made
    before = files(out)
    answer = run(corpus, "--out", out, *OPTIONS, "--json")
    assert answer.exit_code == 0, answer.output
    assert files(out) == before
    content: dict[str, Any] = json.loads(answer.stdout)
    assert {row["status"] for row in content["renders"]} == {"rendered"}
    assert {"psnr", "truth_mouth_correlation", "baseline_psnr"} <= content["figures"].keys()
    assert content == json.loads((out / "summary.json").read_text())


@pytest.mark.slow
def test_a_dataset_is_used_as_it_is(corpus: Path, made: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = made
    dataset = out / "dataset"
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    shutil.copytree(out / "run", tmp_path / "out" / "run")
    answer = run(dataset, "--out", tmp_path / "out", *OPTIONS, "--json")
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert content["dataset"] == str(dataset)
    assert content["seconds"].keys() == {"train", "render"}
    assert len(list((tmp_path / "out" / "renders").glob("*.mp4"))) == len(content["renders"]) > 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    # without the videos there is still a run and its metrics
    corpus.rename(corpus.with_name("gone"))
    try:
        answer = run(dataset, "--out", tmp_path / "out", *OPTIONS)
    finally:
        corpus.with_name("gone").rename(corpus)
    assert answer.exit_code == 0, answer.output
    assert "nothing was rendered" in answer.stdout
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf8")
    assert "the videos that the dataset was built from are gone" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "seed=1"], "begin with its part, build or train"),
        (["--set", "train.sede=1"], "did you mean seed?"),
        (["--set", "build.crop=1"], "unknown key 'crop'"),
        (["--workers", "many"], "neither N nor MIN:MAX"),
        (["--gate", "psnr>=30"], "ignores the audio"),
    ],
)
def test_wrong_usage_is_2(options: list[str], message: str, tmp_path: Path) -> None:
    answer = run(tmp_path, "--out", tmp_path / "out", *options)
    assert (answer.exit_code, message in answer.stderr) == (2, True), answer.output
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_lacks_something_is_refused_before_the_build(tmp_path: Path) -> None:
    """`full` without VGG19 weights, and on crops that are narrower than its stages."""
    for settings, remedy in (
        ([], "--set train.stages.weights.perceptual=0"),
        (["--set", "train.stages.weights.perceptual=0"], "--set build.crop_width=360"),
    ):
        answer = run(tmp_path / "videos", "--out", tmp_path / "out", "--workers", "0", *settings)
        assert (answer.exit_code, remedy in answer.stderr) == (1, True), answer.output
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_held_out_videos_nothing_is_trained(corpus: Path, tmp_path: Path, ray_session: None) -> None:
    answer = run(corpus, "--out", tmp_path / "out", *OPTIONS, "--set", "build.val_fraction=0")
    assert answer.exit_code == 1
    assert "no video would be held out; leave it above 0" in answer.stderr
    for name, value in (("--features", "deepspeech2"), ("--init", tmp_path / "old.pth")):
        refused = run(corpus, "--out", tmp_path / "out", *OPTIONS, name, value)
        assert (refused.exit_code, name in refused.stderr) == (1, True)
    assert not (tmp_path / "out").exists(), "refused before the build"
    inside = run(corpus, "--out", corpus / "out", *OPTIONS)
    assert "which is never changed; choose another --out" in inside.stderr
