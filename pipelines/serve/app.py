"""The server on a Ray cluster: `serve run pipelines.serve.app:build_app`, or a config file such as jobs/serve.yaml.

Three kinds of deployments. `Jobs` is one process that owns the job store, and tells renderers that there is work.
`Renderer` (one deployment per checkpoint, replicas with a share of a GPU) takes jobs from the store, one at a time. A
`Gateway` speaks HTTP, and draws what is watched live itself, where that is wanted. All see one folder; files never
travel through Ray. A replica that dies loses its lease, and the job goes to another one: Serve's own task consumers
are alpha, and their jobs can neither be stopped nor say how far they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from lawdnet.serving.jobs import LEASE_SECONDS, JobStore, Store
from lawdnet.serving.problems import Problem
from lawdnet.serving.service import Service
from lawdnet.serving.worker import Worker
from pipelines.serve.api import SWEEP_SECONDS, make_app
from pipelines.serve.config import DATABASE, ServeConfig, parse_limits, read_keys
from pipelines.serve.live import live_router
from pipelines.serve.live_host import EngineHost
from pipelines.serve.live_limits import LiveLimits
from pipelines.serve.state import Access

log = logging.getLogger(__name__)

JOBS = "Jobs"
"""Name of the deployment with the job store."""
POLL_SECONDS = 0.5
STORE_SECONDS = 30.0
"""How long a request waits for the job store, which may be starting again."""
MAX_ONGOING = 256
"""Requests of one gateway at the same time, events included."""
DRAIN_SECONDS = 600.0
"""How long a replica that is no longer needed may go on with its video."""


@dataclass(frozen=True, kw_only=True)
class AppConfig(ServeConfig):
    """Settings of a server on a cluster.

    Raises:
        ValueError: a setting is missing, unknown or out of range.
    """

    num_gpus: float = 0.0
    """Share of a GPU for each renderer, such as 0.25 for four on one GPU."""
    num_cpus: float = 1.0
    """CPUs of each renderer."""
    min_replicas: int = 1
    max_replicas: int = 2
    """Renderers of each checkpoint."""
    gateways: int = 1
    """Most processes that speak HTTP."""
    live: bool = False
    """Whether gateways offer live speech and streamed videos, with the first checkpoint. Each then takes a renderer's
    share of CPUs and GPUs."""
    lease_seconds: float = LEASE_SECONDS
    open_to_all: bool = False
    """Whether clients need no key. Otherwise the gateways read theirs from `api_key_file` or LAWDNET_API_KEY."""
    api_key_file: str | None = None
    hosts: tuple[str, ...] = field(default_factory=tuple)
    """Names that clients call the server by; none: any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"min_replicas, max_replicas: {self.min_replicas} to {self.max_replicas}; expected 0 ≤ … ≤ …"
            )

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> AppConfig:
        """Settings from the arguments of a Serve application.

        Raises:
            ValueError: one is unknown or does not fit.
        """
        known = {found.name for found in fields(cls)}
        if unknown := set(args) - known:
            raise ValueError(f"unknown argument {min(unknown)}; valid are {', '.join(sorted(known))}")
        values = dict(args)
        if isinstance(values.get("models"), str):
            values["models"] = {"default": values["models"]}
        values["limits"] = parse_limits(values.get("limits", {}))
        values["hosts"] = tuple(values.get("hosts", ()))
        return cls(**values)


class RemoteStore:
    """The job store of another process, with the methods of `JobStore`; not to be used in an event loop."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._handle.call.remote(name, args, kwargs).result(timeout_s=STORE_SECONDS)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayError, TimeoutError) as error:
            log.warning("job store: %s (%s)", name, error)
            raise Problem(503, "starting", "the server is starting again; try again later", retry_after=5) from error


def remote_store() -> Store:
    """The job store of the application that this replica belongs to."""
    app = serve.get_replica_context().app_name
    return cast("Store", RemoteStore(serve.get_deployment_handle(JOBS, app_name=app)))


class Jobs:
    """Owns the job store, and tells renderers that there is work."""

    async def __init__(self, config: AppConfig, renderers: dict[str, DeploymentHandle]) -> None:  # type: ignore[misc]
        data = Path(config.data)
        self._store = JobStore(data / DATABASE, lease_seconds=config.lease_seconds)
        self._wake = asyncio.Event()
        service = Service(self._store, data, config.files, list(config.models), limits=config.limits)
        self._tasks = [  # the loop alone would forget them
            asyncio.create_task(_repeated(SWEEP_SECONDS, lambda: asyncio.to_thread(service.sweep))),
            *(asyncio.create_task(self._dispatch(model, handle)) for model, handle in renderers.items()),
        ]
        await asyncio.to_thread(config.pin_templates, service)

    async def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what a `Store` can do."""
        answer = getattr(self._store, name)(*args, **kwargs)
        if name == "submit":
            self._wake.set()
        return answer

    async def _dispatch(self, model: str, renderer: DeploymentHandle) -> None:
        """Keep as many calls to the renderers open as there are jobs, so that Serve knows how many replicas to have."""
        calls: set[asyncio.Task[None]] = set()
        while True:
            now = self._store.counts()
            wanted = now.get(f"queued:{model}", 0) + now.get(f"running:{model}", 0)
            for _ in range(wanted - len(calls)):
                calls.add(asyncio.create_task(_run_one(renderer)))
            self._wake.clear()
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait([woken, *calls], timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            calls = {call for call in calls if not call.done()}


async def _run_one(renderer: DeploymentHandle) -> None:
    try:
        if not await renderer.run.remote():
            await asyncio.sleep(POLL_SECONDS)  # another one had taken the job
    except Exception as error:  # its replica died; the job comes back when its lease runs out
        log.warning("a renderer did not end its job (%s)", error)


async def _repeated(seconds: float, action: Any) -> None:
    while True:
        try:
            await action()
        except Exception:  # a full disk, for example; the next turn may do better
            log.exception("expired results could not be deleted")
        await asyncio.sleep(seconds)


class Renderer:
    """Renders one video after the other with one checkpoint."""

    def __init__(self, config: AppConfig, model: str) -> None:
        engines = {model: config.engine(model)}
        self._worker = Worker(remote_store(), Path(config.data), config.files, engines)

    def check_health(self) -> None:
        """Let Serve start another replica in place of one that hangs.

        Raises:
            RuntimeError: it does.
        """
        if self._worker.is_stuck:
            raise RuntimeError("a decoder hangs; see the job's problem")

    async def run(self) -> bool:
        """Do the oldest waiting job; False if there is none."""
        return await asyncio.to_thread(self._worker.run_once)


class Gateway:
    """Speaks HTTP."""

    def __init__(self, config: AppConfig, jobs: DeploymentHandle) -> None:
        keys = read_keys(Path(config.api_key_file) if config.api_key_file else None)
        if not keys and not config.open_to_all:
            raise ValueError(
                "give clients a key (api_key_file, or LAWDNET_API_KEY of the gateways), or set open_to_all"
            )
        store = cast("Store", RemoteStore(jobs))
        self._service = Service(store, Path(config.data), config.files, list(config.models), limits=config.limits)
        self._access = Access(api_keys=keys, hosts=config.hosts)
        first = next(iter(config.models))
        self._engines = {first: config.engine(first)} if config.live else {}

    def __serve_build_asgi_app__(self) -> Any:
        app = make_app(self._service, self._access, sweep=False)
        if self._engines:
            app.include_router(live_router(EngineHost(self._service, self._engines)))
        return app


def build_app(args: dict[str, Any]) -> Application:
    """Return the application for `serve run` and Serve config files.

    Args:
        args: fields of `AppConfig`.

    Raises:
        ValueError: one is unknown or does not fit.
    """
    config = AppConfig.parse(args)
    renderers = {model: _renderer(config, model) for model in config.models}
    free = {"num_cpus": 0}
    jobs = serve.deployment(Jobs, num_replicas=1, max_ongoing_requests=1000, ray_actor_options=free)
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        max_ongoing_requests=MAX_ONGOING,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": config.gateways,
            # of a gateway's few live sessions, half shall be free: when all are taken it refuses the next
            "target_ongoing_requests": LiveLimits().sessions // 2 if config.live else MAX_ONGOING // 4,
        },
        ray_actor_options=_share(config) if config.live else free,
    )
    return cast("Application", gateway.bind(config, jobs.bind(config, renderers)))


def _renderer(config: AppConfig, model: str) -> Application:
    deployment = serve.deployment(
        Renderer,
        name=f"Renderer-{model}",
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,
        },
        ray_actor_options=_share(config),
    )
    return cast("Application", deployment.bind(config, model))


def _share(config: AppConfig) -> dict[str, Any]:
    """What a process that draws takes of its machine; it has as many threads as CPUs."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(config.num_cpus))))
    return {
        "num_cpus": config.num_cpus,
        "num_gpus": config.num_gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
    }
