"""A live session driven from an event loop: its features and its frames each have a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from lawdnet.inference.live import LiveFrame, LiveSession
from lawdnet.types import Float32

Made = TypeVar("Made")
Answer = TypeVar("Answer")


class AsyncSession(Generic[Made]):
    """Runs a session.

    Args:
        session: just made.
        make: turns a frame into what is sent, in the thread that draws.
    """

    def __init__(self, session: LiveSession, make: Callable[[LiveFrame], Made]) -> None:
        self.session = session
        self._make = make
        self._frames = session.frames()
        self._drawing = ThreadPoolExecutor(1, "live-draw")
        self._hearing = ThreadPoolExecutor(1, "live-hear")

    async def push(self, samples: Float32) -> None:
        """See `LiveSession.push`."""
        await self._hear(lambda: self.session.push(samples))

    async def end(self) -> None:
        """See `LiveSession.end`."""
        await self._hear(self.session.end)

    async def interrupt(self) -> float:
        """See `LiveSession.interrupt`."""
        return await self._hear(self.session.interrupt)

    async def made(self) -> AsyncGenerator[Made, None]:
        """Yield what `make` made of every frame, on the clock, until the session is closed."""
        loop = asyncio.get_running_loop()
        while (made := await loop.run_in_executor(self._drawing, self._next)) is not None:
            yield made

    def close(self) -> None:
        """End the session and its threads; they finish what they are doing."""
        self.session.close()
        self._drawing.submit(_close, self._frames)
        for thread in (self._drawing, self._hearing):
            thread.shutdown(wait=False)

    def _next(self) -> Made | None:
        frame = next(self._frames, None)
        return None if frame is None else self._make(frame)

    async def _hear(self, action: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._hearing, action)


def _close(frames: Iterator[LiveFrame]) -> None:
    frames.close()  # type: ignore[attr-defined]
