"""Face embeddings: how they are stored and sampled, and which videos they connect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.data import faces
from lawdnet.data.faces import FRAMES, MOST_TRACKS, decode, encode, same_people, sample_faces
from lawdnet.data.records import SegmentRow
from lawdnet.data.schema import write_segments
from tests.support.small_datasets import make_segment


def test_embeddings_survive_as_text() -> None:
    rows_MD = np.random.default_rng(0).normal(size=(3, 128)) / 11
    np.testing.assert_allclose(decode(encode(rows_MD)), rows_MD, atol=2e-4)
    assert encode([]) == ""


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_people_are_connected_as_all_pairs_connect_them(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain a–b–c connects a and c, whatever part of the pairs is looked at together."""
    monkeypatch.setattr(faces, "BLOCK", block)
    rng = np.random.default_rng(1)
    people_PD = rng.normal(size=(6, 128)) / 11
    videos = {f"v{n}": people_PD[[n % 6]] + rng.normal(size=(1, 128)) * 0.01 for n in range(20)}
    videos["chain"] = people_PD[:1] + 0.03
    videos["end"] = people_PD[:1] + 0.06
    assert np.linalg.norm(videos["end"] - videos["v0"]) > 0.45 > np.linalg.norm(videos["end"] - videos["chain"])
    videos["two people"] = people_PD[[4, 5]]
    texts = {key: encode(rows) for key, rows in videos.items()} | {"nobody": ""}
    found: dict[str, set[str]] = {key: {key} for key in texts}
    for one, other in same_people(texts, 0.45):
        joined = found[one] | found[other]
        found |= dict.fromkeys(joined, joined)
    sets = {frozenset(group) for group in found.values()}
    assert {len(group) for group in sets if "v0" in group} == {6}
    assert {"v0", "v6", "v12", "v18", "chain", "end"} in sets
    assert next(group for group in sets if "two people" in group) >= {"v4", "v5", "v10", "v11", "v16", "v17"}
    assert {"nobody"} in sets
    assert len(sets) == 6  # five groups of people, and nobody
    assert same_people({"a": ""}, 0.45) == []


def test_crops_are_spread_over_each_track(tmp_path: Path) -> None:
    segments = [make_segment("a", index, {}) for index in range(MOST_TRACKS + 3)]
    write_segments(tmp_path / "a.parquet", iter(segments))

    def row(index: int, track: int) -> SegmentRow:
        return SegmentRow("s", index=index, track=track, start_frame=0, num_frames=54, row_group=index, scores={})

    one = sample_faces(tmp_path / "a.parquet", [row(0, 7), row(1, 7)])
    ((images_THW3, points_T68x2),) = one
    assert images_THW3.shape == (FRAMES, 104, 80, 3)
    levels_T = images_THW3.mean((1, 2, 3))  # 40 + t/2 in the first segment, 43 + t/2 in the second
    assert (np.diff(levels_T[:4]) > 0).all()
    assert (np.diff(levels_T[4:]) > 0).all()
    assert points_T68x2[:, 0, 0].tolist() == [0] * 4 + [1] * 4  # landmarks tell the segments apart
    many = sample_faces(tmp_path / "a.parquet", [row(0, 0), row(1, 0), *(row(i, i) for i in range(2, len(segments)))])
    assert len(many) == MOST_TRACKS
    assert many[0][1][:, 0, 0].tolist() == [0] * 4 + [1] * 4, "the longest track comes first"
