"""Baking images: what the machine runs, and what is asked of AWS (checked against its API's description)."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.aws.bake import MAX_USER_DATA, Recipe, bake

ROOT = Path(__file__).resolve().parents[2]
AMI, MACHINE, BAKED = "ami-0abc", "i-0123", "ami-0def"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The project's cluster.yaml with images."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    for group in config["available_node_types"].values():
        group["node_config"]["ImageId"] = AMI
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def recipe(config_file: Path) -> Recipe:
    return Recipe.read(config_file, "builder")


class Aws:
    """A client whose answers are given, and whose questions must be as AWS describes them."""

    def __init__(self) -> None:
        session = pytest.importorskip("botocore.session", reason="needs boto3").get_session()
        self.client = session.create_client(
            "ec2", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.stub = pytest.importorskip("botocore.stub").Stubber(self.client)

    def answer(self, question: str, **answer: Any) -> None:
        self.stub.add_response(question, answer)

    def states(self, *states: str) -> None:
        for state in states:
            found = {"InstanceId": MACHINE, "State": {"Name": state}}
            self.answer("describe_instances", Reservations=[{"Instances": [found]}])


@pytest.fixture
def aws() -> Iterator[Aws]:
    found = Aws()
    with found.stub:
        yield found
        found.stub.assert_no_pending_responses()


def start(aws: Aws) -> None:
    aws.answer("describe_images", Images=[])
    aws.answer("run_instances", Instances=[{"InstanceId": MACHINE}])


def test_an_image_is_made_and_the_machine_ended(aws: Aws, recipe: Recipe) -> None:
    start(aws)
    aws.states("pending", "running", "stopping", "stopped")
    aws.answer("create_image", ImageId=BAKED)
    aws.answer("describe_images", Images=[{"ImageId": BAKED, "State": "pending"}])
    aws.answer("describe_images", Images=[{"ImageId": BAKED, "State": "available"}])
    aws.answer("terminate_instances")
    assert bake(aws.client, recipe, minutes=1, poll_seconds=0) == BAKED


def test_what_was_baked_before_is_not_baked_again(aws: Aws, recipe: Recipe) -> None:
    aws.answer("describe_images", Images=[{"ImageId": BAKED}])
    assert bake(aws.client, recipe, minutes=1, poll_seconds=0) == BAKED


def test_a_setup_that_does_not_end_is_shown_and_the_machine_ended(
    aws: Aws, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    start(aws)
    aws.answer("get_console_output", Output="many lines\nE: Unable to locate package\n")
    aws.answer("terminate_instances")
    with pytest.raises(ValueError, match="did not end within 0 minutes"):
        bake(aws.client, recipe, minutes=0, poll_seconds=0)
    assert "E: Unable to locate package" in capsys.readouterr().err


def test_a_machine_that_somebody_ends_and_an_image_that_fails(aws: Aws, recipe: Recipe) -> None:
    start(aws)
    aws.states("running", "shutting-down")
    aws.answer("terminate_instances")
    with pytest.raises(ValueError, match="somebody else ended it"):
        bake(aws.client, recipe, minutes=1, poll_seconds=0)
    start(aws)
    aws.states("stopped")
    aws.answer("create_image", ImageId=BAKED)
    aws.answer("describe_images", Images=[{"ImageId": BAKED, "State": "failed"}])
    aws.answer("terminate_instances")
    with pytest.raises(ValueError, match="could not make the image; it is failed"):
        bake(aws.client, recipe, minutes=1, poll_seconds=0)


def test_the_project_s_setup_fits_and_holds_no_secret(recipe: Recipe, config_file: Path) -> None:
    assert len(recipe.user_data) < MAX_USER_DATA
    assert sorted(recipe.files) == ["/home/ubuntu/lawdnet/constraints.txt", "/home/ubuntu/lawdnet/pyproject.toml"]
    assert "auth_token" not in recipe.script
    subprocess.run(["bash", "-n"], input=recipe.script, text=True, check=True)
    assert recipe.name == Recipe.read(config_file, "builder").name
    assert recipe.name != replace(recipe, commands=[*recipe.commands, "true"]).name
    assert Recipe.read(config_file, "head").commands[-1].endswith("boto3")
    assert not recipe.commands[-1].endswith("boto3")


def test_images_to_edit_and_unknown_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="the ImageId of trainer is to be edited"):
        Recipe.read(ROOT / "cluster.yaml", "trainer")
    with pytest.raises(ValueError, match="no group 'gpu'; it has head, builder, trainer"):
        Recipe.read(ROOT / "cluster.yaml", "gpu")


@pytest.mark.parametrize(("commands", "ends"), [(["touch ran"], True), (["false", "touch ran"], False)])
def test_the_script_installs_files_runs_commands_and_stops_the_machine(
    recipe: Recipe, tmp_path: Path, commands: list[str], ends: bool
) -> None:
    """The real script in a real shell; only what needs root and a machine of its own is replaced."""
    tools = tmp_path / "tools"
    tools.mkdir()
    fakes = {"sudo": 'shift 3\nexec "$@"', "chown": "", "shutdown": f"touch '{tmp_path}/stopped'"}
    for name, body in fakes.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    file = tmp_path / "home" / "lawdnet" / "constraints.txt"
    made = replace(recipe, files={str(file): b"ray==2.60\n"}, commands=commands)
    packed = made.user_data.split("<<'END'")[1].split("\n")[1]
    script = gzip.decompress(base64.b64decode(packed)).decode()
    assert script == made.script
    script = script.replace("/dev/console", str(tmp_path / "console"))
    path = f"{tools}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", script], check=False, cwd=tmp_path, env={**os.environ, "PATH": path})
    assert file.read_bytes() == b"ray==2.60\n"
    assert (tmp_path / "ran").exists() == (tmp_path / "stopped").exists() == ends
