"""What is learnt from real people: a dataset from bare videos, a run, and its metrics on people it has not seen.

    python -m benchmarks.people VIDEOS OUT [--preset small] [--stages syncnet,frame_32] [--val 0.25] [--group-by …]

Landmarks beside the videos are not used. Every step is the product's own command and resumes where it stopped; the
settings of the command line are those of `lawdnet train`. Prints a JSON object: minutes of video, held-out videos, the
metrics of the sync network and of the last generator stage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lawdnet.data.manifest import Dataset
from lawdnet.types import FPS


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
    return round(sum(ref.num_frames for ref in dataset.segments(split)) / FPS / 60, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--stages", default="syncnet,frame_32")
    parser.add_argument("--val", type=float, default=0.25)
    parser.add_argument("--set", action="append", default=[], help="as of `lawdnet train`")
    options = parser.parse_args()
    began = time.perf_counter()
    data = str(options.out / "dataset")
    source = bare(options.videos, options.out / "videos")
    run("build_dataset", str(source), "--out", data, "--crop-width", "160", "--set", f"val_fraction={options.val}")
    dataset = Dataset(Path(data))
    settings = [word for setting in options.set for word in ("--set", setting)]
    trained = str(options.out / "run")
    run("train", data, "--out", trained, "--preset", options.preset, "--stages", options.stages, *settings)
    measured = {}
    for stage in options.stages.split(","):
        measured[stage] = run("evaluate", f"{trained}/{stage}", data, "--limit", "8")["figures"]
    report = {
        "train minutes": minutes(dataset, "train"),
        "held-out minutes": minutes(dataset, "val"),
        "held-out videos": len({ref.video_id for ref in dataset.segments("val")}),
        "seconds": round(time.perf_counter() - began),
        "metrics": measured,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
