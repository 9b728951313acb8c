"""Number format, gradient scaler, memory layout and compilation."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn

from lawdnet.training.alarms import Alarm

logger = logging.getLogger(__name__)

SAFE_SCALE = 1.0
"""A gradient that overflows at a larger scale only lowers the scale; at this scale or below it is a fault."""


DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats. Only in fp32 are products of matrices exact to single precision on a GPU: the others use tensor cores
there, which round factors to tf32 (10 bits)."""

FUSED_ON = ("cuda",)
"""Devices whose optimisers decide for themselves whether to step."""


class Precision:
    """The settings `precision` and `channels_last` on a device.

    Args:
        name: a key of `DTYPES`, or auto (on a GPU bf16, or tf32 if it lacks it; else fp32).
        channels_last: whether the channels of a pixel lie together; on a GPU if not given.
    """

    def __init__(self, name: str, device: torch.device, *, channels_last: bool | None = None) -> None:
        is_gpu = device.type == "cuda"
        if name == "auto":
            has_bf16 = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bf16" if has_bf16 else "tf32" if is_gpu else "fp32"
        if is_gpu:
            tune_gpu(name)
        self.device = device
        self.dtype = DTYPES[name]
        last = is_gpu if channels_last is None else channels_last
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        self.is_fused = device.type in FUSED_ON

    def autocast(self) -> torch.autocast:
        """A new autocast context for a forward pass; one context must not be entered twice."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def place(self, network: nn.Module) -> nn.Module:
        """Move the network to the device, in the memory layout."""
        placed: nn.Module = cast("Any", network).to(device=self.device, memory_format=self.layout)
        return placed

    def scale(self) -> Tensor:
        """The scale of the gradient scaler, on the device; 1 without a scaler."""
        scale: Tensor = self.scaler.scale(torch.ones((), device=self.device))
        return scale

    def take(self, optimizer: torch.optim.Optimizer, *, unless: Tensor) -> None:
        """Step, unless the flag on the device is set."""
        if self.is_fused:
            # what GradScaler.step does with a fused optimiser, which reads the attribute on the device
            cast("Any", optimizer).found_inf = unless.float()
            optimizer.step()
            del cast("Any", optimizer).found_inf
        elif not unless:
            optimizer.step()


def tune_gpu(name: str) -> None:
    """Let a GPU choose its fastest convolutions, and use tf32 unless the number format is fp32; for this process."""
    torch.backends.cudnn.benchmark = True  # a stage has one shape
    exactness = "ieee" if name == "fp32" else "tf32"
    torch.backends.cuda.matmul.fp32_precision = exactness
    cast("Any", torch.backends.cudnn).conv.fp32_precision = exactness


def compile_in_place(network: nn.Module, alarm: Alarm = logger.warning, backend: str = "inductor") -> None:
    """Compile a network at its first call; parameters keep their names.

    Args:
        alarm: told once if it does not compile; it then runs as it is.
    """
    import torch._dynamo.exc  # takes a second, and few need it

    plain, compiled = network.forward, torch.compile(network.forward, backend=backend)

    def forward(*inputs: Tensor) -> Any:
        try:
            return compiled(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            network.forward = plain
            reason = " ".join(f"{error}".split("\n")[:2])
            alarm(f"torch.compile failed, and the {type(network).__name__} runs uncompiled, which is slower: {reason}")
            return plain(*inputs)

    network.forward = forward
