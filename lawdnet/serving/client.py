"""A client of a server: sends audio, follows the video, fetches it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lawdnet.install import install_hint
from lawdnet.storage import atomic, sha256

if TYPE_CHECKING:
    import httpx

POLL_SECONDS = 0.25
TRIES = 30
"""How often a busy server is asked again."""
MOST_WAIT_SECONDS = 30.0


class Client:
    """A client of one server; use it as a context manager.

    Args:
        url: of the server.
        key: if the server asks for one.
        timeout: seconds that the server may stay silent.

    Raises:
        ValueError: httpx is not installed, or the URL is none.
    """

    def __init__(self, url: str, *, key: str = "", timeout: float = 60.0) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise ValueError(f"a client of a server needs httpx; {install_hint('serve')}")
        import httpx

        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url}: not an http:// or https:// URL")
        headers = {"x-api-key": key} if key else {}
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def add_template(self, video: Path, *, face: str = "largest") -> str:
        """Send a video (and the CSV beside it), wait until it is prepared, and return its name; once for each content.

        Raises:
            ValueError: the server cannot use it, or does not answer.
        """
        csv = video.with_suffix(".csv")
        parts = [sha256(video), *([sha256(csv)] if csv.is_file() else []), face]
        name = "-".join(part[:12] for part in parts)
        files = {"video": video, **({"landmarks": csv} if csv.is_file() else {})}
        template = self._post("/v1/templates", files, {"name": name, "face": face})
        while template["state"] == "preparing":
            time.sleep(POLL_SECONDS)
            template = self._json("GET", template["urls"]["self"])
        if template["state"] == "failed":
            raise ValueError(f"{video}: {(template['problem'] or {}).get('detail', 'it could not be prepared')}")
        return name

    def render(
        self,
        template: str,
        audio: Path,
        out: Path,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """Ask for a video, wait for it, and write it; whoever interrupts this cancels the video.

        Args:
            template: its name on the server; "" is the server's first.
            audio: any file with audio.
            out: appears when it is complete.
            on_progress: called with the number of frames done and the total.

        Returns:
            The summary of the server: `frames`, `passed_through`, `seconds`, `fps`, `loops`.

        Raises:
            ValueError: the server cannot do it, or does not answer.
        """
        video = self._post("/v1/videos", {"audio": audio}, {"template": template} if template else {})
        url = video["urls"]["self"]
        try:
            while not video["finished"]:
                time.sleep(POLL_SECONDS)
                video = self._json("GET", url)
                on_progress(video["frames"], video["total"])
            if video["state"] != "succeeded":
                raise ValueError(f"{audio}: {(video['problem'] or {}).get('detail', video['state'])}")
            with (
                atomic(out) as temporary,
                self._answers(),
                self._http.stream("GET", video["urls"]["content"]) as answer,
            ):
                self._check(answer)
                with temporary.open("wb") as file:
                    for chunk in answer.iter_bytes(1 << 20):
                        file.write(chunk)
        finally:
            with self._answers():
                self._http.delete(url)
        summary: dict[str, Any] = video["summary"]
        return summary

    def _post(self, path: str, files: dict[str, Path], data: dict[str, str]) -> dict[str, Any]:
        for attempt in range(TRIES):
            with ExitStack() as stack:
                opened = {name: ("file", stack.enter_context(file.open("rb"))) for name, file in files.items()}
                with self._answers():
                    answer = self._http.post(path, files=opened, data=data)
            if answer.status_code not in (429, 503) or attempt == TRIES - 1:
                break
            time.sleep(min(MOST_WAIT_SECONDS, float(answer.headers.get("retry-after", "1"))))
        self._check(answer)
        found: dict[str, Any] = answer.json()
        return found

    def _json(self, method: str, path: str) -> dict[str, Any]:
        with self._answers():
            answer = self._http.request(method, path)
        self._check(answer)
        found: dict[str, Any] = answer.json()
        return found

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Name the server that does not answer."""
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            raise ValueError(f"{self.url}: the server does not answer ({error or type(error).__name__})") from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        answer.read()
        try:
            detail = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = f"answered {answer.status_code}; is it a lawdnet server?"
        raise ValueError(f"{self.url}: {detail}")
