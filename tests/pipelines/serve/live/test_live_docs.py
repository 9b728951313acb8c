"""The client of docs/live.md, as it is printed there, against a real server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from tests.support.live_heads import noise
from tests.support.live_host import OneTemplate, make_app, serving

pytest.importorskip("websockets", reason="needs websockets: pip install -e '.[serve]'")
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "live.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf8"), re.DOTALL)


@pytest.mark.usefixtures("frees_everything")
def test_the_client_speaks(live_engine: Engine, live_template: Template) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    speech = np.round(noise(15) * 32767).astype("<i2").tobytes()
    shown: list[tuple[bytes, bytes]] = []
    with serving(make_app(OneTemplate(live_engine, live_template))) as address:
        asyncio.run(names["speak"](f"ws://{address}/v1/live", speech, lambda *frame: shown.append(frame)))
    assert b"".join(audio for _, audio in shown) == speech
    image = cv2.imdecode(np.frombuffer(shown[0][0], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (live_template.height, live_template.width, 3)


@pytest.mark.usefixtures("frees_everything")
def test_the_session_speaks(live_engine: Engine, live_template: Template) -> None:
    shown: list[Any] = []
    names: dict[str, Any] = {"engine": live_engine, "template": live_template, "samples": noise(5, rate=24_000)}

    def show(image: Any, audio: Any) -> None:
        shown.append((image, audio))
        if len(shown) == 8:
            names["session"].close()

    exec(BLOCKS[1], names | {"show": show}, names)
    assert len(shown) == 8
    heard = np.concatenate([audio for _, audio in shown[:5]])
    np.testing.assert_array_equal(heard, noise(5, rate=24_000))
