"""The command line as users see it: help, usage errors, exit codes, progress and summaries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import console
from jobs.build_dataset import build_config, split
from jobs.cli import app

COMMANDS = [
    "quickstart",
    "synth",
    "build",
    "inspect",
    "select",
    "train",
    "infer",
    "template",
    "render",
    "curriculum",
    "doctor",
]
runner = CliRunner()


def program(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `lawdnet` in a process of its own."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn people, one video without landmarks and an empty file."""
    folder = tmp_path_factory.mktemp("corpus")
    answer = runner.invoke(app, ["synth", str(folder), "--videos", "2", "--seconds", "2.4", "--seed", "3"])
    assert answer.exit_code == 0, answer.output
    (folder / "without.mp4").write_bytes((folder / "drawn_000.mp4").read_bytes())
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    out = tmp_path_factory.mktemp("built") / "dataset"
    answer = runner.invoke(app, ["build", str(corpus), "--out", str(out), "--set", "val_fraction=0", "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert content["videos"] == {"all": 4, "accepted": 2, "rejected": 2, "failed": 0}
    assert content["segments"] == 2
    assert content["splits"]["train"]["segments"] == 2
    assert content["reasons"]["empty_file"]["examples"][0]["path"] == "empty.mp4"
    assert "build 4/4 videos" in answer.stderr
    assert "\r" not in answer.stderr
    return out


def test_options_for_local_files_refuse_uris() -> None:
    answer = runner.invoke(app, ["compare", "s3://bucket/v.mp4", "made.mp4"])
    assert answer.exit_code == 2
    assert "s3://bucket/v.mp4: this command takes local files only; copy it into a local folder first" in answer.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    answer = runner.invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    assert f"Example: lawdnet {name}" in answer.output
    assert "--debug" in answer.output


def test_help_lists_every_command() -> None:
    answer = program("--help")
    assert answer.returncode == 0
    assert all(name in answer.stdout for name in COMMANDS)


def test_commands_import_nothing_heavy() -> None:
    code = "import sys, jobs.cli; print([n for n in 'torch ray cv2 av numpy pyarrow'.split() if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output.startswith("lawdnet ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage"),
        (["dance"], "No such command"),
        (["train", "dataset"], "--out"),
        (["build", "a", "--out", "b", "--frobnicate"], "No such option"),
        (["build", "a", "--out", "b", "--set", "speed=2"], "valid are landmarks, face, features, crop_width"),
        (["build", "a", "--out", "b", "--set", "max_gap"], "write key=value"),
        (["build", "a", "--out", "b", "--set", "max_gap=few"], "max_gap"),
        (["build", "a", "--out", "b", "--set", "max_gap=["], "--set max_gap: '[' is not a YAML value"),
        (["inspect", "a", "--order", "yaw"], "add --html FILE"),
        (["build", "a", "--out", "b", "--features", "smell"], "unknown 'smell'; choose from mel"),
        (["build", "a", "--out", "b", "--crop-width", "33"], "crop_width"),
        (
            ["build", "a", "--out", "b", "--group-by", "parent"],
            "'parent' must be folder, regex:PATTERN, column:",
        ),
        (["build", "a", "--out", "b", "--group-by", "regex:("], "group_by: regex:(: "),
        (["train", "a", "--out", "b", "--workers", "4:2"], "workers: 4:2"),
        (["train", "a", "--out", "b", "--preset", "tiny"], "choose from full, published, small"),
        (["train", "a", "--out", "b", "--stages", "frame_63"], "choose from syncnet, frame_64"),
        (["train", "a", "--out", "b", "--set", "frame_64.batch=1"], "valid are"),
        (["synth", "a", "--videos", "0"], "--videos"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], words: str) -> None:
    answer = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert answer.exit_code == 2
    assert words in answer.output
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "missing", "--out", "b"], "missing: no such file or folder"),
        (["inspect", "missing"], "missing: no dataset here"),
        (["train", "missing", "--out", "b"], "missing: no dataset here"),
        (["infer", "missing", "--video", "v.mp4", "--audio", "a.wav", "--out", "o.mp4"], "missing: no such file"),
    ],
)
def test_a_failure_is_1_and_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = runner.invoke(app, arguments)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir()), "a command that fails leaves nothing behind"


@pytest.mark.parametrize("command", [["build", "."], ["train", "."], ["synth"]])
def test_a_submitted_job_does_not_write_where_ray_deletes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(console.IN_JOB, "{}")
    answer = runner.invoke(app, [*command, *(["--out"] if command != ["synth"] else []), "made"])
    assert answer.exit_code == 2
    assert "give an absolute path" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_exit_codes_of_the_program(tmp_path: Path) -> None:
    failed = program("inspect", str(tmp_path))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback" not in failed.stderr
    with_trace = program("inspect", str(tmp_path), "--debug")
    assert with_trace.returncode == 1
    assert "Traceback" in with_trace.stderr
    assert program("inspect").returncode == 2


def test_inspect(dataset: Path) -> None:
    answer = runner.invoke(app, ["inspect", str(dataset)])
    assert answer.exit_code == 0, answer.output
    assert "2 of 4 used" in answer.stdout
    assert "1 × no_landmarks" in answer.stdout
    assert "without.mp4: no without.csv" in answer.stdout
    content = json.loads(runner.invoke(app, ["inspect", str(dataset), "--json"]).stdout)
    marks = content["scores"]["face_px"]
    assert marks["0 %"] <= marks["50 %"] <= marks["100 %"]
    assert content["extractors"] == {"mel": 320}


def test_build_again_skips_and_another_setting_is_refused(corpus: Path, dataset: Path) -> None:
    command = ["build", str(corpus), "--out", str(dataset), "--set"]
    again = runner.invoke(app, [*command, "val_fraction=0"])
    assert again.exit_code == 0
    assert "about" not in again.stderr
    assert "frames/s" not in again.stderr, "rows of the earlier build are not counted as work"
    other = runner.invoke(app, [*command, "smoothing=2"])
    assert other.exit_code == 1
    assert "smoothing 0.5 → 2.0" in other.stderr


def test_build_without_a_segment_fails(tmp_path: Path, ray_session: None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "empty.mp4").touch()
    answer = runner.invoke(app, ["build", str(source), "--out", str(tmp_path / "dataset")])
    assert answer.exit_code == 1
    assert "1 × empty_file" in answer.stdout
    assert "no video gave a segment" in answer.stderr


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    code = "from jobs.cli import main; main()"
    arguments = ["synth", str(tmp_path), "--videos", "1000", "--seconds", "60"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not any(tmp_path.iterdir()):
            assert time.monotonic() < deadline, "drawing did not start"
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command again to resume"
    assert not list(tmp_path.glob("*.mp4")), "an unfinished video must not remain"


def test_build_settings_are_typed() -> None:
    config = build_config(["smoothing=2", "features=[mel]", "max_gap=3", "mel.hops=mean"], crop_width=160)
    assert (config.smoothing, config.features, config.max_gap, config.crop_width) == (2.0, ("mel",), 3, 160)
    assert config.options == {"mel": {"hops": "mean"}}
    with pytest.raises(ValueError, match=r"mel\.pitch: valid are hops"):
        build_config(["mel.pitch=1"])
    with pytest.raises(ValueError, match="no feature or landmark source 'smell'"):
        build_config(["smell.layer=1"])
    with pytest.raises(ValueError, match="not a whole number"):
        build_config(["max_gap=true"])


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("größe\n\x1b[2J.mp4: [1] 中文")
    console.result({}, ["a\tb.mp4"], as_json=False)
    assert capsys.readouterr() == ("a\\tb.mp4\n", "größe\\n\\x1b[2J.mp4: [1] 中文\n")


def test_split() -> None:
    assert split(" a, b,,") == ("a", "b")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (125, "2 min 5 s"), (3599.7, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_one_line_finds_the_error_of_a_worker() -> None:
    class Wrapped(Exception):
        worker_failures: dict[int, Exception]

    inner, outer = RuntimeError("loss is\nnot finite"), Wrapped("a page of traceback")
    outer.worker_failures = {1: inner}
    assert console.one_line(outer) == "RuntimeError: loss is not finite (--debug shows where)"
    assert console.one_line(PermissionError(13, "Permission denied", "a.mp4")) == "a.mp4: Permission denied"
    renamed = IsADirectoryError(21, "Is a directory", ".out.html.1a2b.tmp", None, "out.html")
    assert console.one_line(renamed) == "out.html: Is a directory"
    assert console.one_line(ValueError("crop_width: odd")) == "crop_width: odd"


def test_a_restarted_meter_forgets_what_came_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with console.Meter("infer", "frames") as meter:
        now = 100.0
        meter.restart(1)
        meter.update(1, 5, event="drawn")
        now = 104.0
        meter.update(3, 5, event="drawn")
        assert meter.seconds == 4.0
    assert capsys.readouterr().err.splitlines() == [
        "infer 1/5 frames: drawn",
        "infer 3/5 frames: drawn, about 4.0 s left",
    ]


def test_meter_without_a_terminal_prints_events_and_few_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Meter("infer", "frames") as meter:
        for done in range(1, 101):
            meter.update(done, 100, event="halfway" if done == 50 else "")
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("infer 50/100 frames: halfway, about")
    assert last == "infer 100/100 frames"
