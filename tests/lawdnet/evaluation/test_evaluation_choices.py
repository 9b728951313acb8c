"""Choices of a sync network between own and other audio, in validations of generators and of sync networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation import sync_validation
from lawdnet.evaluation.landmarks import LandmarksByRow
from lawdnet.evaluation.plan import LONG_CLIPS, choose, foreign_segments
from lawdnet.evaluation.validation import metrics, plan, validate, validate_sync
from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from tests.lawdnet.evaluation.test_evaluation_motion import Deaf
from tests.support.drawn_datasets import WIDTH, drawn_dataset, drawn_segment
from tests.support.fake_landmarker import FakeLandmarker

SEEN: dict[str, Any] = {"mouth_px": 32, "audio": "mel", "stored_width": WIDTH}


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> list[SegmentRef]:
    videos = {f"val_{n}": [drawn_segment(f"val_{n}", n, frames=108)] for n in range(2)}
    dataset: Dataset = drawn_dataset(tmp_path_factory.mktemp("choices") / "d", videos)
    return plan(dataset.segments())


class Knows:
    """Embeds what it is told to know: the person, or the moment as well."""

    name, feature, lead = "knows", "mel", 2

    def __init__(self, *, moment: bool) -> None:
        self.moment = moment
        self.own: bytes | None = None
        """The first audio that it hears."""

    def encode_frames(self, frames: Sequence[bytes], landmarks: Any, stride: int) -> Tensor:
        return self._embedding(len(frames) - 4, 0.0)

    def _embedding(self, count: int, person: float, late: float = 0.0) -> Tensor:
        time = torch.arange(count) + late if self.moment else torch.zeros(count)
        return torch.stack([torch.full((count,), person), time], 1)

    def encode_audio(self, features: Mapping[str, Any], waveform: None, frames: int) -> Tensor:
        rows = features["mel"]
        assert len(rows) == frames
        self.own = self.own or rows.tobytes()
        return self._embedding(frames - 8, 0.0 if rows.tobytes() == self.own else 50.0, 2.0)

    def distance(self, faces: Tensor, audio: Tensor) -> Tensor:
        return (faces - audio).norm(dim=1)


def judged(monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef], *, moment: bool) -> dict[str, float]:
    """One segment, which fills its window, so that its frames begin at 0."""
    network = SyncNet(SyncNetConfig(audio_dim=320, base_channels=1, face_px=32, head="cosine"))
    monkeypatch.setattr(sync_validation, "encoder_of", lambda *_: Knows(moment=moment))
    sums = validate_sync(network, refs[:1], feature="mel", foreign=foreign_segments(refs), clips=LONG_CLIPS)
    return metrics(sums)


def test_a_network_that_knows_the_moment_is_right_over_every_span(
    monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef]
) -> None:
    found = judged(monkeypatch, refs, moment=True)
    names = ("accuracy", "accuracy_25", "accuracy_50", "foreign_9", "foreign_25", "foreign_50")
    assert {name: found[name] for name in names} == dict.fromkeys(names, 1.0)


def test_a_network_that_knows_the_person_only_tells_no_moments_apart(
    monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef]
) -> None:
    found = judged(monkeypatch, refs, moment=False)
    assert found["foreign_25"] == 1
    assert found["accuracy"] == 0.5, "there was no choice"
    assert "accuracy_25" not in found


def test_the_floor_needs_no_network_and_drawn_mouths_follow_the_level(
    monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef]
) -> None:
    found = judged(monkeypatch, refs, moment=False)
    assert found["floor_9"] > 0.6
    assert found["floor_25"] > 0.8
    assert "floor_50" in found


class Judge:
    """A scorer whose network compares the darkness of the mouth with the level of the audio."""

    name, feature, lead = "judge", "mel", 2

    @property
    def encoder(self) -> Judge:
        return self

    def encode_frames(self, frames: Sequence[bytes], landmarks: Any, stride: int) -> Tensor:
        height, width = stage_size(32)
        rows, columns = mouth_box(32)
        mouths = [decode_jpeg(data, height, width, stored_width=width)[rows, columns] for data in frames]
        dark = torch.tensor([-float(mouth[16:22, 12:20].mean()) for mouth in mouths])
        return standard(dark.unfold(0, 5, 1))

    def encode_audio(self, features: Mapping[str, Any], waveform: None, frames: int) -> Tensor:
        return standard(torch.from_numpy(features["mel"].mean(1)).unfold(0, 9, 1)[:, 2:7])

    def distance(self, faces: Tensor, audio: Tensor) -> Tensor:
        return 1 - (faces * audio).sum(1)


def standard(values_B5: Tensor) -> Tensor:
    centred = values_B5 - values_B5.mean(1, keepdim=True)
    return centred / (centred.norm(dim=1, keepdim=True) + 1e-3)


def test_true_mouths_are_told_from_mouths_that_ignore_the_audio(refs: list[SegmentRef]) -> None:
    scorer: Any = Judge()
    found = metrics(validate(Deaf(), refs, **SEEN, scorer=scorer, foreign=foreign_segments(refs), clips=LONG_CLIPS))
    assert found["segments"] == 2
    assert found["frames"] == 2 * 108
    assert found["truth_sync_accuracy_25"] > 0.8
    assert found["truth_sync_foreign_25"] > 0.8
    assert found["sync_accuracy_25"] == found["baseline_sync_accuracy_25"] < 0.75
    assert {"sync_accuracy_9", "sync_accuracy_50", "sync_distance"} <= found.keys()


class Loud(torch.nn.Module):
    """Shows a bright mouth where its audio is loud, and nothing else."""

    def forward(self, source: Tensor, reference: Tensor, audio: Tensor) -> Tensor:
        level_B = audio.mean((1, 2))
        return (0.5 - 0.4 * level_B)[:, None, None, None].expand_as(source)


def test_a_mouth_driven_by_another_voice_is_measured_against_that_voice(refs: list[SegmentRef]) -> None:
    scorer: Any = Judge()
    seen: list[dict[str, Any]] = []
    landmarks = LandmarksByRow(FakeLandmarker())
    found = metrics(
        validate(
            Loud(),
            refs,
            **SEEN,
            scorer=scorer,
            landmarks=landmarks,
            foreign=foreign_segments(refs),
            clips=LONG_CLIPS,
            on_frames=lambda window, shown: seen.append(dict(shown)),
        )
    )
    assert found["cross_sync_accuracy_25"] > 0.9
    assert found["sync_accuracy_25"] > 0.9
    assert found["cross_landmarks_found"] == 1
    assert "cross_landmark_jitter" in found
    assert not {"cross_psnr", "cross_lmd", "cross_opening_correlation", "cross_articulation"} & found.keys()
    assert [sorted(shown) for shown in seen] == [["", "baseline_", "cross_"]] * 2
    assert not np.array_equal(seen[0][""], seen[0]["cross_"])


def test_how_a_mouth_moves_is_compared_with_the_audio_that_drives_it(refs: list[SegmentRef]) -> None:
    landmarks = LandmarksByRow(FakeLandmarker())
    given: dict[str, Any] = {**SEEN, "landmarks": landmarks, "foreign": foreign_segments(refs), "clips": LONG_CLIPS}
    found = metrics(validate(Deaf(), refs, **given))
    assert 0 < found["cross_opening_level_25"] < 0.8 < found["truth_opening_level_25"]


def test_without_another_person_there_is_no_cross_audio(refs: list[SegmentRef]) -> None:
    alone = refs[:1]
    found = metrics(validate(Loud(), alone, **SEEN, foreign=foreign_segments(alone)))
    assert not [name for name in found if name.startswith("cross_")]


def test_a_short_segment_is_measured_whole() -> None:
    short = SegmentRef("s", "v", "val", 54, "", 0)
    start, references = choose(short, 0, LONG_CLIPS)
    assert (start, len(references)) == (0, 6)
