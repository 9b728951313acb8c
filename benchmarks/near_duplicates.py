"""How far re-encodings are from their originals, and other videos from each other: the figures of docs/decisions.md.

    python -m benchmarks.near_duplicates [FOLDER …] [--drawn 8] [--most 10] [--every 1] [--weights-dir FOLDER]

A FOLDER holds videos, with or without a CSV. The CSV of a re-encoding gets noise of 0.4 % of the face's width, as if a
network had found its landmarks. Prints a JSON object of mean differing bits per hash, of 64.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lawdnet.data.config import BuildConfig
from lawdnet.data.near_duplicates import near_duplicates
from lawdnet.data.records import video_records
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.synthetic import write_talking_head
from lawdnet.types import FPS
from pipelines.build.build import build

SECONDS = 9
NOISE = 0.004
VARIANTS: dict[str, tuple[str, float, dict[str, str]]] = {
    "crf28.mp4": ("libx264", 1.0, {"crf": "28"}),
    "crf38.mp4": ("libx264", 1.0, {"crf": "38"}),
    "half.mkv": ("libx264", 0.5, {"crf": "28"}),
    "mpeg4.avi": ("mpeg4", 1.0, {"b": "400k"}),
}
"""File name ending → codec, scale, options."""


def encode_again(source: Path, to: Path) -> None:
    """Write a video again, as the ending of `to` says; also its CSV."""
    codec, scale, options = next(found for ending, found in VARIANTS.items() if to.name.endswith(ending))
    with av.open(str(source)) as original, av.open(str(to), "w") as copy:
        video, audio = original.streams.video[0], original.streams.audio[0]
        rate = Fraction(video.average_rate or FPS)
        shown = copy.add_stream(codec, rate=rate, options=options)
        shown.width, shown.height = (int(side * scale) // 2 * 2 for side in (video.width, video.height))
        shown.pix_fmt = "yuv420p"
        heard = copy.add_stream("aac", rate=16000)
        for number, frame in enumerate(original.decode(video)):
            image = frame.reformat(shown.width, shown.height, "yuv420p").to_ndarray()
            drawn = av.VideoFrame.from_ndarray(image, format="yuv420p")
            drawn.pts, drawn.time_base = number, 1 / rate
            copy.mux(shown.encode(drawn))
        copy.mux(shown.encode(None))
        original.seek(0)
        for sound in original.decode(audio):
            copy.mux(heard.encode(sound))
        copy.mux(heard.encode(None))
    if (csv := source.with_suffix(".csv")).exists():
        points = read_csv(csv).points_T68x2 * scale
        width = np.nanmedian(points[..., 0].max(1) - points[..., 0].min(1))
        noise = np.random.default_rng(0).normal(0, NOISE * width, points.shape)
        write_csv(to.with_suffix(".csv"), (points + noise).astype(np.float32), FPS)


def corpus(to: Path, options: argparse.Namespace) -> None:
    """Fill a folder with originals, `SET~NAME.mp4`, and their re-encodings, `SET~NAME~VARIANT`."""
    for index in range(options.drawn):  # the last three are one person
        identity = min(index, options.drawn - 3)
        path = to / f"drawn~{index}.mp4"
        write_talking_head(path, identity=identity, motion=50 + index, speech=90 + index, seconds=SECONDS)
    for folder in options.folders:
        for path in sorted(folder.glob("*.mp4"))[: options.most]:
            for file in (path, path.with_suffix(".csv")):
                if file.exists():
                    shutil.copy(file, to / f"{folder.name}~{file.name}")
    for number, path in enumerate(sorted(to.glob("*.mp4"))):
        if number % options.every == 0:
            for ending in VARIANTS:
                encode_again(path, to / f"{path.stem}~{ending}")


def distance(one: str, other: str) -> float:
    """Mean differing bits of the windows that both have; NaN if there are none."""
    first, second = (dict(part.split(":") for part in text.split()) for text in (one, other))
    both = [(int(first[start], 16) ^ int(second[start], 16)).bit_count() for start in first.keys() & second.keys()]
    return float(np.mean(both)) if both else float("nan")


def pairs(hashes: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (what the two are to each other, path, path)."""
    originals = [name for name in hashes if name.count("~") == 1]
    for name in hashes.keys() - set(originals):
        kind, stem, ending = name.split("~")
        yield f"{kind}: {ending}", f"{kind}~{stem}.mp4", name
    for one, other in itertools.combinations(originals, 2):
        kinds = {one.split("~")[0], other.split("~")[0]}
        yield f"others in {kinds.pop()}" if len(kinds) == 1 else "others in two sets", one, other


def report(hashes: dict[str, str]) -> dict[str, Any]:
    """Distances by what the two are to each other, and what is taken for a re-encoding."""
    firsts = near_duplicates(hashes)
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for kind, one, other in pairs(hashes):
        if one in hashes:
            is_joined = firsts.get(one, one) == firsts.get(other, other)
            found[kind].append((distance(hashes[one], hashes[other]), is_joined))
    lines = {}
    for kind, values in sorted(found.items()):
        bits = np.array([value for value, _ in values])
        bits = bits[np.isfinite(bits)]
        marks = dict(zip(("least", "median", "most"), np.percentile(bits, (0, 50, 100)).round(1).tolist(), strict=True))
        lines[kind] = {"pairs": len(values), **marks, "joined": sum(is_joined for _, is_joined in values)}
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--drawn", type=int, default=8)
    parser.add_argument("--most", type=int, default=10, help="most videos of a folder")
    parser.add_argument("--every", type=int, default=1, help="encode every Nth again")
    parser.add_argument("--weights-dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "source", Path(folder) / "dataset"
        source.mkdir()
        corpus(source, options)
        build(source, root, BuildConfig(near_duplicates="keep"), weights_dir=options.weights_dir)
        records = [record for piece in video_records(root).pieces() for record in piece.values()]
        print(
            json.dumps(
                report({record.path: record.perceptual_hash for record in records if record.is_accepted}), indent=1
            )
        )


if __name__ == "__main__":
    main()
