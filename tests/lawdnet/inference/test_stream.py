import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lawdnet.inference import stream
from lawdnet.inference.stream import back_and_forth, ping_pong
from lawdnet.types import UInt8


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, [0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (3, [0, 1, 2, 1, 0, 1]), (4, [0, 1, 2, 3, 2, 1, 0, 1])],
)
def test_ping_pong_does_not_repeat_the_turning_points(length: int, expected: list[int]) -> None:
    assert list(itertools.islice(ping_pong(length), len(expected))) == expected


class FakeVideo:
    """Stands for `decode`: frame k has the value k everywhere."""

    def __init__(self, length: int, shape: tuple[int, int, int] = (2, 2, 3)) -> None:
        self.length, self.shape, self.longest = length, shape, 0

    def __call__(self, path: Path, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, UInt8]]:
        stop = self.length if stop is None else stop
        if start:
            self.longest = max(self.longest, stop - start)
        for tick in range(start, stop):
            yield tick, np.full(self.shape, tick, np.uint8)


@pytest.mark.parametrize("length", [1, 2, 47, 48, 49, 50, 98, 130])
def test_back_and_forth_shows_each_tick_its_own_frame(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "decode", video := FakeVideo(length))
    shown = list(itertools.islice(back_and_forth(Path("any"), length), 5 * length + 3))
    assert [tick for tick, _ in shown] == list(itertools.islice(ping_pong(length), len(shown)))
    assert all((picture == tick).all() for tick, picture in shown)
    assert video.longest <= stream.BLOCK


def test_back_and_forth_holds_fewer_large_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "decode", video := FakeVideo(40, (10, 10, 3)))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 7 * 300)
    shown = list(itertools.islice(back_and_forth(Path("any"), 40), 100))
    assert [tick for tick, _ in shown] == list(itertools.islice(ping_pong(40), 100))
    assert video.longest == 7
