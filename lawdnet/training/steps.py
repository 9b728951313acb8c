"""One optimiser step of each kind of stage: what the loop calls with every batch.

Shape letters: B batch, N frames of a sample, H W crop, S side of the square the sync network sees, C feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.face.mask import keep_mask
from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.training.config import TrainConfig
from lawdnet.training.losses import PIXEL_LOSSES, contrast, lsgan, mouth_l1, perceptual
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

Wrap = Callable[[nn.Module], nn.Module]
Metrics = dict[str, Tensor]


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is NaN or infinite; no rank has taken the step that it belongs to."""


class Step(Protocol):
    """What a kind of stage is to the loop."""

    networks: dict[str, nn.Module]
    """Unwrapped, by the names they are saved under."""
    optimizers: dict[str, torch.optim.Optimizer]

    def __call__(self, batch: TrainBatch) -> Metrics:
        """Trains on one batch and returns its losses, detached."""
        ...

    def preview(self, batch: TrainBatch) -> Tensor | None:
        """Pictures to look at, rows × 3 × H × W in [0, 1]; None where there is nothing to see."""
        ...


def check_finite(losses: Metrics) -> None:
    """Stops every rank before anyone steps.

    Raises:
        NonFiniteLoss: names the losses of this rank, or says that it was another one.
    """
    is_bad_L = ~torch.isfinite(torch.stack([loss.detach() for loss in losses.values()]))
    flag = is_bad_L.any().float()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag)
    if flag > 0:
        bad = [name for name, is_bad in zip(losses, is_bad_L.tolist(), strict=True) if is_bad]
        raise NonFiniteLoss(f"not finite: {', '.join(bad) if bad else 'a loss on another rank'}")


def mouth_square(crop_BN3HW: Tensor, mouth_px: int, side: int) -> Tensor:
    """The square handed to the sync network, frames stacked by channel: B × 3N × S × S."""
    rows, columns = mouth_box(mouth_px)
    square = crop_BN3HW[..., rows, columns].flatten(1, 2)
    if side == mouth_px:
        return square
    return F.interpolate(square, (side, side), mode="bilinear", align_corners=False)


class _Networks:
    """What the steps share: wrapping, optimisers, autocast and clipping."""

    def __init__(self, config: TrainConfig, stage: Stage, device: torch.device, wrap: Wrap) -> None:
        self.config, self.stage, self.device, self.wrap = config, stage, device, wrap
        self.networks: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wants_bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16)

    def add(self, name: str, network: nn.Module) -> nn.Module:
        """Moves, wraps and gives an optimiser; returns the wrapped network."""
        self.networks[name] = network.to(self.device)
        self.wrapped[name] = self.wrap(network)
        self.optimizers[name] = torch.optim.AdamW(network.parameters(), lr=self.stage.lr, betas=(0.9, 0.999))
        return self.wrapped[name]

    def update(self, names: list[str], loss: Tensor) -> None:
        """One optimiser step of the named networks on `loss`."""
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        largest = self.config.grad_clip or torch.inf
        norms = {name: nn.utils.clip_grad_norm_(self.networks[name].parameters(), largest) for name in names}
        check_finite({f"gradient of the {name}": norm for name, norm in norms.items()})
        for name in names:
            self.optimizers[name].step()


class GanStep(_Networks):
    """Generator against its discriminators, for single frames and for clips of five.

    Args:
        audio_dim: C of the generator's feature.
        syncnet: trained sync network, needed where the stage weighs its score.
    """

    def __init__(
        self, config: TrainConfig, stage: Stage, device: torch.device, wrap: Wrap, *, audio_dim: int,
        syncnet: SyncNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, stage, device, wrap)
        weights = stage.weights
        if weights.sync and syncnet is None:
            raise ValueError(f"{stage.name}: weights.sync is {weights.sync}, but there is no trained syncnet stage; "
                             f"train it first or --set {stage.name}.weights.sync=0")  # fmt: skip
        self.generator = self.add("generator", Generator(generator_config(config, audio_dim)))
        if weights.gan:
            self.add("image_discriminator", Discriminator(discriminator_config(config, stage, 3)))
        if weights.clip_gan:
            self.add("clip_discriminator", Discriminator(discriminator_config(config, stage, 3 * stage.num_frames)))
        self.syncnet = syncnet.to(device).eval().requires_grad_(False) if syncnet else None
        self.features = None
        if weights.perceptual and config.perceptual_weights:
            self.features = VGG19Features.from_file(Path(config.perceptual_weights)).to(device)
        self.keep_HW = torch.from_numpy(keep_mask(*stage_size(stage.mouth_px)).copy()).to(device)

    def generate(self, batch: TrainBatch) -> Tensor:
        """The generator's pictures, B·N × 3 × H × W."""
        masked = batch.source_BN3HW.flatten(0, 1) * self.keep_HW
        made = self.generator(masked, batch.reference_BN15HW.flatten(0, 1), batch.audio_BNC5.flatten(0, 1))
        return made.float()

    def __call__(self, batch: TrainBatch) -> Metrics:
        with self.autocast:
            made_M3HW = self.generate(batch)
            true_M3HW = batch.source_BN3HW.flatten(0, 1)
            critic = self._critic_losses(made_M3HW.detach(), true_M3HW)
        if critic:
            check_finite(critic)
            self.update(
                [name for name in self.networks if name != "generator"],
                torch.stack(list(critic.values())).sum(),
            )
        with self.autocast:
            losses = self._generator_losses(batch, made_M3HW, true_M3HW)
            total = sum((losses[name] * weight for name, weight in self._weights(losses)), made_M3HW.new_zeros(()))
        check_finite(losses | {"total": total})
        self.update(["generator"], total)
        return {name: loss.detach() for name, loss in (losses | critic | {"total": total}).items()}

    def _weights(self, losses: Metrics) -> list[tuple[str, float]]:
        return [(name, getattr(self.stage.weights, name)) for name in losses]

    def _as_clip(self, images_M3HW: Tensor) -> Tensor:
        return images_M3HW.unflatten(0, (-1, self.stage.num_frames)).flatten(1, 2)

    def _critic_losses(self, made: Tensor, true: Tensor) -> Metrics:
        losses: Metrics = {}
        for name, view in self._views():
            network = self.wrapped[name]
            # one forward for both, as DDP wants one backward per forward
            score_real, score_made = network(torch.cat([view(true), view(made)])).float().chunk(2)
            losses[name] = (lsgan(score_real, 1.0) + lsgan(score_made, 0.0)) / 2
        return losses

    def _views(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "image_discriminator": lambda images: images,
            "clip_discriminator": self._as_clip,
        }
        return [(name, view) for name, view in views.items() if name in self.networks]

    def _generator_losses(self, batch: TrainBatch, made: Tensor, true: Tensor) -> Metrics:
        weights, losses = self.stage.weights, Metrics()
        if weights.pixel:
            losses["pixel"] = PIXEL_LOSSES[self.config.pixel_loss](made, true)
        if weights.mouth:
            losses["mouth"] = mouth_l1(made, true, 1 - self.keep_HW)
        if self.features:
            losses["perceptual"] = perceptual(self.features, made, true)
        for name, view in self._views():
            critic = self.networks[name].requires_grad_(False)  # unwrapped: its own gradients are not wanted here
            losses["gan" if name == "image_discriminator" else "clip_gan"] = lsgan(critic(view(made)).float(), 1.0)
            critic.requires_grad_(True)
        if self.syncnet is not None and weights.sync:
            square = mouth_square(made.unflatten(0, batch.source_BN3HW.shape[:2]), self.stage.mouth_px,
                                  self.syncnet.config.face_px)  # fmt: skip
            score_B = self.syncnet(square, batch.sync_audio_BC9).float().mean((1, 2, 3))
            losses["sync"] = (score_B - 1).square().mean()
        return losses

    @torch.no_grad()
    def preview(self, batch: TrainBatch) -> Tensor:
        """For up to four samples, side by side: masked source, first reference, generated, truth."""
        few = slice(0, 4)
        small = TrainBatch(source_BN3HW=batch.source_BN3HW[few, :1], reference_BN15HW=batch.reference_BN15HW[few, :1],
                           audio_BNC5=batch.audio_BNC5[few, :1])  # fmt: skip
        true = small.source_BN3HW[:, 0]
        columns = [true * self.keep_HW, small.reference_BN15HW[:, 0, :3], self.generate(small), true]
        return torch.cat(columns, dim=-1).clamp(0, 1)


class SyncStep(_Networks):
    """Sync network: each face of a batch against all its sounds, and against sound from elsewhere in its segment.

    Single pairs with a squared error (the published loss of the generator's side) stay at chance for hundreds of steps
    on the same data; a batch of B faces has B·(2·B - 1) wrong pairs to learn from.
    """

    def __init__(self, config: TrainConfig, stage: Stage, device: torch.device, wrap: Wrap, *, audio_dim: int) -> None:
        super().__init__(config, stage, device, wrap)
        self.add("syncnet", SyncNet(syncnet_config(config, stage, audio_dim)))

    def __call__(self, batch: TrainBatch) -> Metrics:
        own, shifted = batch.sync_audio_BC9, batch.other_audio_BC9
        assert own is not None
        assert shifted is not None
        square = mouth_square(batch.source_BN3HW, self.stage.mouth_px, self.stage.mouth_px)
        sounds = torch.cat([own, shifted])
        with self.autocast:
            score_BA = self.wrapped["syncnet"](square, sounds, pairwise=True).float()
        total = contrast(score_BA, own, sounds)
        check_finite({"contrast": total})
        self.update(["syncnet"], total)
        right = score_BA.diagonal() > score_BA.diagonal(len(own))
        return {"total": total.detach(), "accuracy": right.float().mean(), "score": score_BA.diagonal().mean().detach()}

    def preview(self, batch: TrainBatch) -> None:
        """A score is no picture."""


def generator_config(config: TrainConfig, audio_dim: int) -> GeneratorConfig:
    """The generator of a run."""
    return GeneratorConfig(
        audio_dim=audio_dim,
        base_channels=config.base_channels,
        key_points=config.key_points,
        warp_grid=config.warp_grid,
    )


def discriminator_config(config: TrainConfig, stage: Stage, channels: int) -> DiscriminatorConfig:
    """The discriminator of a stage; small crops leave room for three blocks only."""
    return DiscriminatorConfig(
        in_channels=channels,
        blocks=3 if stage.mouth_px < 64 else 4,
        expansion=config.disc_channels,
        max_channels=config.disc_max_channels,
    )


def syncnet_config(config: TrainConfig, stage: Stage, audio_dim: int) -> SyncNetConfig:
    """The sync network of a run; it sees the mouth at the size of its own stage."""
    return SyncNetConfig(audio_dim=audio_dim, base_channels=config.sync_channels, face_px=stage.mouth_px, head="cosine")
