"""The page at `/` in a headless Chromium. LAWDNET_SCREENSHOTS names a folder that keeps what it looks like."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from lawdnet.inference.engine import Engine
from lawdnet.serving.limits import Limits
from pipelines.serve.config import ServeConfig
from pipelines.serve.local import LOOPBACK, running_app
from pipelines.serve.state import Access
from tests.support.chromium import Page, chromium_page
from tests.support.live_host import serving
from tests.support.serving import Running, SlowEngine, running, speech, until

KEY = "0123456789abcdef"
PIXELS = """[...document.getElementById('live-picture').getContext('2d').getImageData(0, 0, 128, 160).data]"""
TAB, ENTER, RIGHT = ("Tab", 9), ("Enter", 13, "\r"), ("ArrowRight", 39)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium_page() as found:
        yield found


def picture(page: Page, name: str) -> None:
    """Keep a screenshot, for eyes."""
    if folder := os.environ.get("LAWDNET_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"{name}.png")


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({selector!r}).textContent.trim()"))


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    folder = files("pipelines.serve") / "page"
    for name in ("index.html", "page.js", "page.css"):
        content = (folder / name).read_text()
        assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", content), name
        assert client.get("/" if name == "index.html" else f"/{name}").text == content
    html = (folder / "index.html").read_text()
    assert not re.findall(r"\son\w+=|style=|<style|javascript:", html)


def test_make_a_video(page: Page, server: Running, tmp_path: Path) -> None:
    page.size(1280, 900)
    page.open(server.url)
    page.until("document.querySelectorAll('input[name=template]').length === 1")
    page.until("document.getElementById('ready').textContent === 'Ready.'")
    picture(page, "1-start")
    page.run("document.getElementById('make').click()")
    assert text(page, "#error") == "Choose an audio file, or record one."
    page.upload("#audio", speech(tmp_path / "hello.wav", 1.0))
    page.until("document.getElementById('chosen').textContent === 'Chosen: hello.wav'")
    assert text(page, "#error") == ""
    page.run("document.getElementById('make').click()")
    page.until("!document.getElementById('result').hidden")
    page.until("document.getElementById('made').readyState >= 2 && document.getElementById('source').readyState >= 2")
    assert page.run("document.getElementById('made').duration") == pytest.approx(1.0, abs=0.1)
    assert page.run("document.getElementById('made').videoWidth") == 128
    assert text(page, "#figures").startswith("25 frames in ")
    assert page.run("document.activeElement.id") == "result"  # a screen reader is told where to go on
    page.run("document.getElementById('both').click()")
    page.until("document.getElementById('made').currentTime > 0.2")
    page.run("document.getElementById('made').pause()")
    picture(page, "2-result")
    href = page.run("document.getElementById('download').href")
    assert httpx.get(href).headers["content-type"] == "video/mp4"
    page.run("document.getElementById('forget').click()")
    page.until("document.getElementById('result').hidden")
    until(lambda: httpx.get(href).status_code == 404)
    assert page.errors == []


def test_record_from_the_microphone(page: Page, server: Running) -> None:
    page.open(server.url)
    page.until("document.querySelectorAll('input[name=template]').length === 1")
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('record').getAttribute('aria-pressed') === 'true'")
    page.until("document.getElementById('clock').textContent === '1 s'")
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('chosen').textContent === 'Chosen: a recording'")
    page.run("document.getElementById('make').click()")
    page.until("!document.getElementById('result').hidden")
    assert int(text(page, "#figures").split()[0]) >= 5
    assert page.errors == []


def test_add_a_person(page: Page, server: Running, drawn: Path, tmp_path: Path) -> None:
    page.open(server.url)
    page.until("document.querySelectorAll('input[name=template]').length === 1")
    page.run("document.getElementById('add').open = true")
    (tmp_path / "bad.mp4").write_text("no video")
    page.upload("#video", tmp_path / "bad.mp4")
    page.run("document.getElementById('name').value = 'bert'; document.getElementById('add-button').click()")
    page.until("document.getElementById('add-status').textContent.includes('not a known video')")
    assert [error for error in page.errors if "422" not in error] == []
    page.errors.clear()
    picture(page, "3-add")


def test_cancel_a_video_on_a_phone(page: Page, network: Path, drawn: Path, tmp_path: Path) -> None:
    slow = SlowEngine(network, device="cpu", batch_size=1)
    with running(tmp_path / "data", slow) as server:
        server.service.pin_template(drawn, name="anna")
        until(lambda: server.service.template("anna").state == "ready")
        page.size(360, 740, phone=True)
        page.open(server.url)
        page.until("document.querySelectorAll('input[name=template]').length === 1")
        page.upload("#audio", speech(tmp_path / "long.wav", 60))
        page.run("document.getElementById('make').click()")
        page.until("/^[1-9][0-9]* of 1500 frames$/.test(document.getElementById('step').textContent)")
        assert page.run("document.activeElement.id") == "cancel"
        assert page.run("document.documentElement.scrollWidth") <= 360
        picture(page, "4-phone")
        page.press(*ENTER)
        page.until("document.getElementById('work').hidden")
        assert server.service.store.counts()["cancelled"] == 1
        assert text(page, "#error") == ""
        assert page.run("document.activeElement.id") == "make"
    assert [error for error in page.errors if "410" not in error] == []
    page.errors.clear()


def test_keyboard_and_live_tab(page: Page, server: Running) -> None:
    page.size(360, 740, phone=True, dark=True)
    page.open(server.url)
    page.until("document.querySelectorAll('input[name=template]').length >= 1")
    seen = []
    for _ in range(12):
        page.press(*TAB)
        seen.append(
            page.run("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    wanted = ["tab-video", "template", "audio", "record", "make"]
    assert [name for name in seen if name in wanted][:5] == wanted
    page.run("document.getElementById('tab-video').focus()")
    page.press(*RIGHT)
    page.until("!document.getElementById('panel-live').hidden && document.getElementById('panel-video').hidden")
    assert page.run("document.activeElement.id") == "tab-live"
    has_live = httpx.get(f"{server.url}/v1/live/info").status_code == 200
    if not has_live:
        page.until("document.getElementById('live-status').textContent === 'Live is not available on this server.'")
    picture(page, "5-live")
    page.errors.clear()  # the 404 that says so


def test_speak_and_see(page: Page, network: Path, drawn: Path, tmp_path: Path) -> None:
    config = ServeConfig(
        models={"default": str(network)},
        data=str(tmp_path / "data"),
        templates={"anna": str(drawn)},
        limits=Limits(free_bytes=1),
    )
    with running_app(config, Access(hosts=LOOPBACK)) as app, serving(app) as place:
        page.errors.clear()
        page.size(360, 740, phone=True, dark=True)
        page.open(f"http://{place}/")
        page.until("document.getElementById('ready').textContent === 'Ready.'")
        page.run("document.getElementById('tab-live').click()")
        page.until("!document.getElementById('live-controls').hidden")
        page.run("document.getElementById('live-button').click()")
        page.until("document.getElementById('live-status').textContent.startsWith('Speak.')")
        page.until("document.getElementById('live-figures').textContent.endsWith('from audio to frame')")
        first = page.run(PIXELS)
        assert len(set(first)) > 20, "the canvas shows a picture"
        page.until(f"{PIXELS}.join() !== '{','.join(map(str, first))}'")
        picture(page, "8-live-speaking")
        page.run("document.getElementById('live-button').click()")
        page.until("document.getElementById('live-button').textContent === 'Start'")
    assert page.errors == []


def test_every_control_has_a_name(page: Page, server: Running) -> None:
    page.open(server.url)
    page.until("document.querySelectorAll('input[name=template]').length >= 1")
    for element in ("button", "input", "select", "a", "audio", "progress", "canvas"):
        for node in page.send("DOM.querySelectorAll", nodeId=_root(page), selector=element)["nodeIds"]:
            described = page.send("Accessibility.getPartialAXTree", nodeId=node, fetchRelatives=False)["nodes"][0]
            if not described["ignored"]:
                assert described["name"]["value"].strip(), page.send("DOM.describeNode", nodeId=node)["node"]


def _root(page: Page) -> int:
    return int(page.send("DOM.getDocument")["root"]["nodeId"])


def test_with_a_key(page: Page, engine: Engine, drawn: Path, tmp_path: Path) -> None:
    with running(tmp_path / "data", engine, access=Access(api_keys=(KEY,))) as server:
        server.service.pin_template(drawn, name="anna")
        page.size(1280, 900)
        page.open(server.url)
        page.until("!document.getElementById('key-form').hidden")
        picture(page, "6-key")
        page.run(f"document.getElementById('key').value = '{KEY}'; document.querySelector('#key-form button').click()")
        page.until("document.getElementById('ready').textContent === 'Ready.'")
        page.upload("#audio", speech(tmp_path / "hello.wav", 0.5))
        page.run("document.getElementById('make').click()")
        page.until("!document.getElementById('result').hidden")
        page.until("document.getElementById('made').readyState >= 2")
        assert page.run("document.getElementById('made').src").startswith("blob:")
    page.errors.clear()


def test_the_description_of_the_api(page: Page, server: Running) -> None:
    page.errors.clear()
    page.size(1280, 900)
    page.open(f"{server.url}/docs")
    assert "POST /v1/videos" in page.run("document.body.textContent")
    picture(page, "7-docs")
    assert page.errors == []
