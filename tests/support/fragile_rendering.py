"""A renderer with weak points, in a module that Ray's workers can import."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.render.render import Renderer


class Fragile(Renderer):
    """Dies of one video and of one pair, hangs at another pair, and once, by chance, at a third."""

    def _prepare(self, item: dict[str, Any], stack: ExitStack) -> Any:
        if item["video_source"].endswith(b"deadly.mp4"):
            self._die("prepared")
        return super()._prepare(item, stack)

    def _render(self, pair: dict[str, Any], template: Any) -> Any:
        if pair["speech"] == "poison.wav":
            self._die(pair["key"])
        if pair["speech"] == "chance.wav" and not (Path(self.order.root) / "died" / pair["key"]).exists():
            self._die(pair["key"])
        if pair["speech"] == "hangs.wav":
            time.sleep(3600)
        return super()._render(pair, template)

    def _die(self, name: str) -> None:
        count = Path(self.order.root) / "died" / name
        count.parent.mkdir(exist_ok=True)
        with count.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
