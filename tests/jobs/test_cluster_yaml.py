"""cluster.yaml against Ray's own checks, and against what they do not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


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
    assert set(groups) == {"head", "builder", "trainer"}
    assert all("CPU" in group["resources"] for group in groups.values())
    for name in ("builder", "trainer"):
        assert groups[name]["min_workers"] <= groups[name]["max_workers"]
    assert sum(groups[name]["max_workers"] for name in ("builder", "trainer")) <= config["max_workers"]
    assert groups["builder"]["labels"] == {"lawdnet-role": "preprocess"}
    assert groups["trainer"]["labels"] == {"lawdnet-role": "train"}
    assert "GPU" not in groups["builder"]["resources"]
    assert groups["trainer"]["resources"]["GPU"] == 1
    assert groups["builder"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_what_it_installs_exists(config: dict[str, Any]) -> None:
    local = {source for source in config["file_mounts"].values() if not source.startswith("~")}
    assert local == {"constraints.txt", "pyproject.toml"}
    assert all((ROOT / name).is_file() for name in local)
    remote = {target.replace("/home/ubuntu", "~") for target in config["file_mounts"]}
    commands = " ".join(config["setup_commands"])
    assert {word for word in commands.split() if word.startswith("~/lawdnet")} <= remote


def test_ray_starts_with_the_token_everywhere(config: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
