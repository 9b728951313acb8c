"""One Ray and one S3 for the whole session: starting them takes longer than most tests."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from lawdnet.synthetic import write_talking_head
from tests.support.drawn_clip import SECONDS
from tests.support.s3_server import SOCKET, S3Server

# a local cluster asks for a token where some earlier Ray has left one in the user's home
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)

# no test fetches weights, or depends on those that this user has
os.environ["LAWDNET_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="lawdnet-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ.pop("LAWDNET_WEIGHTS", None)

# a shell lets what it starts in the background ignore Ctrl-C, and all that this starts would inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)

# tiny networks gain nothing from threads, and lose much where another process wants the cores
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray on this machine with two CPUs; `pipelines.cluster.resources.cluster()` finds and uses it."""
    import ray

    from pipelines.cluster import resources

    with resources.cluster(num_cpus=2):
        assert ray.is_initialized()
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good video of 75 frames with its CSV."""
    path = tmp_path_factory.mktemp("drawn") / "good.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=SECONDS, size=(160, 128))
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A local S3 at the address that the environment names."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[s3]'")
    moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto[server,s3]")
    from werkzeug.serving import make_server

    server = S3Server(moto.DomainDispatcherApplication(moto.create_backend_app))
    SOCKET.listen(128)
    http = make_server(
        *SOCKET.getsockname(),
        app=server,
        threaded=True,
        request_handler=moto.MotoRequestHandler,
        fd=SOCKET.fileno(),
    )
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    thread.join()


BUCKETS = count()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The local S3 with an empty bucket at `s3.root`; nothing counted, nothing failing."""
    from lawdnet.storage import locate

    s3_server.root = locate(f"s3://test-{next(BUCKETS)}")
    s3_server.root.fs.mkdir(s3_server.root.path.strip("/"))
    s3_server.requests.clear()
    yield s3_server
    s3_server.fault = lambda method, path: ""
