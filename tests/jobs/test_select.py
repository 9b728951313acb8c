"""`lawdnet select` and `lawdnet inspect` on small datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs import console
from jobs.cli import app
from lawdnet.data.manifest import Dataset
from lawdnet.storage import locate
from tests.support.small_datasets import Scores, make_dataset

VIDEOS: dict[str, list[Scores]] = {
    "anna": [{"yaw": 0.0}, {"yaw": 20.0}],
    "val_eve": [{"yaw": 10.0}, {"yaw": None}],
}
runner = CliRunner()


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(make_dataset(tmp_path / "base", VIDEOS).root)


def test_without_out_only_the_funnel_is_shown(base: str, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["select", base, "--where", "yaw>=5", "--where", "num_frames<=54 and yaw<15"])
    assert answer.exit_code == 0, answer.output
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert lines[1] == ["measured", "4"]
    assert lines[2] == ["yaw>=5", "2", "(50.0", "%)", "2", "1", "of", "them", "not", "measured"]
    assert lines[3][-4:] == ["1", "(50.0", "%)", "1"]
    assert "1 segment from 1 video" in answer.stdout
    assert "add --out" in answer.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("extra", [[], ["--copy"], ["--max-per-video", "1"]])
def test_a_selection_can_be_inspected(base: str, tmp_path: Path, extra: list[str]) -> None:
    out = str(tmp_path / "good")
    answer = runner.invoke(app, ["select", base, "--out", out, "--where", "yaw<=10", *extra, "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert (content["segments"], content["videos"]) == (2, 2)
    assert content["splits"]["val"] == {"videos": 1, "segments": 1, "frames": 54}
    assert content["funnel"][1] == {"rule": "yaw<=10", "dropped": 2, "left": 2, "not_measured": 1}
    shown = runner.invoke(app, ["inspect", out])
    assert shown.exit_code == 0, shown.output
    assert "yaw<=10" in shown.stdout
    assert "2 of 2 used" in shown.stdout
    about = json.loads(runner.invoke(app, ["inspect", out, "--json"]).stdout)
    assert about["hash"] == content["hash"]
    assert about["scores"]["yaw"] == {
        "0 %": 0,
        "5 %": 0.5,
        "25 %": 2.5,
        "50 %": 5,
        "75 %": 7.5,
        "95 %": 9.5,
        "100 %": 10,
        "not_measured": 0,
    }
    assert about["stages"]["crop"] == 4.0


def test_the_report_can_be_in_an_object_store(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = f"memory://pages{tmp_path}/report.html"
    answer = runner.invoke(app, ["inspect", base, "--html", page, "--max-videos", "0"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.endswith(f"report: {page}\n")
    assert b"</html>" in locate(page).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_if_nothing_is_left_the_quantiles_are_shown(base: str, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["select", base, "--out", str(tmp_path / "good"), "--where", "yaw>1000"])
    assert answer.exit_code == 1
    assert "yaw here: 0 % 0, 5 % 1, 25 % 5, 50 % 10, 75 % 15, 95 % 19, 100 % 20" in answer.stdout
    assert answer.stderr.strip() == f"error: {base}: no segment is left; loosen a rule"
    assert not (tmp_path / "good").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no rule given; use --where"),
        (["--where", "speed>1"], "unknown name 'speed'; choose from yaw, num_frames, "),
        (["--where", "face_px>1"], "unknown name 'face_px'"),
        (["--where", "yaw=1"], "write NAME OP VALUE"),
        (["--max-per-video", "0"], "--max-per-video"),
    ],
)
def test_wrong_usage_is_2(base: str, arguments: list[str], words: str) -> None:
    answer = runner.invoke(app, ["select", base, *arguments], env={"COLUMNS": "200"})
    assert answer.exit_code == 2
    assert words in answer.output


def test_inspect_reports_a_missing_file(base: str) -> None:
    (Path(base) / "segments" / "anna.parquet").unlink()
    answer = runner.invoke(app, ["inspect", base])
    assert answer.exit_code == 1
    assert "1 of 2 segment files are missing" in answer.stderr


def test_the_examples_of_a_reason_are_the_longest_videos(tmp_path: Path) -> None:
    lost = [{"path": f"{n}.mp4", "reason": "no_face", "detail": f"{n} frames", "frames": n} for n in (5, 80, 20, 50)]
    root = str(make_dataset(tmp_path / "base", VIDEOS, rejected=lost).root)
    examples = json.loads(runner.invoke(app, ["inspect", root, "--json"]).stdout)["reasons"]["no_face"]["examples"]
    assert [example["path"] for example in examples] == ["80.mp4", "50.mp4", "20.mp4"]
    assert "… and 1 more" in runner.invoke(app, ["inspect", root]).stdout


def test_a_submitted_job_does_not_select_to_where_ray_deletes(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.IN_JOB, "{}")
    answer = runner.invoke(app, ["select", base, "--where", "yaw>=0", "--out", "good"])
    assert answer.exit_code == 2
    assert "give an absolute path" in answer.stderr


def test_inspect_shows_the_groups(base: str, tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    inspected = ["inspect", base, "--html", page, "--max-videos", "0"]
    plain = runner.invoke(app, inspected)
    assert "\n  groups " not in plain.stdout
    assert "</b>groups" not in Path(page).read_text(encoding="utf8")
    rows = Dataset(Path(base)).videos()
    older = rows.drop_columns(["group"])
    pq.write_table(older, Path(base) / "videos.parquet")
    assert runner.invoke(app, inspected).stdout == plain.stdout, "a dataset of an earlier version"
    about = json.loads(runner.invoke(app, ["inspect", base, "--json"]).stdout)
    assert about["groups"] == {"all": 2, "train": 1, "val": 1, "named": 0, "alone": 2}
    names = pa.array(["ann" if path == "anna.mp4" else "" for path in rows["path"].to_pylist()])
    pq.write_table(older.append_column("group", names), Path(base) / "videos.parquet")
    assert "groups     2 (train 1, val 1; 1 video in no group)" in runner.invoke(app, inspected).stdout
    text = " ".join(Path(page).read_text(encoding="utf8").split())
    assert "<b>2</b>groups (1 train, 1 val; 1 video in no group)" in text
    about = json.loads(runner.invoke(app, ["inspect", base, "--json"]).stdout)
    assert about["groups"] == {"all": 2, "train": 1, "val": 1, "named": 1, "alone": 1}
    out = str(tmp_path / "good")
    assert runner.invoke(app, ["select", base, "--out", out, "--where", "yaw<=1000"]).exit_code == 0
    about = json.loads(runner.invoke(app, ["inspect", out, "--json"]).stdout)
    assert about["groups"] == {"all": 2, "train": 1, "val": 1, "named": 1, "alone": 1}, "a selection keeps them"
