"""Compares a generated video with the real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.storage import Location
    from lawdnet.types import Landmarks

TEXTS = {
    "psnr": "dB over the whole frame",
    "ssim": "of the whole frame",
    "mouth_psnr": "dB over the mouth square, aligned",
    "mouth_ssim": "of the mouth square",
}
"""Metrics that are not those of a validation, whose texts are in `VALIDATION_METRICS`."""
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

    found = _Found()
    weights = console.located(weights_dir)
    true = found.face(real, landmarks, weights)
    quality = measure(real, generated, true).to_dict()
    found.figures.update({name: quality.pop(name) for name in ("psnr", "ssim", "mouth_psnr", "mouth_ssim")})
    if true:
        found.mouths(real, generated, true)
        found.faces(real, generated, true, landmarks, weights_dir=weights, device=device)
    rates = {"fps_real": probe(real).fps, "fps_generated": probe(generated).fps}
    content: dict[str, Any] = {"real": str(real), "generated": str(generated), **quality, **rates}
    if sync and true:
        content["sync"] = found.attempt("sync", partial(_sync, real, generated, true, sync, device))
    elif sync:
        found.missing["sync"] = "needs the landmarks of the real video"
    content |= {"figures": {n: v for n, v in found.figures.items() if not math.isnan(v)}, "missing": found.missing}
    content |= {"protocol": found.protocol, "unavailable": found.unavailable}
    console.result(content, _lines(content), as_json)


@dataclass(frozen=True)
class _Found:
    """What was measured, and why the rest was not."""

    figures: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """What these videos do not allow → why."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """What lacks a package or a file on this machine → which."""
    protocol: dict[str, Any] = field(default_factory=dict)

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what `measure` returns, or None if it rejects a video; the reason is then kept in `missing`."""
        from lawdnet.types import Rejected

        try:
            return measure()
        except Rejected as error:
            self.missing[name] = error.detail
            return None

    def face(self, path: Path, landmarks: str, weights_dir: Location | None) -> Landmarks | None:
        """Return the landmarks of a video, or None, with the reason in `missing`."""
        found: Landmarks | None = self.attempt(
            f"landmarks of {path.name}", partial(_face, path, landmarks, weights_dir)
        )
        return found

    def mouths(self, real: Path, generated: Path, true: Landmarks) -> None:
        """Measure the opening of drawn mouths in the pixels."""
        from lawdnet.evaluation.mouth import MEASURABLE
        from lawdnet.evaluation.protocol import mouth_motion

        motion = mouth_motion(real, generated, true)
        if motion.ceiling >= MEASURABLE:
            self.figures["mouth_correlation"] = motion.correlation
        else:
            self.missing["mouth_correlation"] = "the mouth cannot be measured in these frames, as it can in drawn heads"

    def faces(
        self,
        real: Path,
        generated: Path,
        true: Landmarks,
        landmarks: str,
        *,
        weights_dir: Location | None,
        device: str,
    ) -> None:
        """Measure how the mouth moves, and how the face looks."""
        from lawdnet.evaluation.appearance import Appearance
        from lawdnet.evaluation.landmarks import MeshLandmarker, find_bundle
        from lawdnet.evaluation.pairs import compare_faces
        from lawdnet.models.device import pick_device

        landmarker, reason = None, ""
        try:
            landmarker = MeshLandmarker(find_bundle(weights_dir, fetch=True))
            self.protocol["landmarks"] = {"text": "face_landmarker.task's mesh", "sha256": landmarker.sha256}
        except ValueError as error:
            reason = str(error)
        appearance = Appearance.open(weights_dir, str(pick_device(device)))
        self.figures.update(compare_faces(real, generated, true, landmarker, appearance))
        self.unavailable.update(appearance.missing)
        self.protocol["appearance"] = appearance.protocol()
        if landmarker is None:
            self._from_source(generated, true, self.face(generated, landmarks, weights_dir), reason)

    def _from_source(self, generated: Path, true: Landmarks, made: Landmarks | None, reason: str) -> None:
        """Measure how the mouth moves without the network, if one source has the landmarks of both videos."""
        from lawdnet.evaluation.pairs import compare_landmarks

        if made is None or made.source != true.source:
            self.missing["lmd"] = f"the landmarks of both videos must come from one source ({reason})"
            return
        self.figures.update(compare_landmarks(generated, true, made))
        self.protocol["landmarks"] = {"text": true.source}


def _face(path: Path, landmarks: str, weights_dir: Location | None) -> Landmarks | None:
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
    lines += console.columns(_rows(content))
    if rows := content.get("sync"):
        names = list(rows["truth"])
        text = {name: "".join(f"{rows[row][name]:11.4g}" for row in ("generated", "truth")) for name in names}
        lines += console.columns([("", f"{'generated':>11}{'truth':>11}"), *text.items()])
    lines += [f"not measured: {name} ({reason})" for name, reason in content["missing"].items()]
    return [*lines, *(f"n/a: {name} ({reason})" for name, reason in content["unavailable"].items())]


def _rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row for each metric: of the generated video, and of the real one where that says something."""
    from lawdnet.training.gates import VALIDATION_METRICS

    figures = content["figures"]
    texts = TEXTS | {name: metric.text for name, metric in VALIDATION_METRICS.items() if name not in TEXTS}
    texts |= {name: part["text"] for name, part in content["protocol"].get("appearance", {}).items()}

    def cell(name: str) -> str:
        return f"{figures[name]:11.4g}" if name in figures else f"{'–':>11}"

    rows = [(name, f"{cell(name)}{cell('truth_' + name)}  {text}") for name, text in texts.items() if name in figures]
    return [("", f"{'generated':>11}{'truth':>11}"), *rows]


if __name__ == "__main__":
    console.run(compare)
