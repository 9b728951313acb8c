"""The step of the sync network.

Shape letters: B faces of a batch, G of all batches and ranks of a step, A sounds, D embedding, C feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.syncnet import SyncNet
from lawdnet.training.alarms import Alarm, Plateau
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.losses import contrast, contrast_chance, same_numbers
from lawdnet.training.networks import Metrics, Networks, Wrap
from lawdnet.training.shapes import mouth_square, syncnet_config
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

DEAF = (
    "the network hears no relation between sound and mouth. Most likely sound and picture of the dataset are apart: "
    "look at the histogram of offsets of `lawdnet inspect DATASET`, and keep what is in step with `lawdnet select`"
)


class _Embedder(nn.Module):
    """What DistributedDataParallel calls: it sees only what goes through `forward`."""

    def __init__(self, syncnet: SyncNet) -> None:
        super().__init__()
        self.syncnet = syncnet

    def forward(self, faces_B15SS: Tensor, audio_AC9: Tensor) -> tuple[Tensor, Tensor]:
        """B×D and A×D."""
        return self.syncnet.embed(faces_B15SS, audio_AC9)


class SyncStep(Networks):
    """Sync network: each face of a step against all its sounds.

    Wrong sounds are those of the other faces, sound from elsewhere in the face's segment, and sound of its mouth at
    rest. Single pairs with a squared error (the published loss of the generator's side) stay at chance for hundreds of
    steps on the same data; G faces have G·(3·G - 1) wrong pairs to learn from.

    Several batches, and all ranks, make *one* contrast (GradCache, Gao et al. 2021, arXiv 2101.06983): vectors of all
    batches first, without graphs; the loss of all pairs gives a gradient at each vector; then each batch is encoded
    again and takes its part of that gradient through the network. Exact, for the memory of one batch.

    Args:
        audio_dim: C of the feature that it hears.
        alarm: told where the loss stays at chance.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        device: torch.device,
        wrap: Wrap,
        *,
        audio_dim: int,
        collectives: Collectives | None = None,
        alarm: Alarm = lambda text: None,
    ) -> None:
        super().__init__(config, stage, device, wrap, collectives)
        self.syncnet = SyncNet(syncnet_config(config, stage, audio_dim))
        self.embedder = self.add("syncnet", self.syncnet, _Embedder(self.syncnet))
        self.plateau = Plateau(config.plateau_steps, lambda text: alarm(f"{stage.name}: {text}"), DEAF)

    def __call__(self, *batches: TrainBatch) -> Metrics:
        """Trains on the batches together.

        Returns:
            total, chance (the loss of guessing), score (mean cosine of true pairs), accuracy (share of faces that score
            their own sound above another from elsewhere in their segment), accuracy_quiet (above that of their mouth at
            rest).

        Raises:
            NonFiniteLoss: on every rank, and none has stepped.
        """
        self.zero_grad(["syncnet"])
        keeps_graph = len(batches) == 1
        with torch.set_grad_enabled(keeps_graph):
            pairs = [self._vectors(batch) for batch in batches]
        leaves = [(face.detach().requires_grad_(), sound.detach().requires_grad_()) for face, sound in pairs]
        metrics = self._contrast(leaves, [_sounds(batch) for batch in batches])
        self.precision.scaler.scale(metrics["total"]).backward()
        for index, (batch, leaf) in enumerate(zip(batches, leaves, strict=True)):
            with self.local(["syncnet"], is_last=index + 1 == len(batches)):
                vectors = pairs[index] if keeps_graph else self._vectors(batch)
                # ranks average their gradients, but this is one loss, so the parts of all ranks add up
                torch.autograd.backward(vectors, [cast("Tensor", v.grad) * self.collectives.world for v in leaf])
        self.step(["syncnet"], {"contrast": metrics["total"]})
        metrics = {name: value.detach() for name, value in metrics.items()}
        self.plateau.see(float(metrics["total"]), float(metrics["chance"]))
        return metrics

    @torch.no_grad()
    def evaluate(self, batch: TrainBatch) -> Metrics:
        """What a step would return, of this rank's batch alone and without learning from it: for held-out data."""
        with self.precision.autocast():
            face_BD, sound_AD = self.syncnet.embed(self._square(batch), _sounds(batch))
        return _measure(face_BD.float(), sound_AD.float(), _sounds(batch))

    def preview(self, batch: TrainBatch) -> None:
        """A score is no picture."""

    def _square(self, batch: TrainBatch) -> Tensor:
        return mouth_square(batch.source_BN3HW, self.stage.mouth_px, self.stage.mouth_px)

    def _vectors(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        with self.precision.autocast():
            face_BD, sound_AD = self.embedder(self._square(batch), _sounds(batch))
        return face_BD.float(), sound_AD.float()

    def _contrast(self, leaves: Sequence[tuple[Tensor, Tensor]], sounds: Sequence[Tensor]) -> Metrics:
        """The loss over all batches and ranks, and the rest; gradients flow to this rank's vectors only."""
        faces_GD = self._everyone([face for face, _ in leaves])
        kinds = len(sounds[0]) // len(leaves[0][0])
        return _measure(faces_GD, self._by_kind([v for _, v in leaves], kinds), self._by_kind(sounds, kinds))

    def _by_kind(self, parts: Sequence[Tensor], kinds: int) -> Tensor:
        """Sounds of all batches and ranks: those that belong to a face, in the faces' order, then kind by kind."""
        chunks = [part.chunk(kinds) for part in parts]
        return torch.cat([self._everyone([chunk[kind] for chunk in chunks]) for kind in range(kinds)])

    def _everyone(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of all batches and ranks, with the graph of this rank's."""
        mine = torch.cat(list(parts))
        return torch.cat(
            [
                mine if rank == self.collectives.rank else rows
                for rank, rows in enumerate(self.collectives.gather(mine.detach()))
            ]
        )


def _sounds(batch: TrainBatch) -> Tensor:
    """A×C×9: a batch's own sounds, then the wrong ones that were drawn for it."""
    assert batch.sync_audio_BC9 is not None
    assert batch.other_audio_BC9 is not None
    return torch.cat([batch.sync_audio_BC9, batch.other_audio_BC9])


def _measure(faces_GD: Tensor, sounds_AD: Tensor, sounds_AC9: Tensor) -> Metrics:
    score_GA, kind_A = faces_GD @ sounds_AD.T, same_numbers(sounds_AC9)
    count, own_G = len(faces_GD), score_GA.diagonal()
    metrics = {
        "total": contrast(score_GA, kind_A),
        "chance": score_GA.new_tensor(contrast_chance(count, len(sounds_AD))),
        "score": own_G.mean(),
    }
    for name, wrong in zip(("accuracy", "accuracy_quiet"), range(count, len(sounds_AD), count), strict=False):
        differs_G = kind_A[wrong : wrong + count] != kind_A[:count]
        is_right_G = (own_G > score_GA.diagonal(wrong)) & differs_G
        metrics[name] = is_right_G.sum() / differs_G.sum().clamp_min(1)
    return metrics
