"""Validation after an epoch, spread over the workers of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lawdnet.data.manifest import SegmentRef
from lawdnet.evaluation import validation
from lawdnet.evaluation.sync import SyncScorer
from lawdnet.evaluation.sync_validation import OFFSET
from lawdnet.models.syncnet import SyncNet
from lawdnet.training.config import TrainConfig
from lawdnet.training.stages import Stage
from pipelines.train.elastic import gather

PER_VIDEO = 4
"""Largest number of segments of one held-out video."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Measures a network on the held-out videos; each worker measures a part, and all get the metrics of the whole."""

    segments: list[SegmentRef]
    most: int
    rank: int
    world: int
    config: TrainConfig
    stage: Stage
    stored_width: int
    device: torch.device
    scorer: SyncScorer | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return those of `VALIDATION_METRICS` (see `lawdnet.training.gates`) that can be measured.

        There are none without held-out videos. A sync network also gets the number of segments found at each offset,
        such as `offset_at_+3`.

        All workers call it together.
        """
        refs = validation.plan(self.segments, self.rank, self.world, limit=PER_VIDEO, most=self.most)
        if isinstance(network, SyncNet):
            sums = validation.validate_sync(
                network, refs, feature=self.config.sync_feature, device=self.device, seed=self.config.seed
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
                seed=self.config.seed,
            )
        everyone = validation.merge(gather(sums))
        return validation.metrics(everyone) | {k: n for k, n in everyone.items() if k.startswith(OFFSET)}


def scorer_of(syncnet: Path | None, device: torch.device) -> SyncScorer | None:
    """A scorer with the run's own sync network, if it has one."""
    return SyncScorer(syncnet, device=str(device)) if syncnet else None
