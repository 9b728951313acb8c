"""Number format, gradient scaler, memory layout and compilation."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn

SAFE_SCALE = 1.0
"""A gradient that overflows at a larger scale only lowers the scale; at this scale or below it is a fault."""


class Precision:
    """The settings `precision` and `channels_last` on a device.

    Args:
        name: fp32, bf16, fp16, or auto (bf16 on a GPU that computes it, else fp32).
    """

    def __init__(self, name: str, device: torch.device, *, channels_last: bool = False) -> None:
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "auto":
            name = "bf16" if has_bf16 else "fp32"
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """A new autocast context for a forward pass; one context must not be entered twice."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def place(self, network: nn.Module) -> nn.Module:
        """Move the network to the device, in the memory layout."""
        placed: nn.Module = cast("Any", network).to(device=self.device, memory_format=self.layout)
        return placed

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite only makes the scaler lower its scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > SAFE_SCALE


def compile_in_place(network: nn.Module, backend: str = "inductor") -> None:
    """Compile a network at its first call; parameters keep their names, and what fails to compile runs uncompiled."""
    import torch._dynamo  # takes a second, and few need it

    torch._dynamo.config.suppress_errors = True
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # pages of warnings if there is no compiler
    network.compile(backend=backend)
