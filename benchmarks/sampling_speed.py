"""Compare drawing a training sample from a segment with the published loader: imread and resize of six JPGs.

    python -m benchmarks.sampling_speed [--mouth 64] [--samples 32] [--frames 180]

Both start from 832×640 crops of a drawn head with the same JPEG settings, and return six images at the size of the
stage. `--samples` is the number of samples that a stage draws from a segment per epoch, and `--frames` the length of
the segment: with more samples and fewer frames, decoded images are reused more often. `decode ms` is the time to decode
six images at reduced size and nothing else: the cost of a sample without reuse.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from lawdnet.data.levels import by_level, encode_jpeg, small_of_jpeg
from lawdnet.data.sampling import SampleSpec, Work, decode_jpeg, draw_batches
from lawdnet.data.schema import write_segments
from lawdnet.data.segment_list import SegmentRef
from lawdnet.face.geometry import stage_size
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Segment
from lawdnet.video import decode

WIDTH = 640


def store(path: Path, jpegs: list[bytes]) -> SegmentRef:
    """Write the frames as a segment without landmarks and features."""
    frames = len(jpegs)
    segment = Segment(
        segment_id="head-0000",
        video_id="head",
        index=0,
        start_frame=0,
        split="train",
        frames_jpeg=tuple(jpegs),
        landmarks_T68x2=np.zeros((frames, 68, 2), np.float32),
        matrix_T33=np.zeros((frames, 3, 3), np.float32),
        features={"mel": np.zeros((frames, 320), np.float32)},
        small_jpeg=by_level([small_of_jpeg(data, 95) for data in jpegs]),
    )
    write_segments(path, iter([segment]))
    return SegmentRef("head-0000", "head", "train", frames, str(path), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mouth", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--frames", type=int, default=180)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    height, width = stage_size(options.mouth)
    frames = options.frames
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_talking_head(
            root / "head.mp4", identity=1, motion=2, speech=3, seconds=options.frames / 25, size=(832, WIDTH)
        )
        jpegs = [encode_jpeg(image, 95) for _, image in decode(root / "head.mp4")][:frames]
        for number, data in enumerate(jpegs):
            (root / f"{number:04d}.jpg").write_bytes(data)
        ref = store(root / "head.parquet", jpegs)
        spec = SampleSpec(
            mouth_px=options.mouth,
            num_frames=1,
            batch_size=1,
            samples_per_segment=options.samples,
            audio="mel",
            sync=None,
        )
        began = time.perf_counter()
        count = sum(1 for _ in draw_batches(Work(0, 0, 0, (ref,)), spec, seed=0, stored_width=WIDTH))
        ours = (time.perf_counter() - began) / count
        rng = np.random.default_rng(0)
        began = time.perf_counter()
        for _ in range(options.samples):
            for number in rng.integers(frames, size=6):
                image = cv2.imread(str(root / f"{number:04d}.jpg"))
                cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (width, height))
        theirs = (time.perf_counter() - began) / options.samples
        began = time.perf_counter()
        for data in jpegs:
            decode_jpeg(data, height, width, stored_width=WIDTH)
        decoding = 6 * (time.perf_counter() - began) / len(jpegs)
    print(
        json.dumps(
            {
                "mouth": options.mouth,
                "imread ms": round(1e3 * theirs, 2),
                "segment ms": round(1e3 * ours, 2),
                "decode ms": round(1e3 * decoding, 2),
                "ratio": round(theirs / ours, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
