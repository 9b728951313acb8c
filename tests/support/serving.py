"""A small server: an untrained generator, a drawn person, short sounds."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn

from lawdnet.audio import write_wav
from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.serving.jobs import JobStore
from lawdnet.serving.limits import Limits
from lawdnet.serving.service import Service
from lawdnet.serving.templates import TemplateFiles
from lawdnet.serving.worker import Worker, WorkerThreads
from pipelines.serve.api import make_app
from pipelines.serve.local import LOOPBACK, uvicorn_config
from pipelines.serve.state import Access
from tests.support.tiny_checkpoints import checkpoint

MOUTH_PX = 64


def small_generator(folder: Path) -> Path:
    """A checkpoint that renders some hundred frames a second."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=8, warp_grid=8))
    torch.nn.init.normal_(generator.warp.similarity.weight)  # zero at first, so that the audio would change nothing
    meta = {"mouth_px": MOUTH_PX, "crop_width": 160, "features": {"mel": {"dim": 320}}}
    return checkpoint(folder, meta=meta, generator=generator)


def speech(path: Path, seconds: float = 0.4, seed: int = 0) -> Path:
    """A WAV of noise."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * 16_000))
    write_wav(path, (0.3 * noise).clip(-1, 1).astype(np.float32))
    return path


class SlowEngine(Engine):
    """An engine that takes its time for every batch."""

    pause = 0.05

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.calls: list[float] = []

    def _completed(self, template: Template, frames: list[Any]) -> list[Any]:
        self.calls.append(time.monotonic())
        time.sleep(self.pause)
        return super()._completed(template, frames)


class StrictStore(JobStore):
    """A job store that is not asked in an event loop, as one that is far away could not be."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            with suppress(RuntimeError):
                raise AssertionError(f"{name} in {asyncio.get_running_loop()}")
        return super().__getattribute__(name)


def make_service(data: Path, **limits: float) -> Service:
    """A service without workers, whose disk need not have much room."""
    store = StrictStore(data / "server.sqlite")
    chosen = Limits(**({"free_bytes": 1} | limits))
    return Service(store, data, TemplateFiles(data / "templates"), ["default"], limits=chosen)


def make_worker(service: Service, engine: Engine) -> Worker:
    """A worker of the service."""
    return Worker(service.store, service.data, service.files, {"default": engine})


def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for a condition, and return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.01)
    return time.monotonic() - began


@dataclass(kw_only=True)
class Running:
    """A server on this machine."""

    service: Service
    url: str
    threads: WorkerThreads
    server: uvicorn.Server

    def client(self, **more: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=60, **more)


@contextmanager
def running(
    data: Path, engine: Engine, *, access: Access | None = None, workers: int = 1, **limits: float
) -> Iterator[Running]:
    """A server on a free port of the loopback, with its workers."""
    service = make_service(data, **limits)
    threads = WorkerThreads([make_worker(service, engine) for _ in range(workers)])
    service.wake = threads.wake
    service.store.retry_lost(everything=True)
    threads.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn_config(make_app(service, access or Access(hosts=LOOPBACK))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            port = listener.getsockname()[1]
            yield Running(service=service, url=f"http://127.0.0.1:{port}", threads=threads, server=server)
        finally:
            server.should_exit = True
            thread.join()
            threads.stop()
            assert isinstance(service.store, JobStore)
            service.store.close()


def finished(client: httpx.Client, video: dict[str, Any]) -> dict[str, Any]:
    """The video's state when it has ended."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(client.get(video["urls"]["self"]).raise_for_status().json())
        return bool(found["finished"])

    until(has_ended, 60)
    return found
