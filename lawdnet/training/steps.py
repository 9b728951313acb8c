"""One optimiser step of the generator against its discriminators, and what any step is to the loop.

Shape letters: B batch, N frames of a sample, M pictures (B·N), H W crop, S side of the square the sync network sees,
C feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lawdnet.face.geometry import stage_size
from lawdnet.face.mask import keep_mask
from lawdnet.models.discriminator import Discriminator
from lawdnet.models.generator import Generator
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.syncnet import SyncNet
from lawdnet.training.alarms import NonFiniteLoss, check_finite
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.contrast import SyncStep
from lawdnet.training.ema import Ema
from lawdnet.training.losses import PIXEL_LOSSES, gradient_shares, lsgan, mouth_l1, perceptual, pulls
from lawdnet.training.networks import Metrics, Networks, Stateful, Wrap
from lawdnet.training.precision import compile_in_place
from lawdnet.training.ramp import SyncBound, SyncRamp
from lawdnet.training.shapes import discriminator_config, generator_config, mouth_square
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

__all__ = ["GanStep", "Metrics", "NonFiniteLoss", "Step", "SyncStep", "Wrap", "check_finite", "mouth_square"]


class Step(Protocol):
    """What a kind of stage is to the loop and to its checkpoints."""

    config: TrainConfig
    stage: Stage
    networks: dict[str, nn.Module]
    """Unwrapped, by the names they are saved under."""
    optimizers: dict[str, torch.optim.Optimizer]
    parts: dict[str, Stateful]
    """Everything else that going on needs."""

    def __call__(self, *batches: TrainBatch) -> Metrics:
        """Takes one optimiser step on the batches together and returns its losses, detached.

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        ...

    def preview(self, batch: TrainBatch) -> Tensor | None:
        """Pictures to look at, rows × 3 × H × W in [0, 1]; None where there is nothing to see."""
        ...


class GanStep(Networks):
    """Generator against its discriminators, for single frames and for clips of five.

    Args:
        audio_dim: C of the generator's feature.
        syncnet: trained sync network, needed where the stage weighs its score.
        collectives: see `Networks`.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        device: torch.device,
        wrap: Wrap,
        *,
        audio_dim: int,
        syncnet: SyncNet | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        super().__init__(config, stage, device, wrap, collectives)
        weights = stage.weights
        if weights.sync and syncnet is None:
            raise ValueError(
                f"{stage.name}: weights.sync is {weights.sync}, but there is no trained syncnet stage; "
                f"train it first or --set {stage.name}.weights.sync=0"
            )
        self._add_generator(Generator(generator_config(config, audio_dim)))
        if weights.gan:
            self.add("image_discriminator", Discriminator(discriminator_config(config, stage, 3)))
        if weights.clip_gan:
            self.add("clip_discriminator", Discriminator(discriminator_config(config, stage, 3 * stage.num_frames)))
        self.syncnet = syncnet.to(device).eval().requires_grad_(False) if syncnet and weights.sync else None
        self.ramp, self.bound = SyncRamp(config.sync_ramp, config.sync_below), SyncBound(config.sync_share)
        self.parts |= {"ramp": self.ramp, "bound": self.bound}
        self.features = None
        if weights.perceptual and config.perceptual_weights:
            self.features = VGG19Features.from_file(Path(config.perceptual_weights)).to(device)
        self.keep_HW = torch.from_numpy(keep_mask(*stage_size(stage.mouth_px)).copy()).to(device)
        self.taken = 0
        self.powers: list[Tensor] = []
        """Squared norms of the pull of the sync loss, at weight 1, and of the others', of each batch of a step. No
        metrics: where the gradient scaler overflows they are not finite, which is its affair."""

    def _add_generator(self, generator: Generator) -> None:
        self.ema = None
        if self.config.ema_decay:
            self.ema = self.parts["ema"] = Ema(self.precision.place(generator), self.config.ema_decay)
        if self.config.compile:
            compile_in_place(generator.warp)
        self.generator = self.add("generator", generator)

    @property
    def evaluated(self) -> Generator:
        """The generator to validate and to show: the running mean of the weights where there is one."""
        return cast("Generator", self.ema.network if self.ema else self.networks["generator"])

    def generate(self, batch: TrainBatch, generator: nn.Module | None = None) -> Tensor:
        """The pictures of the generator, or of another one: B·N × 3 × H × W."""
        masked_M3HW = batch.source_BN3HW.flatten(0, 1) * self.keep_HW
        pictures = (masked_M3HW, batch.reference_BN15HW.flatten(0, 1))
        placed = [picture.contiguous(memory_format=self.precision.layout) for picture in pictures]
        with self.precision.autocast():
            made_M3HW: Tensor = (generator or self.generator)(*placed, batch.audio_BNC5.flatten(0, 1))
        return made_M3HW.float()

    def __call__(self, *batches: TrainBatch) -> Metrics:
        """Trains the discriminators, then the generator against them."""
        # One graph serves both; those of several batches would not fit in memory, so they are drawn again.
        held = self.generate(batches[0]) if len(batches) == 1 else None
        critics, metrics = [name for name in self.networks if name != "generator"], Metrics()
        if critics:
            metrics |= self.update(critics, batches, lambda batch: self._critic_losses(batch, held))
        self.powers.clear()
        metrics |= self.update(["generator"], batches, lambda batch: self._generator_losses(batch, held))
        self.taken += 1
        if self.ema:
            self.ema.update(self.networks["generator"])
        if self.syncnet:
            self._watch_sync(metrics)
        return metrics

    def _watch_sync(self, metrics: Metrics) -> None:
        """What ramp and bound go by, over all ranks."""
        nothing = torch.full((), torch.nan, device=self.device)
        powers_2 = torch.stack(self.powers).mean(0) if self.powers else nothing.expand(2)
        losses_2 = torch.stack([metrics.get("sync_true", nothing), metrics["sync"]])
        true, made, sync, rest = self.collectives.mean(torch.cat([losses_2, powers_2])).tolist()
        self.ramp.see(true, made)
        self.bound.see(sync, rest)

    def _as_clip(self, images_M3HW: Tensor) -> Tensor:
        return images_M3HW.unflatten(0, (-1, self.stage.num_frames)).flatten(1, 2)

    def _critic_losses(self, batch: TrainBatch, held_M3HW: Tensor | None) -> tuple[Tensor, Metrics]:
        if held_M3HW is None:
            with torch.no_grad():
                held_M3HW = self.generate(batch)
        made_M3HW, true_M3HW = held_M3HW.detach(), batch.source_BN3HW.flatten(0, 1)
        losses: Metrics = {}
        for name, view in self._views():
            # one forward for both, as DDP wants one backward per forward
            both = torch.cat([view(true_M3HW), view(made_M3HW)])
            score_real, score_made = self.wrapped[name](both).float().chunk(2)
            losses[name] = (lsgan(score_real, 1.0) + lsgan(score_made, 0.0)) / 2
        return torch.stack(list(losses.values())).sum(), losses

    def _views(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "image_discriminator": lambda images: images,
            "clip_discriminator": self._as_clip,
        }
        return [(name, view) for name, view in views.items() if name in self.networks]

    def _generator_losses(self, batch: TrainBatch, held_M3HW: Tensor | None) -> tuple[Tensor, Metrics]:
        made_M3HW = self.generate(batch) if held_M3HW is None else held_M3HW
        losses = self._picture_losses(made_M3HW, batch.source_BN3HW.flatten(0, 1))
        weights = {name: getattr(self.stage.weights, name) for name in losses}
        metrics = dict(losses)
        if self.syncnet:
            weight = self.stage.weights.sync * self.ramp.factor
            weights["sync"] = weight * self.bound.factor(weight)
            with torch.set_grad_enabled(weight > 0):
                losses["sync"] = metrics["sync"] = self._sync_loss(made_M3HW, batch)
            metrics["sync_weight"] = made_M3HW.new_tensor(weights["sync"])
            if self.ramp.is_waiting:
                with torch.no_grad():
                    metrics["sync_true"] = self._sync_loss(batch.source_BN3HW.flatten(0, 1), batch)
        weighted = {name: loss * weights[name] for name, loss in losses.items() if weights[name]}
        metrics["total"] = sum(weighted.values(), made_M3HW.new_zeros(()))
        pulled = self._pulls(weighted, made_M3HW)
        if self.config.share_every and self.taken % self.config.share_every == 0:
            metrics |= gradient_shares(pulled)
        whole_M3HW = sum(pulled.values(), torch.zeros_like(made_M3HW))
        if "sync" in pulled:
            sync_M3HW, rest_M3HW = pulled["sync"] / weights["sync"], whole_M3HW - pulled["sync"]
            self.powers.append(torch.stack([sync_M3HW.square().sum(), rest_M3HW.square().sum()]).detach())
        return (whole_M3HW * made_M3HW).sum(), metrics  # its gradient at the pictures is the pulls' sum

    def _pulls(self, weighted: Metrics, made_M3HW: Tensor) -> Metrics:
        """`pulls`, through half precision at the gradient scaler's scale."""
        scaler = self.precision.scaler
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        scaled = pulls({name: scaler.scale(loss) for name, loss in weighted.items()}, made_M3HW)
        return {name: pull / scale for name, pull in scaled.items()}

    def _picture_losses(self, made_M3HW: Tensor, true_M3HW: Tensor) -> Metrics:
        weights, losses = self.stage.weights, Metrics()
        if weights.pixel:
            losses["pixel"] = PIXEL_LOSSES[self.config.pixel_loss](made_M3HW, true_M3HW)
        if weights.mouth:
            losses["mouth"] = mouth_l1(made_M3HW, true_M3HW, 1 - self.keep_HW)
        if self.features:
            losses["perceptual"] = perceptual(self.features, made_M3HW, true_M3HW)
        for name, view in self._views():
            critic = self.networks[name].requires_grad_(False)  # unwrapped: its own gradients are not wanted here
            losses["gan" if name == "image_discriminator" else "clip_gan"] = lsgan(critic(view(made_M3HW)).float(), 1.0)
            critic.requires_grad_(True)
        return losses

    def _sync_loss(self, images_M3HW: Tensor, batch: TrainBatch) -> Tensor:
        """Mean squared distance of the score from 1, of the clips' mouths with their sounds."""
        assert self.syncnet
        frames_BN3HW = images_M3HW.unflatten(0, batch.source_BN3HW.shape[:2])
        square = mouth_square(frames_BN3HW, self.stage.mouth_px, self.syncnet.config.face_px)
        score_B: Tensor = self.syncnet(square, batch.sync_audio_BC9).float().mean((1, 2, 3))
        return (score_B - 1).square().mean()

    @torch.no_grad()
    def preview(self, batch: TrainBatch) -> Tensor:
        """For up to four samples, side by side: masked source, first reference, generated, truth."""
        few = slice(0, 4)
        small = TrainBatch(
            source_BN3HW=batch.source_BN3HW[few, :1],
            reference_BN15HW=batch.reference_BN15HW[few, :1],
            audio_BNC5=batch.audio_BNC5[few, :1],
        )
        true = small.source_BN3HW[:, 0]
        made = self.generate(small, self.evaluated)
        columns = [true * self.keep_HW, small.reference_BN15HW[:, 0, :3], made, true]
        return torch.cat(columns, dim=-1).clamp(0, 1)
