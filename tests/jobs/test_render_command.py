"""`lawdnet render`: from the command line to the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from jobs.cli import app
from lawdnet.audio.io import write_wav
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.saved import STATE
from lawdnet.synthetic import make_speech, write_talking_head
from lawdnet.video import probe
from tests.support.tiny_checkpoints import checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["render", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, one of them without landmarks, an audio file, and an untrained run."""
    root: Path = tmp_path_factory.mktemp("given")
    write_talking_head(root / "v" / "ann.mp4", identity=1, motion=2, speech=3, seconds=1.2, size=(160, 128))
    (root / "v" / "empty.mp4").touch()
    shutil.copy(root / "v" / "ann.csv", root / "v" / "empty.csv")
    (root / "s").mkdir()
    write_wav(root / "s" / "hello.wav", make_speech(0.8, 1).audio_S)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))
    meta = {"mouth_px": 32, "crop_width": 80, "features": {"mel": {"dim": 320}}}
    checkpoint(root / "run" / "clip_96" / "epoch_0012", generator=generator, meta=meta)
    return root


def test_the_whole_command(given: Path, tmp_path: Path, ray_session: None) -> None:
    out = tmp_path / "out"
    command = (given / "run", "--videos", given / "v", "--speeches", given / "s", "--out", out)
    answer = run(*command)
    assert answer.exit_code == 0, answer.output
    assert probe(out / "ann--hello.mp4").num_frames == 20
    lines = answer.stdout.splitlines()
    assert lines[0].startswith(f"rendered {out} in ")
    assert lines[1:] == [
        "  pairs   1 of 2 rendered",
        "  frames  20 (0.8 s)",
        "not rendered: 1 rejected, 0 failed",
        "  1 × empty_file",
        f"      empty--hello.mp4: {given}/v/empty.mp4: the file is empty",
    ]
    assert "render 2/2 pairs: " in answer.stderr
    assert "ann--hello.mp4: 20 frames" in answer.stderr
    again = json.loads(run(*command, "--json").stdout)
    assert (again["pairs"], again["rendered"], again["rejected"], again["failed"]) == (2, 1, 1, 0)
    assert again["reasons"]["empty_file"]["count"] == 1


def test_a_list_and_no_result(given: Path, tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "pairs.csv").write_text(f"{given}/v/empty.mp4,{given}/s/hello.wav,sub/it.mp4\n")
    answer = run(given / "run", "--pairs", tmp_path / "pairs.csv", "--out", tmp_path / "out")
    assert answer.exit_code == 1
    assert "0 of 1 rendered" in answer.stdout
    assert "no pair was rendered; see the reasons above" in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --videos and --speeches, or --pairs"),
        (["--videos", "v"], "give --videos and --speeches, or --pairs"),
        (["--videos", "v", "--speeches", "s", "--pairs", "p"], "give --videos and --speeches, or --pairs"),
        (["--videos", "ftp://v", "--speeches", "s"], "ftp:// is not supported"),
        (["--videos", "v", "--speeches", "s", "--gpu", "-1"], "--gpu"),
    ],
)
def test_wrong_usage_is_2(options: list[str], message: str, given: Path, tmp_path: Path) -> None:
    answer = run(given / "run", *options, "--out", tmp_path / "out")
    assert (answer.exit_code, message in answer.output) == (2, True), answer.output
    assert not (tmp_path / "out").exists()


def test_failures_are_one_line(given: Path, tmp_path: Path, ray_session: None) -> None:
    rest = ("--videos", given / "v", "--speeches", given / "s", "--out", tmp_path / "out")
    shutil.copytree(given / "run", tmp_path / "damaged")
    state = tmp_path / "damaged" / "clip_96" / "epoch_0012" / STATE
    size = state.stat().st_size
    state.write_bytes(b"x" * size)
    for name, message in (("nothing", "no such run or checkpoint"), ("damaged", "cannot be read; it is damaged")):
        answer = run(tmp_path / name, *rest)
        assert answer.exit_code == 1
        (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
        assert message in line, line
