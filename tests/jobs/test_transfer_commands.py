"""`lawdnet merge`, `lawdnet import-lawdnet` and `lawdnet export-segments` on small datasets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.training.config import make_config, valid_keys
from tests.support.transfer_datasets import make_dataset, publish

runner = CliRunner()


@pytest.mark.parametrize("name", ["merge", "import-lawdnet", "export-segments"])
def test_help_teaches(name: str) -> None:
    answer = runner.invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    assert f"Example: lawdnet {name}" in answer.output


def test_the_migration_guide_names_only_what_exists() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text(encoding="utf8")
    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}  # type: ignore[union-attr]
    assert set(re.findall(r"lawdnet ([a-z][a-z-]+)", text)) <= commands
    keys = valid_keys(make_config())
    named = set(re.findall(r"(?:STAGE|clip_288)\.([a-z_.]+[a-z])", text))
    assert len(named) > 10
    assert {f"stages.{key}" for key in named} <= set(keys)
    for key in ("audio_feature", "key_points", "warp_grid", "disc_channels", "disc_max_channels", "sample_every"):
        assert key in text
        assert key in keys


def test_merge_reports_duplicates_and_renamed_videos(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"}, ids={"y.mp4": "taken"})
    make_dataset(tmp_path / "b", {"copy.mp4": "x", "z.mp4": "z"}, ids={"z.mp4": "taken"}, split="val")
    command = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all")]
    answer = runner.invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert "3 videos with 6 segments" in answer.stdout
    assert f"copy.mp4 of {tmp_path / 'b'}: val there, train here" in answer.stdout
    assert f"taken of {tmp_path / 'b'} → taken-2" in answer.stdout
    content = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert (content["videos"], content["segments"]) == (3, 6)
    shown = runner.invoke(app, ["inspect", str(tmp_path / "all")])
    assert "3 of 4 used" in shown.stdout
    assert "1 × duplicate" in shown.stdout


@pytest.mark.parametrize("command", [["merge", "a", "b"], ["import-lawdnet", "x.json"], ["export-segments", "a"]])
def test_results_cannot_be_in_an_object_store(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    publish(tmp_path, {}).rename(tmp_path / "x.json")
    answer = runner.invoke(app, [*command, "--out", "memory://bucket/out"])
    assert answer.exit_code == 1
    assert "local folder" in answer.stderr
    assert not list(tmp_path.glob("memory*"))


def test_merge_needs_two_of_one_format(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, crop_width=40)
    assert runner.invoke(app, ["merge", str(tmp_path / "a"), "--out", str(tmp_path / "all")]).exit_code == 2
    both = runner.invoke(app, ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "all")])
    assert both.exit_code == 1
    assert "crop_width is 20" in both.stderr
    assert both.stderr.count("\n") == 1


def test_an_import_names_what_is_missing_and_can_be_inspected(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(3)}, size=(26, 20))
    command = ["import-lawdnet", str(path), "--out", str(tmp_path / "new"), "--crop-width", "20", "--root", "/x=/y"]
    answer = runner.invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert "import 2/2 videos" in answer.stderr
    assert "ben: too_short, 3 clips" in answer.stderr
    assert "1 of 2 used" in answer.stdout
    assert "deepspeech (29)" in answer.stdout
    assert "--set audio_feature=deepspeech" in answer.stdout
    assert json.loads(runner.invoke(app, [*command, "--json"]).stdout)["segments"] == 1
    for wrong in (["--root", "nothing"], ["--feature", "none"], ["--crop-width", "33"]):
        answer = runner.invoke(app, ["import-lawdnet", str(path), "--out", str(tmp_path / "x"), *wrong])
        assert answer.exit_code == 2, wrong


def test_exported_segments_are_counted_and_missing_audio_is_one_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"}, source=str(tmp_path / "gone"))
    command = ["export-segments", str(tmp_path / "a"), "--out", str(tmp_path / "clips")]
    answer = runner.invoke(app, [*command, "--where", "start_frame>0"])
    assert answer.exit_code == 0, answer.output
    assert len(list((tmp_path / "clips").glob("*-0001.mp4"))) == 2
    assert "wrote 2 segments" in answer.stdout
    [warning] = [line for line in answer.stderr.splitlines() if "warning" in line]
    assert "2 videos, such as x.mp4 (No such file or directory)" in warning
    assert runner.invoke(app, [*command, "--where", "nonsense"]).exit_code == 2
    assert runner.invoke(app, [*command, "--video", "nobody"]).exit_code == 1
