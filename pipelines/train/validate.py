"""Validation after an epoch, spread over the workers of a stage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation import validation
from lawdnet.evaluation.landmarks import LandmarksByRow, MeshLandmarker, find_bundle
from lawdnet.evaluation.plan import foreign_segments
from lawdnet.evaluation.sync import SyncScorer
from lawdnet.evaluation.sync_validation import OFFSET
from lawdnet.models.syncnet import SyncNet
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from lawdnet.training.stages import Stage
from pipelines.train.elastic import gather

log = logging.getLogger(__name__)

PER_VIDEO = 4
"""Largest number of segments of one held-out video."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Measures a network on the held-out videos; each worker measures a part, and all get the metrics of the whole."""

    segments: Sequence[SegmentRef]
    most: int
    rank: int
    world: int
    config: TrainConfig
    stage: Stage
    stored_width: int
    device: torch.device
    scorer: SyncScorer | None = None
    landmarks: LandmarksByRow | None = None
    """Finds the landmarks of generated frames; those of the true ones are kept until the stage ends."""

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return those of `VALIDATION_METRICS` (see `lawdnet.training.gates`) that can be measured.

        There are none without held-out videos. A sync network also gets the number of segments found at each offset,
        such as `offset_at_+3`.

        All workers call it together.
        """
        everywhere = validation.plan(self.segments, limit=PER_VIDEO, most=self.most)
        refs = everywhere[self.rank :: self.world]
        if isinstance(network, SyncNet):
            sums = validation.validate_sync(
                network,
                refs,
                feature=self.config.sync_feature,
                device=self.device,
                foreign=foreign_segments(everywhere),
                seed=self.config.seed,
            )
        else:
            sums = validation.validate(
                network,
                refs,
                mouth_px=self.stage.mouth_px,
                audio=self.config.audio_feature,
                stored_width=self.stored_width,
                device=self.device,
                scorer=self.scorer,
                landmarks=self.landmarks,
                seed=self.config.seed,
            )
        everyone = validation.merge(gather(sums))
        return validation.metrics(everyone) | {k: n for k, n in everyone.items() if k.startswith(OFFSET)}


def scorer_of(syncnet: Path | None, device: torch.device) -> SyncScorer | None:
    """A scorer with the run's own sync network, if it has one."""
    return SyncScorer(syncnet, device=str(device)) if syncnet else None


def check_landmarks(options: RunOptions) -> None:
    """Check, before workers start, that landmarks of generated frames can be found; a warning says so if not.

    Raises:
        ValueError: a gate or the choice of the best checkpoint needs them, and the network cannot be fetched.
    """
    try:
        find_bundle(fetch=options.needs_landmarks)
    except ValueError as error:
        if options.needs_landmarks:
            raise
        log.warning("validation leaves out the metrics of landmarks (opening_correlation, lmd, …): %s", error)


def landmarks_of(options: RunOptions) -> LandmarksByRow | None:
    """Return what finds landmarks of generated frames, or None if any worker lacks the network; all call it together.

    Raises:
        ValueError: as `check_landmarks`.
    """
    found: LandmarksByRow | None = None
    try:
        found = LandmarksByRow(MeshLandmarker(find_bundle(fetch=options.needs_landmarks)))
    except ValueError:
        if options.needs_landmarks:
            raise
    # a mean over the workers that happen to have the network would depend on their number
    return found if all(gather(found is not None)) else None
