"""Calls of networks from several threads, and what the sources and extractors that make them return."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio.base import Chunking, in_chunks
from lawdnet.landmarks.base import in_batches
from lawdnet.networks import HasNetworks, in_order
from lawdnet.types import Face, UInt8, Video
from tests.support.tiny_networks import NAMES, tiny


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_results_are_in_order_and_few_items_are_held(calls: int) -> None:
    taken: list[int] = []
    at_work: list[int] = []
    most = 0

    def work(item: int) -> int:
        nonlocal most
        at_work.append(item)
        most = max(most, len(at_work))
        time.sleep(0.02 if item % 2 else 0.001)
        at_work.remove(item)
        return -item

    def items() -> Iterator[int]:
        for item in range(9):
            taken.append(item)
            yield item

    for number, result in enumerate(in_order(work, items(), calls)):
        assert result == -number
        assert len(taken) <= number + calls
    assert len(taken) == 9
    assert most == calls


def test_an_error_comes_at_its_place_and_leaves_no_thread() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    seen = []
    with pytest.raises(ValueError, match="two"):
        seen.extend(in_order(work, range(100), 3))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("network")]
    results = in_order(work, range(100), 3)
    assert [next(results), next(results)] == [0, 1]


def test_frames_are_found_in_any_number_of_calls() -> None:
    """Large frames, of which only a few are held, however many calls are made."""
    size = (2000, 2000)
    video = Video(
        path=Path("v.mp4"), num_frames=40, num_source_frames=20, height=size[0], width=size[1], fps=25, sample_rate=None
    )
    frame = np.zeros((1, 1, 3), np.uint8)
    sizes: list[int] = []

    def find(images: list[UInt8]) -> list[list[Face]]:
        sizes.append(len(images))
        return [[Face(np.full((68, 2), image.mean(), np.float32))] for image in images]

    found = []
    for calls in (1, 3):
        frames = ((tick // 2, frame + tick // 2) for tick in range(40))
        found.append([faces[0].points_68x2[0, 0] for faces in in_batches(video, frames, find, calls)])
    assert found[0] == found[1] == [tick // 2 for tick in range(40)]
    assert sizes == [16, 4] + [4] * 5, "three calls hold no more than one, and their frames fill a GPU's batch"


def test_audio_is_heard_in_any_number_of_calls() -> None:
    def run(starts: list[int], length: int) -> np.ndarray:
        return np.array([[[start + row] for row in range(length)] for start in starts], np.float32)

    beats: list[int] = []
    for calls in (1, 3):
        rows = in_chunks(run, 100, 1, Chunking(rows=20, context=4, batch=2), lambda: beats.append(1), calls)
        assert rows[:, 0].tolist() == list(range(100))
    assert len(beats) == 2 * 4


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mel"])
def test_rows_do_not_depend_on_where_the_network_is(name: str, tmp_path: Path) -> None:
    """A network elsewhere gets arrays that cannot be written to, and is called from threads."""
    audio = np.random.default_rng(0).normal(0, 0.1, 16000 * 40).astype(np.float32)
    extractor = tiny(name, tmp_path)
    assert isinstance(extractor, HasNetworks)
    expected = extractor.extract(audio)
    lock = threading.Lock()

    def elsewhere(*given: np.ndarray) -> np.ndarray:
        for array in given:
            array.flags.writeable = False
        with lock:  # a network worker computes one call at a time
            return network.compute(*given)

    ((key, network),) = extractor.networks.items()
    extractor.networks = {key: type(network)(elsewhere, network.batch)}
    extractor.calls = 3
    np.testing.assert_array_equal(extractor.extract(audio), expected)


@pytest.mark.parametrize("name", ["hubert", "whisper", "deepspeech2"])
def test_what_else_is_in_a_full_batch_changes_nothing(name: str, tmp_path: Path) -> None:
    extractor = tiny(name, tmp_path)
    assert isinstance(extractor, HasNetworks)
    given: list[list[np.ndarray]] = []
    (network,) = extractor.networks.values()
    extractor.networks = {"speech": type(network)(lambda *part: (given.append(list(part)), network.compute(*part))[1])}
    extractor.chunking = Chunking(rows=60, context=5)
    extractor.extract(np.random.default_rng(0).normal(0, 0.1, 16000 * 40).astype(np.float32))
    parts = given[1:17]
    assert len(parts) == 16

    def computed(*numbers: int) -> np.ndarray:
        columns = zip(*(parts[number] for number in numbers), strict=True)
        return np.asarray(network.compute(*(np.concatenate(column) for column in columns)))

    first = computed(*range(8))[0]
    np.testing.assert_array_equal(first, computed(0, *range(8, 15))[0])
    np.testing.assert_array_equal(first, computed(*range(8, 15), 0)[-1])
