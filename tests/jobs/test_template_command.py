"""`lawdnet template`, and `lawdnet infer` with its file, on this machine and in a bucket."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.audio import write_wav
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.synthetic import write_talking_head
from lawdnet.video import decode
from tests.support.s3_server import S3Server
from tests.support.tiny_checkpoints import checkpoint

runner = CliRunner()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a video with landmarks, and speech."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))
    meta = {"mouth_px": 32, "features": {"mel": {"dim": 320}}}
    checkpoint(folder / "run" / "frame_32" / "epoch_0001", generator=generator, meta=meta)
    write_talking_head(folder / "anna.mp4", identity=3, motion=3, speech=3, seconds=1.0)
    write_wav(folder / "hello.wav", (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32))
    return folder


def invoke(*arguments: object) -> dict[str, Any]:
    answer = runner.invoke(app, [*map(str, arguments), "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def frames(path: Path) -> np.ndarray:
    return np.stack([frame for _, frame in decode(path)])


def test_a_template_renders_what_its_video_does(given: Path, tmp_path: Path) -> None:
    made = invoke("template", given / "run", given / "anna.mp4", "--out", tmp_path / "anna.template")
    assert (made["frames"], made["with_face"], len(made["references"])) == (25, 25, 5)
    common = ["--audio", given / "hello.wav", "--device", "cpu"]
    for name, video in (("direct", given / "anna.mp4"), ("prepared", tmp_path / "anna.template")):
        invoke("infer", given / "run", "--video", video, *common, "--out", tmp_path / f"{name}.mp4")
    assert np.array_equal(frames(tmp_path / "direct.mp4"), frames(tmp_path / "prepared.mp4"))
    assert len(frames(tmp_path / "direct.mp4")) == 13


def test_everything_may_be_in_a_bucket(given: Path, s3: S3Server, tmp_path: Path) -> None:
    assert s3.root is not None
    for path in given.rglob("*"):
        if path.is_file():
            (s3.root / str(path.relative_to(given))).write_bytes(path.read_bytes())
    invoke("template", s3.root / "run", s3.root / "anna.mp4", "--out", s3.root / "anna.template")
    for video in ("anna.mp4", "anna.template"):
        out = s3.root / f"{video}.out.mp4"
        made = invoke(
            "infer", s3.root / "run", "--video", s3.root / video, "--audio", s3.root / "hello.wav", "--out", out
        )
        assert (made["out"], made["frames"]) == (str(out), 13)
        (tmp_path / video).write_bytes(out.read_bytes())
    assert np.array_equal(frames(tmp_path / "anna.mp4"), frames(tmp_path / "anna.template"))
    invoke("export", s3.root / "run", "--out", s3.root / "old.pth", "--force")
    assert invoke("infer", s3.root / "old.pth", "--video", s3.root / "anna.mp4", "--audio", s3.root / "hello.wav",
                  "--out", s3.root / "old.mp4")["frames"] == 13  # fmt: skip


def test_mistakes_are_one_clear_line(given: Path, tmp_path: Path) -> None:
    template = tmp_path / "anna.template"
    invoke("template", given / "run", given / "anna.mp4", "--out", template)
    infer = ["infer", str(given / "run"), "--audio", str(given / "hello.wav"), "--out", str(tmp_path / "o.mp4")]
    refused = runner.invoke(app, [*infer, "--video", str(template), "--face", "0"])
    assert refused.exit_code == 2
    assert "is a template; --landmarks and --face were chosen when it was made" in refused.stderr
    template.write_bytes(template.read_bytes()[:999])
    damaged = runner.invoke(app, [*infer, "--video", str(template)])
    assert damaged.exit_code == 1
    assert "not a template that can be used" in damaged.stderr
    folder = runner.invoke(app, ["template", str(given / "run"), str(given / "anna.mp4"), "--out", str(tmp_path)])
    assert folder.exit_code == 2
    assert "is a folder; name a file in it" in folder.stderr
