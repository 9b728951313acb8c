"""The Kubernetes manifests: they pass KubeRay's checks, and agree with cluster.yaml and constraints.txt.

With LAWDNET_CRDS, a folder of KubeRay's published schemas (ray.io_rayclusters.yaml, ray.io_rayjobs.yaml,
ray.io_rayservices.yaml), every field is also checked against those.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import app
from pipelines.cluster import drain
from pipelines.cluster.resources import PREPROCESS, ROLE, TRAIN
from tests.support.command_lines import parse, parse_module

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "jobs" / "kubernetes"
JOBS = ("rayjob-build.yaml", "rayjob-train.yaml")
SUPERVISED = "rayjob-supervised.yaml"
Manifest = dict[str, Any]


def read(name: str) -> Manifest:
    (found,) = read_all(name)
    return found


def read_all(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf8")))


def pin(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf8"), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture
def spec() -> Manifest:
    content: Manifest = read("raycluster.yaml")["spec"]
    return content


@pytest.fixture(params=["raycluster.yaml", "rayservice.yaml"])
def each_spec(request: pytest.FixtureRequest) -> Manifest:
    content: Manifest = read(request.param)["spec"]
    found: Manifest = content.get("rayClusterConfig", content)
    return found


def groups(spec: Manifest) -> dict[str, Manifest]:
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pods(spec: Manifest) -> list[Manifest]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("raycluster.yaml", "RayCluster"),
        ("rayservice.yaml", "RayService"),
        *((job, "RayJob") for job in (*JOBS, SUPERVISED)),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    manifest = read(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", manifest["metadata"]["name"])


def test_the_operators_rules(each_spec: Manifest) -> None:
    """The rules of KubeRay's `ValidateRayClusterSpec`: a cluster that breaks one is accepted, but never starts."""
    spec = each_spec
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["enableInTreeAutoscaling"] is True
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["containers"]
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        assert "labels" not in group["rayStartParams"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_groups_are_those_of_cluster_yaml(spec: Manifest) -> None:
    aws: Manifest = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    machines = aws["available_node_types"]
    found = groups(spec)
    assert {"head", *found} == set(machines)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, role in (("builder", PREPROCESS), ("trainer", TRAIN)):
        group = found[name]
        assert group["labels"] == machines[name]["labels"] == {ROLE: role}
        assert group["replicas"] == group["minReplicas"] == machines[name]["min_workers"]
        assert group["maxReplicas"] == machines[name]["max_workers"]
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * aws["idle_timeout_minutes"]


def test_resources(spec: Manifest) -> None:
    """Limits equal requests, since Ray uses the limits; only trainers have a GPU and tolerate GPU nodes."""
    for pod in pods(spec):
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups(spec).items()
    }
    assert limits["trainer"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["builder"]
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert group["rayStartParams"]["object-spilling-directory"] in mounted
        names = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_pods_have_no_more_rights_than_they_need(each_spec: Manifest) -> None:
    spec = each_spec
    accounts = {account["metadata"]["name"]: account for account in read_all("accounts.yaml")}
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["serviceAccountName"] in accounts
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    workers = {pod["serviceAccountName"] for pod in pods(spec)[1:]}
    assert workers == {"lawdnet-worker"}
    assert accounts["lawdnet-worker"]["automountServiceAccountToken"] is False
    assert pods(spec)[0]["serviceAccountName"] not in workers


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_valid_commands(name: str) -> None:
    manifest = read(name)
    assert manifest["spec"]["clusterSelector"] == {"ray.io/cluster": read("raycluster.yaml")["metadata"]["name"]}
    params = parse_module(manifest["spec"]["entrypoint"])
    assert params["out"].startswith("s3://")
    assert params.get("gpu", False) == (name == "rayjob-train.yaml")
    if "workers" in params:
        most = int(params["workers"].partition(":")[2])
        assert most == groups(read("raycluster.yaml")["spec"])["trainer"]["maxReplicas"]


def test_a_supervised_job_is_tried_again_on_a_cluster_of_its_own(spec: Manifest) -> None:
    """KubeRay refuses a backoffLimit beside a clusterSelector."""
    job = read(SUPERVISED)["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in job
    assert job["rayClusterSpec"] == spec, "copy what has changed in raycluster.yaml"
    params = parse_module(job["entrypoint"])
    assert (params["out"].startswith("s3://"), params["gpu"], params["workers"]) == (True, True, "1:2")


def test_trainers_say_that_they_go(spec: Manifest) -> None:
    """Kubernetes waits for the hook, which ends before it loses patience."""
    pod = groups(spec)["trainer"]["template"]["spec"]
    python, dash, module, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, dash) == ("python", "-m")
    assert importlib.util.find_spec(module)
    assert drain.SECONDS == int(seconds) < pod["terminationGracePeriodSeconds"]


def with_option(name: str) -> Manifest:
    """The cluster with an option switched on."""
    lines = (FOLDER / "raycluster.yaml").read_text(encoding="utf8").splitlines()
    first = next(n for n, line in enumerate(lines) if f"# OPTION {name}" in line)
    last = next(n for n, line in enumerate(lines) if f"# END {name}" in line)
    lines[first + 1 : last] = [line.replace("# ", "", 1) for line in lines[first + 1 : last]]
    found: Manifest = yaml.safe_load("\n".join(lines))
    return found


def test_the_head_may_keep_its_state_in_redis(spec: Manifest) -> None:
    options = with_option("redis")["spec"].pop("gcsFaultToleranceOptions")
    service, redis = read_all("redis.yaml")
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    pod = redis["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["env"] == [{"name": "PASSWORD", "valueFrom": options["redisPassword"]["valueFrom"]}]
    assert "--requirepass" in container["args"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert service["spec"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]
    assert "gcsFaultToleranceOptions" not in spec


def test_its_example_is_a_valid_command() -> None:
    text = (FOLDER / "raycluster.yaml").read_text(encoding="utf8")
    (line,) = re.findall(r"#   (lawdnet --address .+)", text)
    assert parse(app, shlex.split(line)[1:]) == "build"


def test_versions_are_the_projects(each_spec: Manifest) -> None:
    spec = each_spec
    text = (FOLDER / "Dockerfile").read_text(encoding="utf8")
    python = ".".join(
        map(str, re.findall(r"\d+", tomllib.loads(_text("pyproject.toml"))["project"]["requires-python"]))
    )
    assert f"FROM rayproject/ray:{pin('ray')}-py{python.replace('.', '')}\n" in text
    assert spec["rayVersion"] == pin("ray")
    images = {container["image"] for pod in pods(spec) for container in pod["containers"]}
    assert len(images) == 1
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    assert images.pop().endswith(f"/lawdnet:{version}")


def test_the_image_has_the_code_and_its_dependencies() -> None:
    text, project = (FOLDER / "Dockerfile").read_text(encoding="utf8"), tomllib.loads(_text("pyproject.toml"))
    copies = re.findall(r"^COPY --chown=ray:users (.+) \S+$", text, re.MULTILINE)
    copied = {word for words in copies for word in words.split()}
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == {"constraints.txt", "pyproject.toml", "README.md", *packages}
    assert all((ROOT / name).exists() for name in copied)
    extras = set(re.findall(r"--extra (\w+)", text))
    assert extras == {"s3", "wandb", "serve"}
    assert extras <= set(project["project"]["optional-dependencies"])
    assert "--constraint constraints.txt" in text


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf8")


@pytest.mark.parametrize(
    ("name", "crd"),
    [
        ("raycluster.yaml", "ray.io_rayclusters.yaml"),
        ("rayservice.yaml", "ray.io_rayservices.yaml"),
        *((job, "ray.io_rayjobs.yaml") for job in (*JOBS, SUPERVISED)),
    ],
)
def test_against_the_published_schema(name: str, crd: str) -> None:
    folder = os.environ.get("LAWDNET_CRDS")
    if not folder:
        pytest.skip("name a folder with KubeRay's CRDs in LAWDNET_CRDS")
    from jsonschema import Draft202012Validator

    definition = yaml.safe_load((Path(folder) / crd).read_text(encoding="utf8"))
    (version,) = (found for found in definition["spec"]["versions"] if found["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    manifests = [read(name), *([with_option("redis")] if name == "raycluster.yaml" else [])]
    for manifest in manifests:
        errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]
        assert not errors
    broken = read(name)
    broken["spec"]["unknown"] = 1
    assert not Draft202012Validator(schema).is_valid(broken)


def strict(schema: Any) -> Any:
    """Return the schema with unknown fields forbidden, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
