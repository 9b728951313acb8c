"""What a server is told: on the command line, or as the arguments of a Ray Serve application."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawdnet.landmarks import SOURCES
from lawdnet.serving.limits import Limits
from lawdnet.serving.templates import TemplateFiles
from lawdnet.settings import convert, unknown_key
from lawdnet.storage import local_copy, locate
from lawdnet.tasks.inputs import CSV_SUFFIXES

if TYPE_CHECKING:
    from lawdnet.inference.engine import Engine
    from lawdnet.serving.service import Service

DATABASE = "server.sqlite"
"""Name of the job store in the server's folder."""
KEY_VARIABLE = "LAWDNET_API_KEY"
"""Environment variable with one key."""
MIN_KEY = 16
"""Shortest key."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of a server.

    Raises:
        ValueError: a setting is missing, unknown or out of range.
    """

    models: Mapping[str, str]
    """Name → checkpoint: a path, or an s3://… or gs://… URI. The first is the default."""
    data: str
    """Folder of uploads, results, templates and the job store; on a cluster one that all machines share."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Name → video; the first is the default."""
    landmarks: str = "auto"
    weights_dir: str | None = None
    device: str = "auto"
    workers: int = 1
    """Videos that are rendered at the same time in one process."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: give at least one checkpoint")
        if self.workers < 1:
            raise ValueError(f"workers: {self.workers} must be at least 1")
        if self.landmarks != "auto" and self.landmarks not in SOURCES:
            raise ValueError(f"landmarks: unknown {self.landmarks!r}; choose auto, {', '.join(SOURCES)}")

    @property
    def files(self) -> TemplateFiles:
        """The folder of templates."""
        weights = Path(self.weights_dir) if self.weights_dir else None
        return TemplateFiles(Path(self.data) / "templates", landmarks=self.landmarks, weights_dir=weights)

    def engines(self) -> dict[str, Engine]:
        """Load all checkpoints."""
        return {name: self.engine(name) for name in self.models}

    def engine(self, name: str) -> Engine:
        """Load one checkpoint."""
        from lawdnet.inference.engine import Engine
        from pipelines.render.task import opened_network

        weights = Path(self.weights_dir) if self.weights_dir else None
        with opened_network(locate(self.models[name])) as path:
            return Engine(path, device=self.device, weights_dir=weights)

    def pin_templates(self, service: Service) -> None:
        """Copy the templates into the server's folder, and queue their preparation."""
        for name, video in self.templates.items():
            with local_copy(locate(video), CSV_SUFFIXES) as path:
                service.pin_template(path, name=name)
        gone = {status.row.name for status in service.templates() if status.row.pinned} - set(self.templates)
        for name in gone:  # of an earlier start
            with suppress(KeyError):
                service.store.remove_template(name)


def parse_limits(given: Mapping[str, Any]) -> Limits:
    """Limits from their names and values.

    Raises:
        ValueError: a name is unknown, or a value does not fit.
    """
    kinds = {found.name: int if found.type == "int" else float for found in fields(Limits)}
    for key in given:
        if key not in kinds:
            raise unknown_key(key, kinds, ", ".join(kinds))
    return Limits(**{key: convert(key, value, kinds[key]) for key, value in given.items()})


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file and of the environment.

    Raises:
        ValueError: the file has none, or a key is too short to be safe.
    """
    keys = [os.environ[KEY_VARIABLE].strip()] if os.environ.get(KEY_VARIABLE, "").strip() else []
    if file:
        found = [line.strip() for line in file.read_text(encoding="utf8").splitlines()]
        found = [line for line in found if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"{file}: has no key; write one per line")
        keys += found
    if short := [key for key in keys if len(key) < MIN_KEY]:
        raise ValueError(
            f"an API key has {len(short[0])} characters; use at least {MIN_KEY}, as `openssl rand -hex 16` makes"
        )
    return tuple(keys)
