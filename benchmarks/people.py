"""What is learnt from real people: datasets from bare videos, runs, and their metrics on what they have not seen.

    python -m benchmarks.people OUT --people VIDEOS [--one VIDEOS] [--write docs/people.md]

`--people` is a folder of different people (whole people are held out), `--one` a folder of one person's sentences
(sentences are held out). Landmarks beside the videos are not used. Every step is the product's own command and resumes
where it stopped; a step that is done is not repeated. `--write` replaces the table in a document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawdnet.data.manifest import Dataset
from lawdnet.training.loggers import METRICS
from lawdnet.types import FPS

BEGIN, END = "<!-- table: python -m benchmarks.people -->", "<!-- end of the table -->"
FEATURE = "whisper"


@dataclass(frozen=True)
class Corpus:
    """Videos to learn from."""

    name: str
    videos: Path
    held_out: str
    """What validation has not seen, in words."""
    build: tuple[str, ...]
    """Settings of the build."""


def run(command: str, *words: str) -> dict[str, Any]:
    """A command of lawdnet with `--json`; its progress goes to stderr."""
    line = [sys.executable, "-m", f"jobs.{command}", *words, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def bare(videos: Path, folder: Path) -> Path:
    """A folder of links to the videos alone, so that no landmarks lie beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for video in sorted(videos.glob("*.mp4")):
        link = folder / video.name
        if not link.is_symlink():
            link.symlink_to(video.resolve())
    return folder


def minutes(dataset: Dataset, split: str) -> float:
    """Minutes of video in the segments of a split."""
    return round(sum(ref.num_frames for ref in dataset.segments(split)) / FPS / 60, 1)


def measure(corpus: Corpus, out: Path, stages: str, settings: list[str]) -> dict[str, Any]:
    """Build, train and evaluate on one corpus; returns what stands in the table."""
    began = time.perf_counter()
    data, trained = str(out / corpus.name / "dataset"), out / corpus.name / "run"
    source = str(bare(corpus.videos, out / corpus.name / "videos"))
    run("build_dataset", source, "--out", data, "--crop-width", "160", "--features", f"mel,{FEATURE}", *corpus.build)
    dataset = Dataset(Path(data))
    chosen = [f"sync_feature={FEATURE}", f"audio_feature={FEATURE}", *settings]
    words = [word for setting in chosen for word in ("--set", setting)]
    run("train", data, "--out", str(trained), "--preset", "small", "--stages", stages, *words)
    sync = ("--sync", str(trained / "syncnet"))
    found = {
        stage: run("evaluate", str(trained / stage), data, *(sync if stage != "syncnet" else ()))["figures"]
        for stage in stages.split(",")
    }
    return {
        "held_out": corpus.held_out,
        "minutes": {split: minutes(dataset, split) for split in ("train", "val")},
        "videos": {split: len({ref.video_id for ref in dataset.segments(split)}) for split in ("train", "val")},
        "metrics": found,
        "curve": {stage: curve(trained / stage) for stage in stages.split(",") if stage != "syncnet"},
        "seconds": round(time.perf_counter() - began),
    }


def curve(stage: Path) -> list[tuple[int, float]]:
    """Epochs and the opening correlation of their validations."""
    rows = [json.loads(line) for line in (stage / METRICS).read_text().splitlines()]
    name = "opening_correlation"
    return [(row["epoch"], round(row[name], 3)) for row in rows if row["kind"] == "validation" and name in row]


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]

    def add(text: str, *values: str) -> None:
        lines.append("| " + " | ".join([text, *values]) + " |")

    every = results.values()
    add("held out", *(one["held_out"] for one in every))
    add("minutes to learn from / held out", *("{train} / {val}".format(**one["minutes"]) for one in every))
    add("videos", *("{train} / {val}".format(**one["videos"]) for one in every))
    keys = ("accuracy", "accuracy_25", "accuracy_50")
    for prefix, text in (
        ("", "sync network, own against shifted audio, 9 / 25 / 50 frames"),
        ("floor", "floor: gap against level"),
    ):
        names = [f"floor_{n}" for n in (9, 25, 50)] if prefix else keys
        add(
            text, *(" / ".join(f"{one['metrics']['syncnet'].get(n, float('nan')):.2f}" for n in names) for one in every)
        )
    stages = [name for name in next(iter(every))["metrics"] if name != "syncnet"]
    rows = {
        "opening_correlation": "mouth opening, correlation with the truth",
        "articulation": "movement over true movement",
        "lmd": "mouth landmarks, distance in px of a crop 256 px wide",
        "psnr": "PSNR of the mouth, dB",
        "ssim": "SSIM of the mouth",
        "silence_opening": "opening while nobody speaks",
    }
    for stage in stages:
        for name, text in rows.items():
            cells = []
            for one in every:
                found = one["metrics"][stage]
                parts = [found.get(f"{row}{name}") for row in ("", "baseline_", "truth_")]
                cells.append(" / ".join("–" if part is None else f"{part:.3g}" for part in parts))
            add(f"{stage}: {text} (generated / copied mouth / truth)", *cells)
        epochs = [", ".join(f"{value:.2f}" for _, value in one["curve"][stage]) for one in every]
        add(f"{stage}: correlation after each epoch", *epochs)
    add("whole time, minutes", *(f"{one['seconds'] / 60:.0f}" for one in every))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--one", type=Path)
    parser.add_argument("--stages", default="syncnet,frame_32")
    parser.add_argument("--set", action="append", default=[], help="as of `lawdnet train`")
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    options = parser.parse_args()
    split = ("--set", "val_fraction=0.25")
    corpora = [Corpus("people", options.people, "videos of other people", split)]
    if options.one:
        corpora.append(Corpus("one speaker", options.one, "sentences", split))
    results = {one.name: measure(one, options.out, options.stages, options.set) for one in corpora}
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    if options.write:
        text = options.write.read_text(encoding="utf8")
        before, rest = text.split(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}", encoding="utf8")


if __name__ == "__main__":
    main()
