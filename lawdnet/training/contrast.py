"""One optimiser step of the sync network.

Shape letters: B faces of a batch, G faces of all batches and ranks of a step, A audio clips of nine rows, D embedding,
C feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.syncnet import SyncNet
from lawdnet.training.alarms import CHECK_OFFSETS, Alarm, Plateau
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.losses import contrast, contrast_chance, equal_audio, rivals
from lawdnet.training.networks import Metrics, Networks, Wrap
from lawdnet.training.shapes import mouth_square, syncnet_config
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

ADVICE = (
    "the network finds no relation between audio and mouth. Most likely the dataset's audio and video are out of sync: "
    f"{CHECK_OFFSETS}"
)


class _Embedder(nn.Module):
    """The sync network as DistributedDataParallel needs it, with the embedding in `forward`."""

    def __init__(self, syncnet: SyncNet) -> None:
        super().__init__()
        self.syncnet = syncnet

    def forward(self, faces_B15SS: Tensor, audio_AC9: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the faces (B×D) and the audio (A×D)."""
        return self.syncnet.embed(faces_B15SS, audio_AC9)


class SyncStep(Networks):
    """Contrasts each face of a step with all audio clips of the step.

    Wrong audio is that of the other faces, audio from elsewhere in the face's segment, and audio of its mouth at rest.
    Single pairs with a squared error (the published sync loss of the generator) stay at chance for hundreds of steps on
    the same data; G faces have G·(3·G - 1) wrong pairs to learn from.

    All batches of all ranks make *one* contrast (GradCache, Gao et al. 2021, arXiv 2101.06983): first all batches are
    embedded without graphs; the loss over all pairs gives a gradient at each embedding; then each batch is embedded
    again, and its part of that gradient goes through the network. This is exact and needs the memory of one batch.

    Args:
        audio_dim: C of the sync network's feature.
        alarm: called if the loss stays at chance.
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
        self.plateau = Plateau(config.plateau_steps, lambda text: alarm(f"{stage.name}: {text}"), ADVICE)

    def __call__(self, *batches: TrainBatch) -> Metrics:
        """Take one optimiser step on the batches together.

        Returns:
            total, chance (the loss of guessing), score (mean cosine of true pairs), accuracy (share of faces that score
            their own audio above other audio from their segment), accuracy_quiet (above audio of their mouth at rest).

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        self.zero_grad(["syncnet"])
        keeps_graph = len(batches) == 1
        with torch.set_grad_enabled(keeps_graph):
            pairs = [self._embed(batch) for batch in batches]
        leaves = [(face.detach().requires_grad_(), audio.detach().requires_grad_()) for face, audio in pairs]
        metrics = self._contrast(leaves, batches)
        self.precision.scaler.scale(metrics["total"]).backward()
        for index, (batch, leaf) in enumerate(zip(batches, leaves, strict=True)):
            with self.local(["syncnet"], is_last=index + 1 == len(batches)):
                vectors = pairs[index] if keeps_graph else self._embed(batch)
                # ranks average their gradients, but this is one loss, so the parts of all ranks add up
                torch.autograd.backward(vectors, [cast("Tensor", v.grad) * self.collectives.world for v in leaf])
        self.step(["syncnet"], {"contrast": metrics["total"]})
        metrics = {name: value.detach() for name, value in metrics.items()}
        self.plateau.update(float(metrics["total"]), float(metrics["chance"]))
        return metrics

    def preview(self, batch: TrainBatch) -> None:
        """None: a sync network has no images to show."""

    def _square(self, batch: TrainBatch) -> Tensor:
        return mouth_square(batch.source_BN3HW, self.stage.mouth_px, self.stage.mouth_px)

    def _embed(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        with self.precision.autocast():
            face_BD, audio_AD = self.embedder(self._square(batch), _all_audio(batch))
        return face_BD.float(), audio_AD.float()

    def _contrast(self, leaves: Sequence[tuple[Tensor, Tensor]], batches: Sequence[TrainBatch]) -> Metrics:
        """The metrics over all batches and ranks; gradients flow only to this rank's embeddings."""
        faces_GD = self._everyone([face for face, _ in leaves])
        audio = [_all_audio(batch) for batch in batches]
        kinds = len(audio[0]) // len(leaves[0][0])
        origins = [batch.audio_origin_A2 for batch in batches if batch.audio_origin_A2 is not None]
        origin_A2 = self._by_kind(origins, kinds) if origins else None
        audio_AD = self._by_kind([v for _, v in leaves], kinds)
        return _measure(faces_GD, audio_AD, self._by_kind(audio, kinds), origin_A2)

    def _by_kind(self, parts: Sequence[Tensor], kinds: int) -> Tensor:
        """Audio of all batches and ranks: the right audio in the faces' order, then the wrong kind by kind."""
        chunks = [part.chunk(kinds) for part in parts]
        return torch.cat([self._everyone([chunk[kind] for chunk in chunks]) for kind in range(kinds)])

    def _everyone(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of all batches and ranks; those of this rank keep their graph."""
        mine = torch.cat(list(parts))
        return torch.cat(
            [
                mine if rank == self.collectives.rank else rows
                for rank, rows in enumerate(self.collectives.gather(mine.detach()))
            ]
        )


def _all_audio(batch: TrainBatch) -> Tensor:
    """A batch's own audio, then the wrong audio drawn for it: A×C×9."""
    assert batch.sync_audio_BC9 is not None
    assert batch.other_audio_BC9 is not None
    return torch.cat([batch.sync_audio_BC9, batch.other_audio_BC9])


def _measure(faces_GD: Tensor, audio_AD: Tensor, audio_AC9: Tensor, origin_A2: Tensor | None) -> Metrics:
    score_GA = faces_GD @ audio_AD.T
    kind_A = equal_audio(audio_AC9)
    count, own_G = len(faces_GD), score_GA.diagonal()
    rivals_GA = rivals(kind_A, origin_A2, count)
    metrics = {
        "total": contrast(score_GA, rivals_GA),
        "chance": contrast_chance(rivals_GA),
        "score": own_G.mean(),
    }
    for name, wrong in zip(("accuracy", "accuracy_quiet"), range(count, len(audio_AD), count), strict=False):
        differs_G = kind_A[wrong : wrong + count] != kind_A[:count]
        is_right_G = (own_G > score_GA.diagonal(wrong)) & differs_G
        metrics[name] = is_right_G.sum() / differs_G.sum().clamp_min(1)
    return metrics
