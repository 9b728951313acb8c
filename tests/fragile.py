"""A worker with weak points, in a module that Ray's workers can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pipelines.actors import VideoBuilder
from pipelines.outcomes import Outcome


class Fragile(VideoBuilder):
    """Dies of one input, hangs at another, and once, by chance, at a third."""

    def _outcome(self, item: dict[str, Any]) -> Outcome:
        name = item["path"]
        once = Path(self.order.root) / ".build" / "once"
        if name == "poison.mp4" or (name == "c.mp4" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hangs.mp4":
            time.sleep(3600)
        return super()._outcome(item)
