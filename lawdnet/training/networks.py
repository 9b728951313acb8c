"""What the steps share: networks with their optimisers, and an optimiser step over several batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lawdnet.training.alarms import check_finite
from lawdnet.training.collectives import Collectives, find_collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.grad_clip import GradClipper
from lawdnet.training.precision import Precision
from lawdnet.training.stages import Stage
from lawdnet.types import TrainBatch

Wrap = Callable[[nn.Module], nn.Module]
Metrics = dict[str, Tensor]
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


class Networks:
    """The networks of a stage on a device.

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
        self.parts: dict[str, Stateful] = {"scaler": self.precision.scaler, "clip": self.grad_clipper}

    def add(self, name: str, network: nn.Module, called: nn.Module | None = None) -> nn.Module:
        """Move a network to the device, wrap it and make its optimiser; returns the wrapped network.

        Args:
            called: a module around `network` that is wrapped, and called by the step, in its place.
        """
        self.networks[name] = self.precision.place(network)
        self.wrapped[name] = self.wrap(called or network)
        self.optimizers[name] = torch.optim.AdamW(network.parameters(), lr=self.stage.lr, betas=(0.9, 0.999))
        return self.wrapped[name]

    def update(self, names: Sequence[str], batches: Sequence[TrainBatch], losses: Losses) -> Metrics:
        """Take an optimiser step of the named networks on the mean loss over batches; returns the mean metrics.

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        self.zero_grad(names)
        found: list[Metrics] = []
        for index, batch in enumerate(batches):
            with self.local(names, is_last=index + 1 == len(batches)):
                with self.precision.autocast():
                    total, metrics = losses(batch)
                self.precision.scaler.scale(total / len(batches)).backward()
            found.append({name: value.detach() for name, value in metrics.items()})
        means = {name: torch.stack([m[name] for m in found if name in m]).mean() for name in found[0]}
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
        """Clip the gradients of the named networks and step, if losses and gradients are finite on all ranks.

        Raises:
            NonFiniteLoss: on every rank; the step is not taken.
        """
        scaler = self.precision.scaler
        try:
            for name in names:
                scaler.unscale_(self.optimizers[name])
            norms = {
                f"gradient of the {name}": self.grad_clipper(name, self.networks[name].parameters()) for name in names
            }
            check_finite(losses if self.precision.may_overflow else losses | norms, self.collectives.agree)
            for name in names:
                scaler.step(self.optimizers[name])
        finally:
            scaler.update()
