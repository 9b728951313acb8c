"""One optimiser step of the generator against its discriminators, and the protocol of steps.

Shape letters: B batch, N frames of a sample, M images (B·N), R frames that are heard, H W crop, S side of the square
that the sync network sees, C feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lawdnet.face.geometry import stage_size
from lawdnet.face.mask import keep_mask
from lawdnet.models.discriminator import Discriminator
from lawdnet.models.generator import Generator
from lawdnet.models.lip_reader import READ_PX, LipReader
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.syncnet import SyncNet
from lawdnet.storage import locate
from lawdnet.training.alarms import Alarm, NonFiniteLoss
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.contrast import SyncStep
from lawdnet.training.ema import Ema
from lawdnet.training.lips import LipHead, Listening, lips_loss, read_loss, reader_loss
from lawdnet.training.losses import PIXEL_LOSSES, gradient_shares, image_gradients, lsgan, mouth_l1, perceptual
from lawdnet.training.networks import Metrics, Movable, Networks, Stateful, Values, Wrap
from lawdnet.training.precision import compile_in_place
from lawdnet.training.ramp import SyncBound, SyncRamp
from lawdnet.training.shapes import discriminator_config, generator_config, mouth_square
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

__all__ = ["GanStep", "NonFiniteLoss", "Step", "SyncStep", "Values", "Wrap", "mouth_square"]


class Step(Protocol):
    """What the loop and the checkpoints need of a kind of stage."""

    config: TrainConfig
    stage: Stage
    networks: dict[str, nn.Module]
    """Unwrapped, by the names under which they are saved."""
    optimizers: dict[str, torch.optim.Optimizer]
    parts: dict[str, Stateful]
    """Everything else that resuming needs."""
    save_wanted: bool
    """Before a step: whether this rank wants a checkpoint after it. Afterwards: whether any rank does."""

    def __call__(self, *batches: Movable) -> Values:
        """Take one optimiser step on the batches together; returns its metrics.

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        ...

    def preview(self, batch: TrainBatch) -> Tensor | None:
        """Images to look at, rows × 3 × H × W in [0, 1]; None if there are none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What the generator makes of a batch."""

    images_M3HW: Tensor
    lips_R40: Tensor | None
    """Read off its audio encoder; None if the stage has no loss for them."""


class GanStep(Networks):
    """Generator against its discriminators, for single frames and for clips of five.

    Args:
        audio_dim: C of the generator's feature.
        syncnet: trained sync network; required if the stage has a sync loss.
        collectives: see `Networks`.
        alarm: called once if the sync loss waits for `plateau_steps`, and if the generator does not compile.
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
        alarm: Alarm = lambda text: None,
    ) -> None:
        super().__init__(config, stage, device, wrap, collectives)
        self.alarm: Alarm = lambda text: alarm(f"{stage.name}: {text}")
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
        if weights.read:
            self.add("lip_reader", LipReader())
        self.syncnet = syncnet.to(device).eval().requires_grad_(False) if syncnet and weights.sync else None
        self.ramp = SyncRamp(config.sync_ramp, config.sync_below, config.plateau_steps, self.alarm)
        self.bound = SyncBound(config.sync_share)
        self.parts |= {"ramp": self.ramp, "bound": self.bound}
        self.features = None
        if weights.perceptual and config.perceptual_weights:
            self.features = VGG19Features.from_file(locate(config.perceptual_weights)).to(device)
        self.keep_HW = torch.from_numpy(keep_mask(*stage_size(stage.mouth_px)).copy()).to(device)
        self.taken = 0
        self.powers: list[Tensor] = []
        """Squared norms of the gradients at the generated images, for each batch of a step: of the sync loss at weight
        1, and of the others. They are not metrics, as they may overflow while the gradient scaler tries a scale."""

    def _add_generator(self, generator: Generator) -> None:
        self.ema = None
        if self.config.ema_decay:
            self.ema = self.parts["ema"] = Ema(self.precision.place(generator), self.config.ema_decay)
        if self.device.type == "cuda" if self.config.compile is None else self.config.compile:
            compile_in_place(generator.warp, self.alarm)
        head = LipHead(generator.audio_channels) if self.stage.weights.lips else None
        if head:
            self.parts["lip_head"] = self.precision.place(head)
        self.generator = self.add("generator", generator, Listening(generator, head))

    @property
    def evaluated(self) -> Generator:
        """The generator that is validated and shown: the running mean of the weights if there is one."""
        return cast("Generator", self.ema.network if self.ema else self.networks["generator"])

    def generate(self, batch: TrainBatch, generator: nn.Module | None = None) -> Tensor:
        """Generate the images of a batch, with another generator if given: B·N × 3 × H × W."""
        with self.precision.autocast():
            generated_M3HW: Tensor = (generator or self.networks["generator"])(*self._inputs(batch))
        return generated_M3HW.float()

    def _generate(self, batch: TrainBatch) -> Generated:
        """Generate in the graph that is trained."""
        # where lips are not known, nothing but the image can teach the audio encoder
        alone = self.config.audio_from_lips and self.stage.weights.lips
        teaches_M = ~self._points(batch).isfinite().all(1) if alone else None
        with self.precision.autocast():
            images_M3HW, lips_R40 = self.generator(*self._inputs(batch), teaches_M, batch.lip_audio_RC5)
        return Generated(images_M3HW=images_M3HW.float(), lips_R40=lips_R40)

    def _inputs(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        masked_M3HW = batch.source_BN3HW.flatten(0, 1) * self.keep_HW
        images = (masked_M3HW, batch.reference_BN15HW.flatten(0, 1))
        source_M3HW, reference_M15HW = (i.contiguous(memory_format=self.precision.layout) for i in images)
        return source_M3HW, reference_M15HW, batch.audio_BNC5.flatten(0, 1)

    def __call__(self, *batches: Movable) -> Values:
        """Train the discriminators and the lip reader, then the generator with them."""
        # one graph serves both; the graphs of several batches would not fit in memory, so images are generated twice
        shared = None
        if len(batches) == 1 and self.collectives.is_alike:
            batches = (batches[0].to(self.device),)
            shared = self._generate(batches[0].to(self.device))
        others, metrics = [name for name in self.networks if name != "generator"], Metrics()
        if others:
            metrics |= self.update(others, batches, lambda batch: self._other_losses(batch, shared))
        self.powers.clear()
        metrics |= self.update(["generator"], batches, lambda batch: self._generator_losses(batch, shared))
        values, watched = self.finish(metrics, self._watched(metrics) if self.syncnet else None)
        self.taken += 1
        if self.ema:
            self.ema.update(self.networks["generator"])
        if watched:
            self.ramp.update(watched["true"], watched["made"], watched["score"])
            self.bound.update(watched["sync"], watched["rest"])
        return values

    def _watched(self, metrics: Metrics) -> Metrics:
        """What the ramp and the bound follow, as the mean over all ranks."""
        nothing = torch.full((), torch.nan, device=self.device)
        powers_2 = torch.stack(self.powers).mean(0) if self.powers else nothing.expand(2)
        names = ("sync_true", "sync", "sync_score")
        means = self.collectives.mean(torch.cat([torch.stack([metrics.get(n, nothing) for n in names]), powers_2]))
        return dict(zip(("true", "made", "score", "sync", "rest"), means, strict=True))

    def _as_clip(self, images_M3HW: Tensor) -> Tensor:
        return images_M3HW.unflatten(0, (-1, self.stage.num_frames)).flatten(1, 2)

    def _other_losses(self, batch: TrainBatch, shared: Generated | None) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            generated_M3HW = shared.images_M3HW.detach() if shared else self.generate(batch)
        true_M3HW = batch.source_BN3HW.flatten(0, 1)
        losses: Metrics = {}
        for name, view in self._views():
            # one forward for both, as DDP wants one backward per forward
            both = torch.cat([view(true_M3HW), view(generated_M3HW)])
            score_real, score_fake = self.wrapped[name](both).float().chunk(2)
            losses[name] = (lsgan(score_real, 1.0) + lsgan(score_fake, 0.0)) / 2
        if "lip_reader" in self.networks:
            mouth_M3SS = self._mouth(true_M3HW)
            losses["lip_reader"] = reader_loss(self.wrapped["lip_reader"], mouth_M3SS, self._points(batch))
        return torch.stack(list(losses.values())).sum(), losses

    def _views(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "image_discriminator": lambda images: images,
            "clip_discriminator": self._as_clip,
        }
        return [(name, view) for name, view in views.items() if name in self.networks]

    def _generator_losses(self, batch: TrainBatch, shared: Generated | None) -> tuple[Tensor, Metrics]:
        made = shared or self._generate(batch)
        generated_M3HW = made.images_M3HW
        losses = self._image_losses(generated_M3HW, batch)
        weights = {name: getattr(self.stage.weights, name) for name in losses}
        metrics = dict(losses)
        if self.syncnet:
            weight = self.stage.weights.sync * self.ramp.factor
            weights["sync"] = weight * self.bound.factor(weight)
            with torch.set_grad_enabled(weight > 0):
                score_B = self._sync_score(generated_M3HW, batch)
                losses["sync"] = metrics["sync"] = (score_B - self.ramp.target).square().mean()
            metrics["sync_weight"] = generated_M3HW.new_full((), weights["sync"])
            if self.ramp.is_waiting:
                with torch.no_grad():
                    score_B = self._sync_score(batch.source_BN3HW.flatten(0, 1), batch)
                metrics |= {"sync_true": (score_B - 1).square().mean(), "sync_score": score_B.mean()}
        weighted = {name: loss * weights[name] for name, loss in losses.items() if weights[name]}
        lips = generated_M3HW.new_zeros(())
        if made.lips_R40 is not None:
            assert batch.lips_R40 is not None
            metrics["lips"] = lips_loss(made.lips_R40.float(), batch.lips_R40)
            lips = metrics["lips"] * self.stage.weights.lips
        metrics["total"] = sum(weighted.values(), lips)
        gradients = self._image_gradients(weighted, generated_M3HW)
        if self.config.share_every and self.taken % self.config.share_every == 0:
            metrics |= gradient_shares(gradients)
        whole_M3HW = sum(gradients.values(), torch.zeros_like(generated_M3HW))
        if "sync" in gradients:
            sync_M3HW, rest_M3HW = gradients["sync"] / weights["sync"], whole_M3HW - gradients["sync"]
            self.powers.append(torch.stack([sync_M3HW.square().sum(), rest_M3HW.square().sum()]).detach())
        # its gradient at the images is the sum of the gradients
        return (whole_M3HW * generated_M3HW).sum() + lips, metrics

    def _image_gradients(self, weighted: Metrics, generated_M3HW: Tensor) -> Metrics:
        """`image_gradients`, scaled by the gradient scaler on their way through half precision."""
        scaler, scale = self.precision.scaler, self.precision.scale()
        scaled = image_gradients({name: scaler.scale(loss) for name, loss in weighted.items()}, generated_M3HW)
        return {name: gradient / scale for name, gradient in scaled.items()}

    def _image_losses(self, generated_M3HW: Tensor, batch: TrainBatch) -> Metrics:
        weights, losses, true_M3HW = self.stage.weights, Metrics(), batch.source_BN3HW.flatten(0, 1)
        if weights.pixel:
            losses["pixel"] = PIXEL_LOSSES[self.config.pixel_loss](generated_M3HW, true_M3HW)
        if weights.mouth:
            losses["mouth"] = mouth_l1(generated_M3HW, true_M3HW, 1 - self.keep_HW)
        if self.features:
            losses["perceptual"] = perceptual(self.features, generated_M3HW, true_M3HW)
        for name, view in self._views():
            discriminator = self.networks[name].requires_grad_(False)  # unwrapped: its gradients are not needed
            score = discriminator(view(generated_M3HW)).float()
            losses["gan" if name == "image_discriminator" else "clip_gan"] = lsgan(score, 1.0)
            discriminator.requires_grad_(True)
        if "lip_reader" in self.networks:
            reader = cast("LipReader", self.networks["lip_reader"].requires_grad_(False))
            made_M3SS, mouth_M3SS = self._mouth(generated_M3HW), self._mouth(true_M3HW)
            losses["read"] = read_loss(reader, made_M3SS, mouth_M3SS, self._points(batch))
            reader.requires_grad_(True)
        return losses

    def _mouth(self, images_M3HW: Tensor) -> Tensor:
        """The mouths, as the lip reader sees them."""
        return mouth_square(images_M3HW[:, None], self.stage.mouth_px, READ_PX)

    def _points(self, batch: TrainBatch) -> Tensor:
        """Where the lips are in the true images, M×40."""
        assert batch.lip_points_BN40 is not None
        return batch.lip_points_BN40.flatten(0, 1)

    def _sync_score(self, images_M3HW: Tensor, batch: TrainBatch) -> Tensor:
        """The sync network's score for the mouths of each clip and its audio."""
        assert self.syncnet
        frames_BN3HW = images_M3HW.unflatten(0, batch.source_BN3HW.shape[:2])
        square = mouth_square(frames_BN3HW, self.stage.mouth_px, self.syncnet.config.face_px)
        score_B: Tensor = self.syncnet(square, batch.sync_audio_BC9).float().mean((1, 2, 3))
        return score_B

    @torch.no_grad()
    def preview(self, batch: TrainBatch) -> Tensor:
        """Up to four samples, each with masked source, first reference, generated image and truth side by side."""
        batch = batch.to(self.device)
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
