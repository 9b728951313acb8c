"""Compares a generated video with the real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.types import Landmarks

TEXTS = {
    "psnr": "dB over the whole frame",
    "ssim": "of the whole frame",
    "mouth_psnr": "dB over the mouth square, aligned",
    "mouth_ssim": "of the mouth square",
    "lmd": "distance of the mouth's landmarks, in eye distances",
    "mouth_correlation": "the mouth's opening over time, -1 … 1",
}
LENGTH_TOLERANCE = 1
"""Frames by which two videos of the same length may differ, because encoders round."""


def compare(
    real: Annotated[Path, typer.Argument(help="The real video.")],
    generated: Annotated[
        Path, typer.Argument(help="The generated video of the same head and words, in the same size.")
    ],
    landmarks: options.Landmarks = "auto",
    sync: options.MeasuringSync = None,
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Compare two videos frame by frame: image quality, mouth, and lip sync.

    Both are resampled to 25 fps; if one is longer, only the frames that both have are compared. Metrics that cannot be
    measured are listed with the reason. `--landmarks none` compares the images only.

    Example: `lawdnet compare truth.mp4 generated.mp4 --sync syncnet_v2.model`
    """
    for path in (real, generated, *([sync] if sync else [])):
        console.existing(path)
    from lawdnet.evaluation.protocol import compare as measure
    from lawdnet.video import probe

    found = _Found({}, {})
    true, made = (
        found.attempt(f"landmarks of {path.name}", partial(_face, path, landmarks, weights_dir))
        for path in (real, generated)
    )
    quality = measure(real, generated, true).to_dict()
    found.figures.update({name: quality.pop(name) for name in ("psnr", "ssim", "mouth_psnr", "mouth_ssim")})
    if true:
        found.mouths(real, generated, true, made)
    rates = {"fps_real": probe(real).fps, "fps_generated": probe(generated).fps}
    content: dict[str, Any] = {"real": str(real), "generated": str(generated), **quality, **rates}
    if sync and true:
        content["sync"] = found.attempt("sync", partial(_sync, real, generated, true, sync, device))
    elif sync:
        found.missing["sync"] = "needs the landmarks of the real video"
    content |= {"figures": {n: v for n, v in found.figures.items() if not math.isnan(v)}, "missing": found.missing}
    console.result(content, _lines(content), as_json)


@dataclass(frozen=True)
class _Found:
    """What was measured, and why the rest was not."""

    figures: dict[str, float]
    missing: dict[str, str]

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what `measure` returns, or None if it rejects a video; the reason is then kept in `missing`."""
        from lawdnet.types import Rejected

        try:
            return measure()
        except Rejected as error:
            self.missing[name] = error.detail
            return None

    def mouths(self, real: Path, generated: Path, true: Landmarks, made: Landmarks | None) -> None:
        """Measure what needs the position of the mouth."""
        from lawdnet.evaluation.image import lmd
        from lawdnet.evaluation.mouth import MEASURABLE
        from lawdnet.evaluation.protocol import mouth_motion

        if made is not None:
            frames = min(len(true.valid_T), len(made.valid_T))
            self.figures["lmd"] = lmd(true.points_T68x2[:frames], made.points_T68x2[:frames])
        motion = mouth_motion(real, generated, true)
        if motion.ceiling >= MEASURABLE:
            self.figures["mouth_correlation"] = motion.correlation
        else:
            self.missing["mouth_correlation"] = "the mouth cannot be measured in these frames, as it can in drawn heads"


def _face(path: Path, landmarks: str, weights_dir: Path | None) -> Landmarks | None:
    from lawdnet.evaluation.videos import face_of
    from lawdnet.landmarks import source_for

    return None if landmarks == "none" else face_of(path, source_for(path, landmarks, weights_dir))


def _sync(real: Path, generated: Path, face: Landmarks, sync: Path, device: str) -> dict[str, dict[str, float]]:
    """Measure both videos with one sync network; the generated head is where the real one is."""
    from lawdnet.evaluation.sync import SyncScorer
    from lawdnet.evaluation.videos import sync_of
    from lawdnet.types import Rejected, RejectReason

    scorer = SyncScorer(sync, device)
    rows = {"generated": sync_of(generated, face, scorer), "truth": sync_of(real, face, scorer)}
    if not all(rows.values()):
        raise Rejected(RejectReason.TOO_SHORT, "needs at least 39 consecutive frames with a face")
    return rows


def _lines(content: Mapping[str, Any]) -> list[str]:
    frames, real, generated = (content[name] for name in ("frames", "frames_real", "frames_generated"))
    lines = [f"{content['generated']} against {content['real']}: {console.count(frames, 'frame')}"]
    if abs(real - generated) > LENGTH_TOLERANCE:
        lines.append(f"lengths differ: {generated} and {real} frames at 25 fps; the rest was left out")
    if abs(content["fps_real"] - content["fps_generated"]) > 0.01:
        rates = f"{content['fps_generated']:.4g} and {content['fps_real']:.4g} fps"
        lines.append(f"frame rates differ: {rates}; both were resampled to 25 fps")
    figures = [(n, f"{content['figures'][n]:9.4g}  {text}") for n, text in TEXTS.items() if n in content["figures"]]
    lines += console.columns(figures)
    if rows := content.get("sync"):
        names = list(rows["truth"])
        text = {name: "".join(f"{rows[row][name]:11.4g}" for row in ("generated", "truth")) for name in names}
        lines += console.columns([("", f"{'generated':>11}{'truth':>11}"), *text.items()])
    return [*lines, *(f"not measured: {name} ({reason})" for name, reason in content["missing"].items())]


if __name__ == "__main__":
    console.run(compare)
