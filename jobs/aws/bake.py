"""Bake the set-up of cluster.yaml into images, so that a new machine joins at once and not after minutes of installing.

    pip install -c constraints.txt boto3
    python -m jobs.aws.bake builder trainer

For each group one machine runs the initialization and set-up commands of cluster.yaml and is made into an image, whose
id is printed: put it into the group's `ImageId`. The commands stay in cluster.yaml; on a baked machine they find
everything there. A set-up that was baked before is not baked again. Your own files (`~/…`, such as the token) are never
baked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from jobs import console

POLL_SECONDS = 15.0
CONSOLE_LINES = 30
"""Shown of a machine whose set-up does not end."""
MAX_USER_DATA = 16_384
"""AWS's limit in bytes."""
SCRIPT = "/root/lawdnet-bake.sh"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one image is made of."""

    group: str
    region: str
    image: str
    """The image to start from."""
    machine: str
    """EC2 instance type."""
    disks: list[dict[str, Any]]
    user: str
    files: dict[str, bytes]
    """Path on the machine → content."""
    commands: list[str]

    @classmethod
    def read(cls, config_file: Path, group: str, machine: str = "") -> Recipe:
        """Read it from a cluster.yaml.

        Args:
            group: a name in `available_node_types`.
            machine: instance type, if not the group's.

        Raises:
            ValueError: there is no such group, or its ImageId is still to be edited.
        """
        config = yaml.safe_load(config_file.read_text(encoding="utf8"))
        groups = config["available_node_types"]
        if group not in groups:
            raise ValueError(f"{config_file}: no group {group!r}; it has {', '.join(groups)}")
        node = groups[group]["node_config"]
        if len(set(node["ImageId"].removeprefix("ami-"))) == 1:
            raise ValueError(f"{config_file}: the ImageId of {group} is to be edited: {node['ImageId']}")
        mounts = {there: here for there, here in config["file_mounts"].items() if not here.startswith("~")}
        own = config["head_setup_commands"] if group == config["head_node_type"] else []
        return cls(
            group=group,
            region=config["provider"]["region"],
            image=node["ImageId"],
            machine=machine or node["InstanceType"],
            disks=node["BlockDeviceMappings"],
            user=config["auth"]["ssh_user"],
            files={there: (config_file.parent / here).read_bytes() for there, here in mounts.items()},
            commands=[*config["initialization_commands"], *config["setup_commands"], *own],
        )

    @property
    def script(self) -> str:
        """The shell script that sets the machine up as its user, and stops it if everything went well."""
        files = [
            f"install -D /dev/null '{path}'\nbase64 -d <<'END' | gunzip > '{path}'\n{_packed(content)}\nEND"
            for path, content in self.files.items()
        ]
        commands = "\n".join(f"({command})" for command in self.commands)  # a `||` of one is not the next one's
        return "\n".join(
            [
                "#!/bin/bash",
                "set -eu",
                "exec > /dev/console 2>&1",
                *files,
                f"chown -R {self.user}: /home/{self.user}",
                f"sudo -u {self.user} -H bash -e <<'COMMANDS'",
                commands,
                "COMMANDS",
                "sync",
                "shutdown -h now",
                "",
            ]
        )

    @property
    def user_data(self) -> str:
        """What the machine runs at its first start.

        The script goes on beside cloud-init, because the first command waits for cloud-init to end.

        Raises:
            ValueError: it is larger than AWS takes.
        """
        start = f"#!/bin/bash\nset -eu\nbase64 -d <<'END' | gunzip > {SCRIPT}\n{_packed(self.script.encode())}\nEND\n"
        data = f"{start}systemd-run --no-block bash {SCRIPT}\n"
        if len(data) > MAX_USER_DATA:
            raise ValueError(f"the set-up of {self.group} takes {len(data)} bytes, and AWS takes {MAX_USER_DATA}")
        return data

    @property
    def name(self) -> str:
        """The image's name, the same for the same set-up on the same image."""
        return f"lawdnet-{self.group}-{hashlib.sha256((self.image + self.script).encode()).hexdigest()[:12]}"


def bake(ec2: Any, recipe: Recipe, *, minutes: float, poll_seconds: float = POLL_SECONDS) -> str:
    """Make the image, and return its id. The machine is terminated in any case.

    Args:
        ec2: a client of boto3.
        recipe: what to make.
        minutes: longest time for the set-up.

    Raises:
        ValueError: the set-up did not end, and the last lines of the machine's console were shown.
    """
    known = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [recipe.name]}])["Images"]
    if known:
        return str(known[0]["ImageId"])
    tags = [{"Key": "Name", "Value": recipe.name}]
    machine = ec2.run_instances(
        ImageId=recipe.image,
        InstanceType=recipe.machine,
        BlockDeviceMappings=recipe.disks,
        UserData=recipe.user_data,
        InstanceInitiatedShutdownBehavior="stop",
        MetadataOptions={"HttpTokens": "required"},
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
        MinCount=1,
        MaxCount=1,
    )["Instances"][0]["InstanceId"]
    try:
        _wait_until_stopped(ec2, machine, minutes, poll_seconds)
        image = str(ec2.create_image(InstanceId=machine, Name=recipe.name)["ImageId"])
        while (state := ec2.describe_images(ImageIds=[image])["Images"][0]["State"]) == "pending":
            time.sleep(poll_seconds)
        if state != "available":
            raise ValueError(f"{image}: AWS could not make the image; it is {state}")
        return image
    finally:
        ec2.terminate_instances(InstanceIds=[machine])


def _wait_until_stopped(ec2: Any, machine: str, minutes: float, poll_seconds: float) -> None:
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        time.sleep(poll_seconds)  # a machine is not known everywhere in its first seconds
        found = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
        state = found["State"]["Name"]
        if state == "stopped":
            return
        if state not in ("pending", "running", "stopping"):
            raise ValueError(f"{machine}: is {state}; somebody else ended it")
    output = ec2.get_console_output(InstanceId=machine).get("Output", "")
    for line in output.splitlines()[-CONSOLE_LINES:]:
        console.say(line)
    raise ValueError(
        f"{machine}: the set-up did not end within {minutes:g} minutes; above is what its console said last"
    )


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def main(
    groups: Annotated[list[str], typer.Argument(help="Groups of cluster.yaml.")],
    cluster: Annotated[Path, typer.Option(help="The cluster's description.")] = Path("cluster.yaml"),
    machine: Annotated[str, typer.Option(help="Instance type to bake on, if not the group's.")] = "",
    minutes: Annotated[float, typer.Option(min=1, help="Longest time for the set-up of one image.")] = 40,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what the machine would run.")] = False,
) -> None:
    """Bake the set-up of cluster.yaml into an image for each group, and print their ids."""
    recipes = [Recipe.read(cluster, group, machine) for group in groups]
    if dry_run:
        for recipe in recipes:
            typer.echo(f"# {recipe.name}, on {recipe.machine}\n{recipe.script}")
        return
    try:
        import boto3
    except ImportError as error:
        raise ValueError("baking needs boto3: pip install -c constraints.txt boto3") from error
    ec2 = boto3.client("ec2", region_name=recipes[0].region)
    for recipe in recipes:
        console.say(f"{recipe.group}: baking {recipe.name}, up to {minutes:g} minutes")
        typer.echo(f"{recipe.group}: ImageId: {bake(ec2, recipe, minutes=minutes)}")


if __name__ == "__main__":
    console.run(main)
