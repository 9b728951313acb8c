"""cluster.yaml passes Ray's own checks, and some that Ray does not make."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import app
from pipelines.cluster.resources import PREPROCESS, ROLE, TRAIN
from tests.support.command_lines import parse

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("builder", "trainer")


@pytest.fixture
def config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    return content


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    with pytest.raises(Exception, match="unknown_key"):
        validate_config(prepare_config(config | {"unknown_key": 1}))


def test_groups(config: dict[str, Any]) -> None:
    groups = config["available_node_types"]
    assert set(groups) == {"head", *GROUPS}
    assert groups["head"]["resources"] == {"CPU": 0}
    for name in GROUPS:
        assert groups[name]["resources"]["CPU"] > 0
        assert 0 == groups[name]["min_workers"] < groups[name]["max_workers"]
    assert sum(groups[name]["max_workers"] for name in GROUPS) == config["max_workers"]
    assert 1 <= config["idle_timeout_minutes"] <= 30
    assert groups["builder"]["labels"] == {ROLE: PREPROCESS}
    assert groups["trainer"]["labels"] == {ROLE: TRAIN}
    assert "GPU" not in groups["builder"]["resources"]
    assert groups["trainer"]["resources"]["GPU"] == 1


def test_machines(config: dict[str, Any]) -> None:
    """Only builders are spot machines; every machine can reach the bucket; lines to edit are marked."""
    machines = {name: group["node_config"] for name, group in config["available_node_types"].items()}
    spot = {name for name, machine in machines.items() if "InstanceMarketOptions" in machine}
    assert spot == {"builder"}
    assert machines["builder"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    profiles = {name: machine["IamInstanceProfile"]["Name"] for name, machine in machines.items()}
    assert profiles["builder"] == profiles["trainer"] != profiles["head"]
    lines = (ROOT / "cluster.yaml").read_text(encoding="utf8").splitlines()
    for key in ("region:", "ImageId: &", "ImageId: ami-1", "IamInstanceProfile: {", "IamInstanceProfile: &"):
        found = [n for n, line in enumerate(lines) if key in line]
        assert len(found) == 1, key
        assert any("EDIT" in line for line in lines[found[0] - 2 : found[0] + 1]), key


def test_what_it_installs_exists(config: dict[str, Any]) -> None:
    local = {source for source in config["file_mounts"].values() if not source.startswith("~")}
    assert local == {"constraints.txt", "pyproject.toml"}
    assert all((ROOT / name).is_file() for name in local)
    remote = {target.replace("/home/ubuntu", "~") for target in config["file_mounts"]}
    commands = " ".join(config["setup_commands"] + config["head_setup_commands"])
    assert {word for word in commands.split() if word.startswith("~/lawdnet")} <= remote
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]
    offered = re.findall(r"--extra (\w+)", (ROOT / "cluster.yaml").read_text(encoding="utf8"))
    assert "s3" in offered
    assert set(offered) <= set(extras)
    installs = [command for command in config["setup_commands"] + config["head_setup_commands"] if "uv pip" in command]
    assert len(installs) == 3
    wheels = next(command for command in installs if "download.pytorch.org/whl/cpu" in command)
    installs.remove(wheels)
    (pinned,) = re.findall(r"^torch==.+$", (ROOT / "constraints.txt").read_text(encoding="utf8"), re.MULTILINE)
    assert pinned in wheels.split()
    assert wheels.startswith("command -v nvidia-smi ||"), "only where there is no GPU"
    assert config["setup_commands"].index(wheels) < config["setup_commands"].index(installs[0])
    assert all("--constraint ~/lawdnet/constraints.txt" in command for command in installs)


def test_ray_starts_with_the_token_on_every_node(config: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
        _check_options(shlex.split(starts[0].split("ray start")[1]))


def _check_options(words: list[str]) -> None:
    """Parse the options as `ray start` does; a folder that does not exist yet is accepted."""
    from ray.scripts.scripts import start

    start.make_context("ray start", list(words))


def test_its_examples_are_valid_commands() -> None:
    comments = (ROOT / "cluster.yaml").read_text(encoding="utf8").split("cluster_name")[0]
    lines = [line.removeprefix("#").strip() for line in comments.splitlines() if "lawdnet --address" in line]
    assert len(lines) == 2
    assert [parse(app, shlex.split(line)[1:]) for line in lines] == ["build", "train"]


def test_it_waits_for_apt(config: dict[str, Any]) -> None:
    first, update, install = config["initialization_commands"]
    assert first.startswith("cloud-init status --wait")
    assert "for i in" in update
    assert "DPkg::Lock::Timeout" in install


def test_machines_with_eight_gpus_are_an_option() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    lines = (ROOT / "cluster.yaml").read_text(encoding="utf8").splitlines()
    first = next(n for n, line in enumerate(lines) if "# trainer8:" in line)
    last = next(n for n, line in enumerate(lines) if "# END efa" in line)
    lines[first:last] = [line.replace("# ", "", 1) for line in lines[first:last]]
    config = yaml.safe_load("\n".join(lines))
    config["max_workers"] += config["available_node_types"]["trainer8"]["max_workers"]
    validate_config(prepare_config(config))
    group = config["available_node_types"]["trainer8"]
    assert (group["resources"]["GPU"], group["labels"]) == (8, {ROLE: TRAIN})
    cards = group["node_config"]["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in cards] == [0, 1, 2, 3]
    assert {card["InterfaceType"] for card in cards} == {"efa"}


def test_the_head_may_change_machines_of_its_cluster_only(config: dict[str, Any]) -> None:
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    policy = json.loads((ROOT / "jobs" / "aws" / "head-policy.json").read_text(encoding="utf8"))
    rights = {row["Sid"]: row for row in policy["Statement"]}
    tag = {TAG_RAY_CLUSTER_NAME: config["cluster_name"]}
    for row in rights.values():
        actions = [row["Action"]] if isinstance(row["Action"], str) else row["Action"]
        assert "*" not in actions
        assert "ec2:*" not in actions
        if "Condition" not in row:
            assert set(actions) <= {"ec2:Describe*", "ec2:RunInstances"}
            assert actions == ["ec2:Describe*"] or not any("instance/*" in one for one in row["Resource"])
    for name, kind in (("StartMachinesOfThisCluster", "Request"), ("TagAndStopMachinesOfThisCluster", "Resource")):
        assert rights[name]["Condition"]["StringEquals"] == {f"aws:{kind}Tag/{k}": v for k, v in tag.items()}
    (role,) = rights["GiveThemTheWorkersRole"]["Resource"]
    profile = config["available_node_types"]["builder"]["node_config"]["IamInstanceProfile"]["Name"]
    assert role.endswith(f":role/{profile}")
