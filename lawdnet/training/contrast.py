"""One optimiser step of the sync network.

Shape letters: B faces of a batch, G faces of all batches and ranks of a step, R some of them, A audio clips of nine
rows, D embedding, C feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.syncnet import SyncNet
from lawdnet.training.alarms import CHECK_OFFSETS, Alarm, Plateau
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.losses import contrast, contrast_chance, equal_audio, rivals
from lawdnet.training.networks import Metrics, Movable, Networks, Values, Wrap
from lawdnet.training.shapes import mouth_square, syncnet_config
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

BLOCK = 1 << 24
"""Pairs that are compared at once: some hundred MB, however many faces a step has."""
ADVICE = (
    "the network finds no relation between audio and mouth. Most likely the dataset's audio and video are out of sync: "
    f"{CHECK_OFFSETS}"
)


Embedder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Faces and audio → their embeddings."""


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
    again, and its part of that gradient goes through the network. This is exact and needs the memory of one batch. Each
    rank compares its own faces, some at a time, so memory does not grow with the square of the batch.

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

    def __call__(self, *batches: Movable) -> Values:
        """Take one optimiser step on the batches together.

        Returns:
            total, chance (the loss of guessing), score (mean cosine of true pairs), accuracy (share of faces that score
            their own audio above other audio from their segment), accuracy_quiet (above audio of their mouth at rest).

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        self.zero_grad(["syncnet"])
        keeps_graph = len(batches) == 1 and self.collectives.is_alike
        parts: list[_Part] = []
        for batch in batches:
            with torch.set_grad_enabled(keeps_graph):
                parts.append(self._embed(batch.to(self.device)))
        metrics, gradients = self._contrast(parts)
        for index, batch in enumerate(batches):
            with self.local(["syncnet"], is_last=index + 1 == len(batches)):
                part = parts[index] if keeps_graph else self._embed(batch.to(self.device))
                # ranks average their gradients, but this is one loss, so the parts of all ranks add up
                gradient = [one / self.collectives.weight for one in gradients[index]]
                torch.autograd.backward([part.face_BD, part.voice_AD], gradient)
        self.step(["syncnet"], {"contrast": metrics["total"]})
        values, _ = self.finish(metrics)
        self.plateau.update(values["total"], values["chance"])
        return values

    def preview(self, batch: TrainBatch) -> None:
        """None: a sync network has no images to show."""

    def _embed(self, batch: TrainBatch, embedder: Embedder | None = None) -> _Part:
        assert batch.sync_audio_BC9 is not None
        assert batch.other_audio_BC9 is not None
        square = mouth_square(batch.source_BN3HW, self.stage.mouth_px, self.stage.mouth_px)
        audio_AC9 = torch.cat([batch.sync_audio_BC9, batch.other_audio_BC9])
        with self.precision.autocast():
            face_BD, voice_AD = (embedder or self.embedder)(square, audio_AC9)
        return _Part(face_BD.float(), voice_AD.float(), audio_AC9, batch.audio_origin_A2)

    def _contrast(self, parts: Sequence[_Part]) -> tuple[Metrics, list[tuple[Tensor, Tensor]]]:
        """The metrics over all batches and ranks, and the scaled gradient at each batch's embeddings of this rank.

        Each rank compares its own faces with all audio, and its own audio with all faces; the sums are exchanged.
        """
        kinds = len(parts[0].voice_AD) // len(parts[0].face_BD)
        gather, total = self.collectives.gather, self.collectives.total
        faces_GD = gather(torch.cat([part.face_BD.detach() for part in parts])).requires_grad_()
        voices_AD = self._by_kind([part.voice_AD.detach() for part in parts], kinds).requires_grad_()
        kind_A = equal_audio(self._by_kind([part.audio_AC9 for part in parts], kinds))
        origins = [part.origin_A2 for part in parts if part.origin_A2 is not None]
        pairs = _Pairs(faces_GD, voices_AD, kind_A, self._by_kind(origins, kinds) if origins else None)
        mine = self.collectives.mine(len(faces_GD))
        sums = Metrics()
        for rows in _blocks(mine, len(voices_AD)):
            found = pairs.sums(rows)
            self.precision.scaler.scale(found["total"] / len(faces_GD)).backward()
            sums = {name: sums.get(name, 0) + value.detach() for name, value in found.items()}
        names = list(sums)
        sums = dict(zip(names, total(torch.stack([sums[name].float() for name in names])), strict=True))
        sizes = [len(part.face_BD) for part in parts]
        grad_GD, grad_AD = total(cast("Tensor", faces_GD.grad)), total(cast("Tensor", voices_AD.grad))
        by_kind = [kind_GD[mine].split(sizes) for kind_GD in grad_AD.chunk(kinds)]
        voices = [torch.cat(kind) for kind in zip(*by_kind, strict=True)]
        return _metrics(sums), list(zip(grad_GD[mine].split(sizes), voices, strict=True))

    def _by_kind(self, parts: Sequence[Tensor], kinds: int) -> Tensor:
        """Rows of all batches and ranks: of the right audio in the faces' order, then of the wrong kind by kind."""
        chunks = zip(*(part.chunk(kinds) for part in parts), strict=True)
        return torch.cat([self.collectives.gather(torch.cat(chunk)) for chunk in chunks])


@dataclass(frozen=True)
class _Part:
    """A batch: faces, and its own audio before the wrong audio drawn for it."""

    face_BD: Tensor
    voice_AD: Tensor
    """The embedded audio."""
    audio_AC9: Tensor
    origin_A2: Tensor | None


@dataclass(frozen=True)
class _Pairs:
    """All faces and all audio of a step."""

    face_GD: Tensor
    voice_AD: Tensor
    kind_A: Tensor
    origin_A2: Tensor | None

    def sums(self, rows: slice) -> Metrics:
        """The sums of everything that is measured over some of the faces and their own audio."""
        count = len(self.face_GD)
        face_RD, own_RD = self.face_GD[rows], self.voice_AD[:count][rows]
        rivals_RA = rivals(self.kind_A, self.origin_A2, count, rows)
        own_R = (face_RD * own_RD).sum(1)
        found = {
            "total": contrast(face_RD @ self.voice_AD.T, own_RD @ self.face_GD.T, rivals_RA, rows.start or 0),
            "chance": contrast_chance(rivals_RA, count),
            "score": own_R.sum(),
            "faces": own_R.new_full((), len(own_R)),
        }
        for name, wrong in zip(("accuracy", "accuracy_quiet"), range(count, len(self.voice_AD), count), strict=False):
            differs_R = self.kind_A[wrong : wrong + count][rows] != self.kind_A[:count][rows]
            is_right_R = own_R > (face_RD * self.voice_AD[wrong : wrong + count][rows]).sum(1)
            found |= {name: (is_right_R & differs_R).sum(), f"{name} of": differs_R.sum()}
        return found


def _metrics(sums: Metrics) -> Metrics:
    """Means of what was measured over all faces."""
    means = {name: sums[name] / sums["faces"] for name in ("total", "chance", "score")}
    accuracies = {name: sums[name] / sums[f"{name} of"].clamp_min(1) for name in sums if f"{name} of" in sums}
    return means | accuracies


def _blocks(rows: slice, columns: int) -> list[slice]:
    """Cut rows of a matrix into parts of at most `BLOCK` values."""
    size = max(1, BLOCK // columns)
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
