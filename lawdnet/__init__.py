"""lawdnet: lip-sync generators, from raw videos to a rendered mouth.

The library half of the project. It never imports ray: `pipelines/` spreads this code over a cluster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lawdnet.inference.engine import Engine as Engine

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Engine` when it is asked for: torch takes seconds, and most of this package does not need it."""
    if name == "Engine":
        return import_module("lawdnet.inference.engine").Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
