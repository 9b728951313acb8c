"""A server under load: many clients, each with audio and a template of its own, and a kill in the middle.

    python -m benchmarks.serve_load [--clients 32] [--requests 300] [--workers 2] [--kill-at 150]

Draws three people of different sizes and starts `lawdnet serve` with an untrained generator in a process of its own.
Each client sends noise that nobody else sends, follows its video, and fetches it. An answer is its own if its audio
correlates with what was sent, and its size is the template's. After `--kill-at` answers the server is killed (-9) and
started again; clients wait for it, as they would. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from lawdnet.audio import write_wav
from lawdnet.audio.io import load_audio
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.synthetic import write_talking_head
from lawdnet.video import probe
from tests.support.tiny_checkpoints import checkpoint

MIB = 1 << 20
PEOPLE = {"anna": (160, 128), "bert": (192, 144), "carl": (176, 160)}
"""Template → height, width."""
SECONDS = (0.4, 1.6)
"""Length of the audio, from and to."""
SAME = 0.8
"""Least correlation of an answer's audio with what was sent; AAC changes it a little."""


def network(folder: Path, mouth_px: int) -> Path:
    """A checkpoint of an untrained generator."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=8, warp_grid=8))
    meta = {"mouth_px": mouth_px, "crop_width": 160, "features": {"mel": {"dim": 320}}}
    return checkpoint(folder / "clip" / "epoch_0001", meta=meta, generator=generator)


class Server:
    """`lawdnet serve` in a process of its own, on one port through all restarts."""

    def __init__(self, folder: Path, run: Path, workers: int) -> None:
        self.words = [sys.executable, "-c", "from jobs.cli import main; main()", "serve", str(run), "--device", "cpu"]
        self.words += ["--data", str(folder / "data"), "--workers", str(workers)]
        self.words += ["--set", "posts_per_minute=1000000", "--set", "free_bytes=1", "--set", "queue=64"]
        self.words += [word for name in PEOPLE for word in ("--template", f"{name}={folder / name}.mp4")]
        self.port = 0
        self.memory: list[float] = []
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        words = [*self.words, "--port", str(self.port)]
        self.process = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        found = re.search(r"(http://\S+:(\d+))", line)
        if not found:
            raise RuntimeError(line + self.process.stderr.read())
        self.url, self.port = found[1], int(found[2])
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def watch(self, stop: threading.Event) -> None:
        """Note its resident memory (MiB) twice a second."""
        while not stop.wait(0.5):
            try:
                self.memory.append(psutil.Process(self.process.pid).memory_info().rss / MIB)
            except psutil.Error:
                continue


@dataclass
class Load:
    """What the clients saw."""

    server: Server
    folder: Path
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    busy: int = 0
    frames: int = 0

    def one(self, number: int) -> None:
        """One client's request: send, follow, fetch, compare."""
        rng = np.random.default_rng(number)
        length = random.Random(number).uniform(*SECONDS)
        wave = (0.3 * rng.standard_normal(round(length * 16_000))).clip(-1, 1).astype(np.float32)
        name = list(PEOPLE)[number % len(PEOPLE)]
        audio, made = self.folder / f"{number}.wav", self.folder / f"{number}.mp4"
        write_wav(audio, wave)
        began = time.perf_counter()
        with httpx.Client(base_url=self.server.url, timeout=120) as client:
            video = self._ask(client, "POST", "/v1/videos", audio=audio, template=name)
            while not video["finished"]:
                time.sleep(0.1)
                video = self._ask(client, "GET", video["urls"]["self"])
            if video["state"] != "succeeded":
                self.wrong.append(f"{number}: {video['state']} {video['problem']}")
                return
            made.write_bytes(self._answer(client, "GET", video["urls"]["content"]).content)
        self.seconds.append(time.perf_counter() - began)
        self._compare(number, name, wave, made)

    def _compare(self, number: int, name: str, wave: np.ndarray, made: Path) -> None:
        found, heard = probe(made), load_audio(made)
        self.frames += found.num_frames
        length = min(len(wave), len(heard))
        likeness = float(np.corrcoef(wave[:length], heard[:length])[0, 1])
        if likeness < SAME or (found.height, found.width) != PEOPLE[name] or abs(len(wave) - len(heard)) > 2000:
            self.wrong.append(f"{number}: not its own (likeness {likeness:.2f}, {found.height}×{found.width})")
        made.unlink()

    def _ask(self, client: httpx.Client, method: str, path: str, **form: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._answer(client, method, path, **form).json()
        return answer

    def _answer(self, client: httpx.Client, method: str, path: str, **form: Any) -> httpx.Response:
        """The answer; a server that is away or busy is asked again."""
        while True:
            try:
                files = {"audio": form["audio"].read_bytes()} if form else None
                answer = client.request(
                    method, path, files=files, data={"template": form["template"]} if form else None
                )
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code != 503:
                return answer.raise_for_status()
            self.busy += 1
            time.sleep(0.5)


def run(clients: int, requests: int, workers: int, kill_at: int, mouth_px: int) -> dict[str, Any]:
    """Start a server, let the clients loose, and return the figures."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(clients) as pool:
        folder = Path(name)
        for number, (person, size) in enumerate(PEOPLE.items()):
            write_talking_head(folder / f"{person}.mp4", identity=number, motion=1, speech=2, seconds=3.0, size=size)
        server = Server(folder, network(folder, mouth_px), workers)
        stop = threading.Event()
        threading.Thread(target=server.watch, args=(stop,), daemon=True).start()
        load = Load(server, folder)
        began = time.perf_counter()
        answers = [pool.submit(load.one, number) for number in range(requests)]
        down = 0.0
        if kill_at:
            while len(load.seconds) < kill_at and not all(answer.done() for answer in answers):
                time.sleep(0.05)
            killed = time.perf_counter()
            server.kill()
            server.start()
            down = time.perf_counter() - killed
        for answer in answers:
            answer.result()
        wall = time.perf_counter() - began
        stop.set()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(30)
    ordered = sorted(load.seconds)
    half = len(server.memory) // 2
    return {
        "clients": clients,
        "requests": requests,
        "answered": len(load.seconds),
        "not their own, or lost": load.wrong
        + [f"{requests - len(load.seconds)} lost"] * (requests != len(load.seconds)),
        "busy answers (503)": load.busy,
        "p50 s": round(statistics.median(ordered), 2),
        "p95 s": round(ordered[int(0.95 * len(ordered))], 2),
        "frames/s": round(load.frames / wall, 1),
        "videos/s": round(requests / wall, 2),
        "down s": round(down, 1),
        "memory MiB, first and second half": [
            round(statistics.fmean(m)) for m in (server.memory[:half], server.memory[half:])
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-at", type=int, default=150, help="answers after which the server is killed; 0: never")
    parser.add_argument("--mouth-px", type=int, default=64)
    given = parser.parse_args()
    print(json.dumps(run(given.clients, given.requests, given.workers, given.kill_at, given.mouth_px), indent=2))


if __name__ == "__main__":
    main()
