"""The config file of Serve and the RayService manifest: Serve reads them, and the application takes their arguments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray.serve", reason="needs ray[serve]: pip install -e '.[serve]'")

from ray.serve.schema import ServeDeploySchema

from pipelines.serve.app import AppConfig
from pipelines.serve.config import KEY_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "jobs" / "kubernetes" / "rayservice.yaml"


def config_file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "serve.yaml").read_text(encoding="utf8"))
    return found


def service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SERVICE.read_text(encoding="utf8"))
    return found


@pytest.mark.parametrize("config", [config_file(), yaml.safe_load(service()["spec"]["serveConfigV2"])])
def test_serve_reads_it(config: dict[str, Any]) -> None:
    (app,) = ServeDeploySchema.model_validate(config).applications
    assert app.import_path == "pipelines.serve.app:build_app"
    settings = AppConfig.parse(app.args)
    assert settings.num_gpus == 0.25
    assert not settings.open_to_all  # whoever reaches the pods needs the key
    assert settings.limits.queue == 256


def test_both_run_the_same() -> None:
    here, there = config_file(), yaml.safe_load(service()["spec"]["serveConfigV2"])
    assert here["http_options"].pop("host") == "127.0.0.1"
    assert there["http_options"].pop("host") == "0.0.0.0"
    assert here == there


def test_every_pod_has_the_volume_and_the_key() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    config = yaml.safe_load(service()["spec"]["serveConfigV2"])
    data = config["applications"][0]["args"]["data"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert data.startswith(mount["mountPath"] + "/")
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
        assert container["envFrom"] == [{"secretRef": {"name": "lawdnet-serve"}}]
    assert f"--from-literal={KEY_VARIABLE}=" in SERVICE.read_text(encoding="utf8")
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"containerPort": config["http_options"]["port"], "name": "serve"} in head["ports"]


def test_a_worker_has_room_for_its_renderers() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    args = yaml.safe_load(service()["spec"]["serveConfigV2"])["applications"][0]["args"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    on_one = int(1 / args["num_gpus"])
    assert on_one * args["num_cpus"] <= int(limits["cpu"])
    assert args["max_replicas"] <= on_one * group["maxReplicas"]


def test_the_commands_of_the_comments_name_files_that_exist() -> None:
    for path in (ROOT / "jobs" / "serve.yaml", SERVICE):
        for line in re.findall(r"^#   (.+)$", path.read_text(encoding="utf8"), re.MULTILINE):
            for word in shlex.split(line, comments=False, posix=False):
                if word.startswith("jobs/"):
                    assert (ROOT / word).is_file(), word
