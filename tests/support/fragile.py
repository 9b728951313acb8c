"""A worker with weak points, in a module that Ray's workers can import."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from lawdnet.data.segments import Tally
from lawdnet.tasks.records import Outcome
from pipelines.build.task import VideoBuilder


class Fragile(VideoBuilder):
    """Dies of one input, hangs at another, and once, by chance, at a third; a fourth finds the disk full."""

    def _outcome(self, item: dict[str, Any], tally: Tally) -> Outcome:
        name = item["path"]
        once = Path(self.order.root) / ".build" / "once"
        if name == "poison.mp4" or (name == "c.mp4" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hangs.mp4":
            time.sleep(3600)
        if name == "full.mp4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/the/disk")
        return super()._outcome(item, tally)
