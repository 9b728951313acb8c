from pathlib import Path

import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import SampleSpec, batches_per_epoch, draw_batches, plan_epoch
from lawdnet.training.loader import rank_batches
from lawdnet.training.position import Position
from pipelines.build.build import build
from tests.support.drawn_clip import copy

SPEC = SampleSpec(mouth_px=32, num_frames=5, batch_size=2, samples_per_segment=3, audio="mel", sync="mel")


@pytest.fixture(scope="module")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Dataset:
    folder = tmp_path_factory.mktemp("source")
    for name in ("a", "b", "c"):
        copy(drawn, folder / f"{name}.mp4")
    return build(folder, tmp_path_factory.mktemp("out") / "dataset", BuildConfig(crop_width=80, val_fraction=0.0))


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_the_stream_is_the_plan(dataset: Dataset, rank: int, world: int, loaders: int) -> None:
    """From any number of processes come the batches that the pure functions give, in their order, over two epochs."""
    segments = dataset.segments("train")
    stream = rank_batches(segments, SPEC, seed=3, rank=rank, world=world, stored_width=80, epochs=2, loaders=loaders)
    count = 0
    for epoch in range(2):
        for work in plan_epoch(segments, SPEC, seed=3, epoch=epoch, rank=rank, world=world):
            for wanted in draw_batches(work, SPEC, seed=3, stored_width=80):
                (batch,) = next(stream)
                wanted["step"] = wanted.pop("index")  # one batch a step
                assert batch.keys() == wanted.keys()
                for name, values in wanted.items():
                    np.testing.assert_array_equal(batch[name], values)
                count += 1
    assert next(stream, None) is None
    assert count == 2 * batches_per_epoch(len(segments), world, SPEC)


@pytest.mark.parametrize("loaders", [0, 2])
def test_the_stream_starts_in_the_middle(dataset: Dataset, loaders: int) -> None:
    segments = dataset.segments("train")
    stream = rank_batches(
        segments, SPEC, seed=3, rank=0, world=1, stored_width=80, epochs=2, start=Position(1, 2), loaders=loaders
    )
    (first,) = next(stream)
    assert (int(first["epoch"]), int(first["step"])) == (1, 2)
