"""What the steps share: networks with their optimisers, and an optimiser step over several batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lawdnet.training.alarms import check_finite
from lawdnet.training.collectives import Collectives, find_collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.grad_clip import GradClipper
from lawdnet.training.precision import SAFE_SCALE, Precision
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

Wrap = Callable[[nn.Module], nn.Module]
Metrics = dict[str, Tensor]
"""Scalars on the device."""
Values = dict[str, float]
"""The same on the host."""
Losses = Callable[[TrainBatch], tuple[Tensor, Metrics]]
"""Batch → the loss to minimise, and metrics to log."""


class Stateful(Protocol):
    """A part of a step that a checkpoint must hold."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


class Movable(Protocol):
    """A batch that may still be on the host."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    def to(self, device: torch.device, /) -> TrainBatch:
        """The batch on a device; itself if it is there."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What decides whether an update is taken."""

    losses: Metrics
    norms: Metrics
    """Lengths of the gradients, by network."""
    scale: Tensor
    """Of the gradient scaler."""


class Networks:
    """The networks of a stage on a device.

    The host reads numbers from the device once in a step, in `finish`: each time it does, the device has to run out of
    work first. So whether an update is taken is decided on the device.

    Args:
        wrap: wraps a network so that gradients are averaged over ranks; called once per network.
        collectives: operations with the other ranks; those of torch.distributed if not given.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        device: torch.device,
        wrap: Wrap,
        collectives: Collectives | None = None,
    ) -> None:
        self.config, self.stage, self.device, self.wrap = config, stage, device, wrap
        self.collectives = collectives or find_collectives(device)
        self.precision = Precision(config.precision, device, channels_last=config.channels_last)
        self.networks: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.grad_clipper = GradClipper(config.grad_clip)
        self.save_wanted = False
        """Before a step: whether this rank wants a checkpoint after it. Afterwards: whether any rank does."""
        self._checked: list[_Checked] = []
        self._wanted = torch.zeros((), dtype=torch.bool, device=device)
        self._fault = torch.zeros((), dtype=torch.bool, device=device)
        self.parts: dict[str, Stateful] = {"scaler": self.precision.scaler, "clip": self.grad_clipper}

    def add(self, name: str, network: nn.Module, called: nn.Module | None = None) -> nn.Module:
        """Move a network to the device, wrap it and make its optimiser; returns the wrapped network.

        Args:
            called: a module around `network` that is wrapped, and called by the step, in its place. What else it has to
                learn has the same optimiser.
        """
        self.networks[name] = self.precision.place(network)
        self.wrapped[name] = self.wrap(called or network)
        learning = (called or network).parameters()
        self.optimizers[name] = torch.optim.AdamW(
            learning, lr=self.stage.lr, betas=(0.9, 0.999), fused=self.precision.is_fused or None
        )
        return self.wrapped[name]

    def update(self, names: Sequence[str], batches: Sequence[Movable], losses: Losses) -> Metrics:
        """Take an optimiser step of the named networks on the mean loss over all samples; returns the mean metrics.

        One batch at a time is on the device.
        """
        self.zero_grad(names)
        found: list[Metrics] = []
        sizes = [batch.size for batch in batches]
        for index, batch in enumerate(batches):
            with self.local(names, is_last=index + 1 == len(batches)):
                with self.precision.autocast():
                    total, metrics = losses(batch.to(self.device))
                self.precision.scaler.scale(total / (sum(sizes) / sizes[index])).backward()
            found.append({name: value.detach() * (sizes[index] / sizes[0]) for name, value in metrics.items()})
        count = sum(sizes) / sizes[0]
        means = {name: torch.stack([one[name] for one in found]).sum() / count for name in found[0]}
        self.step(names, means)
        return means

    def zero_grad(self, names: Sequence[str]) -> None:
        """Clear the gradients of the named networks."""
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)

    def local(self, names: Sequence[str], *, is_last: bool) -> ExitStack:
        """Keep gradients on this rank during all batches of a step but the last, which averages the sum over ranks."""
        stack = ExitStack()
        if not is_last:
            for name in names:
                stack.enter_context(self.collectives.no_sync(self.wrapped[name]))
        return stack

    def step(self, names: Sequence[str], losses: Metrics) -> None:
        """Clip the gradients of the named networks and step, if all losses and gradients are finite on all ranks.

        After one that was not, no network is changed until `finish`, which tells.
        """
        for name in names:
            self.precision.scaler.unscale_(self.optimizers[name])
        norms = {name: self.grad_clipper(name, self.networks[name].parameters()) for name in names}
        checked = _Checked(losses=losses, norms=norms, scale=self.precision.scale())
        self._checked.append(checked)
        is_lost, overflows = (~torch.isfinite(torch.stack(list(group.values()))).all() for group in (losses, norms))
        is_fault = is_lost | (overflows & (checked.scale <= SAFE_SCALE))
        wanted = torch.full((), self.save_wanted, device=self.device)
        is_fault, overflows, self._wanted = self.collectives.agree(torch.stack([is_fault, overflows, wanted]))
        self._fault = self._fault | is_fault
        for name in names:
            self.precision.take(self.optimizers[name], unless=self._fault | overflows)
        self.precision.scaler.update()

    def finish(self, metrics: Metrics, watched: Metrics | None = None) -> tuple[Values, Values]:
        """Read the metrics and what else is watched: the end of a step, and the only time that the host waits.

        Raises:
            NonFiniteLoss: on every rank; nothing was changed since the update that was not finite.
        """
        checked, self._checked = self._checked, []
        fault, self._fault = self._fault, torch.zeros_like(self._fault)
        groups = [group for one in checked for group in (one.losses, one.norms, {"scale": one.scale})]
        flags, values, others, *found = read({"fault": fault, "wanted": self._wanted}, metrics, watched or {}, *groups)
        self.save_wanted = bool(flags["wanted"])
        updates = list(zip(found[::3], found[1::3], found[2::3], strict=True))
        if flags["fault"]:
            for losses, norms, scale in updates:
                gradients = {f"gradient of the {name}": norm for name, norm in norms.items()}
                check_finite(losses | (gradients if scale["scale"] <= SAFE_SCALE else {}))
            check_finite({}, is_elsewhere=True)
        for _, norms, _ in updates:
            for name, norm in norms.items():
                self.grad_clipper.update(name, norm)
        return values, others


def read(*groups: Metrics) -> list[Values]:
    """Read scalars from the device in one transfer."""
    numbers = iter(torch.stack([value.detach().float() for group in groups for value in group.values()]).tolist())
    return [{name: next(numbers) for name in group} for group in groups]
