"""Measure live speech: from audio to frame, where the time goes, and what an idle session costs.

    python -m benchmarks.live_latency [CHECKPOINT] [--mouth 64] [--width 512] [--seconds 20] [--chunk-ms 20]

Without a checkpoint it takes an untrained generator of the small preset's width, which is as fast as a trained one.
Audio is pushed in chunks in real time, as from a microphone; a second thread takes frames and encodes JPEGs, as the
WebSocket does. `first piece` is the time from the audio to the first bytes of a streamed MP4, of a file of that length.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lawdnet.inference.engine import OUTPUT_RATE, Engine
from lawdnet.inference.live import LiveSession
from lawdnet.inference.template import Template
from lawdnet.landmarks.openface import OpenFace
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.synthetic import write_talking_head
from lawdnet.synthetic.speech import make_speech
from lawdnet.types import FPS, SAMPLE_RATE, Float32
from lawdnet.video.fragments import FragmentWriter

CHANNELS, WARP_GRID = 16, 12
"""Of the small preset."""
TEMPLATE_SECONDS = 4.0


class Impatient:
    """A clock that waits for nothing: frames come as fast as they can be drawn."""

    def __init__(self) -> None:
        self.ticks = 0.0

    def now(self) -> float:
        """Return seconds that only the session's own waiting moves."""
        return self.ticks

    def wait(self, until: float, stop: threading.Event) -> None:
        """Be there at once."""
        self.ticks = until


class NetworkTime:
    """Sums up the seconds in an engine's network, while the block runs."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.owner: Any = getattr(engine, "_mouths", engine)
        self.complete: Callable[..., Any] = self.owner.complete
        self.seconds = 0.0

    def __enter__(self) -> NetworkTime:
        self.owner.complete = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        del self.owner.complete

    def _timed(self, *args: Any) -> Any:
        began = self.clock()
        made = self.complete(*args)
        self.seconds += self.clock() - began
        return made


def untrained(folder: Path, mouth_px: int) -> Path:
    """Write a checkpoint of an untrained generator."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=CHANNELS, warp_grid=WARP_GRID))
    folder.mkdir(parents=True)
    torch.save({"networks": {"generator": generator.state_dict()}}, folder / "state.pt")
    meta = {"kind": "gan", "stage": "x", "stage_index": 0, "epoch": 1, "mouth_px": mouth_px, "audio_feature": "mel"}
    meta |= {"crop_width": 5 * mouth_px // 4, "generator": dataclasses.asdict(generator.config)}
    meta |= {"state_bytes": (folder / "state.pt").stat().st_size, "features": {"mel": {"dim": 320}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def real_time(engine: Engine, template: Template, speech: Float32, chunk: int) -> dict[str, float]:
    """Speak in real time; return the figures of the session."""
    session = LiveSession(engine, template, max_lag=0.5)
    sizes: list[int] = []

    def take() -> None:
        images = (frame.image_HW3 for frame in session.frames() if frame.image_HW3 is not None)
        sizes.extend(len(cv2.imencode(".jpg", image_HW3[..., ::-1])[1]) for image_HW3 in images)

    thread = threading.Thread(target=take)
    thread.start()
    while not sizes:
        time.sleep(0.01)
    began = time.perf_counter()
    for number, start in enumerate(range(0, len(speech), chunk)):
        time.sleep(max(0.0, began + number * chunk / SAMPLE_RATE - time.perf_counter()))
        session.push(speech[start : start + chunk])
    session.end()
    time.sleep(0.5)
    session.close()
    thread.join()
    found = session.summary()
    return {
        "latency p50 ms": 1e3 * found.latency_p50,
        "latency p95 ms": 1e3 * found.latency_p95,
        "of it look-ahead ms": 1e3 * (session.look_ahead - 1 / FPS),
        "draw p50 ms": 1e3 * found.draw_p50,
        "draw p95 ms": 1e3 * found.draw_p95,
        "frames with speech": found.spoken,
        "images not drawn": found.skipped_images,
        "speech dropped s": found.dropped_seconds,
        "kB per image": float(np.mean(sizes)) / 1e3,
    }


def as_fast_as_possible(engine: Engine, template: Template, speech: Float32) -> dict[str, float]:
    """Draw without a clock; return what a frame costs, and frames/s that follow from it."""
    # on a CPU the time of this thread, which other work on the machine does not change
    clock = time.thread_time if engine.device.type == "cpu" else time.perf_counter
    session = LiveSession(engine, template, clock=Impatient())
    session.push(speech)
    session.end()
    frames = session.frames()
    next(frames)
    count = len(speech) * FPS // SAMPLE_RATE - 1
    encoding = 0.0
    with NetworkTime(engine, clock) as network:
        began = clock()
        for _ in range(count):
            image_HW3 = next(frames).image_HW3
            assert image_HW3 is not None
            then = clock()
            cv2.imencode(".jpg", image_HW3[..., ::-1])
            encoding += clock() - then
        seconds = clock() - began
    frames.close()  # type: ignore[attr-defined]
    parts = {"network ms": network.seconds, "jpeg ms": encoding, "the rest ms": seconds - network.seconds - encoding}
    return {"frames/s": count / seconds} | {name: 1e3 * value / count for name, value in parts.items()}


def idle(engine: Engine, template: Template) -> dict[str, float]:
    """Return seconds of CPU per second of an idle session, before and after all resting mouths are known."""
    found = {}
    for name in ("rest", "template"):
        session = LiveSession(engine, template, idle=name)  # type: ignore[arg-type]
        frames = session.frames()
        next(frames)
        for label in ("first pass", "later"):
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(round(TEMPLATE_SECONDS * FPS)):
                next(frames)
            found[f"{name}, {label}"] = (time.process_time() - cpu) / (time.perf_counter() - began)
        frames.close()  # type: ignore[attr-defined]
    return found


def first_piece(engine: Engine, template: Template, speech: Float32) -> dict[str, float]:
    """Return seconds from the audio to the first bytes of the MP4, and what of it the network takes."""
    drawn = 0
    silence = np.zeros(OUTPUT_RATE // FPS, np.float32)
    with NetworkTime(engine) as network:
        began = time.perf_counter()
        writer = FragmentWriter(height=template.height, width=template.width, sample_rate=OUTPUT_RATE)
        frames = engine.frames(template, speech)
        for frame_HW3 in frames:
            drawn += 1
            if writer.write(frame_HW3, silence):
                break
        seconds = time.perf_counter() - began
    frames.close()  # type: ignore[attr-defined]
    writer.close()
    return {"ms": 1e3 * seconds, "frames": drawn, "of it network ms": 1e3 * network.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--mouth", type=int, default=64)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--chunk-ms", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or untrained(Path(folder) / "epoch_0001", options.mouth)
        engine = Engine(checkpoint, device=options.device)
        head = Path(folder) / "head.mp4"
        size = options.width * 5 // 4 // 2 * 2, options.width
        write_talking_head(head, identity=1, motion=2, speech=3, seconds=TEMPLATE_SECONDS, size=size)
        template = engine.prepare(head, OpenFace())
        speech = make_speech(options.seconds, 5).audio_S
        chunk = options.chunk_ms * SAMPLE_RATE // 1000
        results = {
            "mouth px": engine.mouth_px,
            "template": f"{template.width}×{template.height}",
            "real time": real_time(engine, template, speech, chunk),
            "without a clock": as_fast_as_possible(engine, template, speech[: 8 * SAMPLE_RATE]),
            "idle, cores": idle(engine, template),
            "first piece": first_piece(engine, template, speech),
        }
    print(json.dumps(results, indent=1, ensure_ascii=False, default=float))


if __name__ == "__main__":
    main()
