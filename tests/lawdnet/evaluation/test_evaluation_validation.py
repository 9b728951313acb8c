"""Validation of generators and sync networks on held-out segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import MIN_SHIFT, decode_jpeg
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation import sync_validation
from lawdnet.evaluation.plan import WINDOW_CLIPS, choose
from lawdnet.evaluation.validation import merge, metrics, offsets, plan, validate, validate_sync
from lawdnet.evaluation.window import WindowSpec, open_window
from lawdnet.face.geometry import stage_size
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.types import CLIP_FRAMES
from tests.support.drawn_datasets import WIDTH, drawn_dataset, drawn_segment

MOUTH_PX = 32
SEEN: dict[str, Any] = {"mouth_px": MOUTH_PX, "audio": "mel", "stored_width": WIDTH}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    videos = {f"val_{n}": [drawn_segment(f"val_{n}", n)] for n in range(3)}
    return drawn_dataset(tmp_path_factory.mktemp("drawn") / "d", videos | {"seen": [drawn_segment("seen", 9)]})


@pytest.fixture(scope="module")
def refs(dataset: Dataset) -> list[SegmentRef]:
    return plan(dataset.segments())


class Deaf(nn.Module):
    """Shows the first reference, whatever is said."""

    def forward(self, source: Tensor, reference: Tensor, audio: Tensor) -> Tensor:
        return reference[:, :3]


class Perfect(nn.Module):
    """Knows the answers, in the order in which it is asked."""

    def __init__(self, refs: Sequence[SegmentRef], seed: int = 0) -> None:
        super().__init__()
        spec = WindowSpec(mouth_px=MOUTH_PX, audio="mel", stored_width=WIDTH, seed=seed)
        self.answers = iter([
            torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
            for ref in refs
            for clip in np.split(open_window(ref, spec).truth_THW3, WINDOW_CLIPS)
        ])  # fmt: skip

    def forward(self, source: Tensor, reference: Tensor, audio: Tensor) -> Tensor:
        return next(self.answers)


def tiny_generator() -> Generator:
    torch.manual_seed(3)
    return Generator(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))


def make_refs(segments: Mapping[str, int], split: str = "val") -> list[SegmentRef]:
    return [
        SegmentRef(f"{video}-{i}", video, split, 54, "nowhere", i) for video, n in segments.items() for i in range(n)
    ]


def test_a_plan_takes_held_out_videos_only_and_every_segment_once() -> None:
    held_out, seen = make_refs({"a": 7, "b": 1, "c": 3}), make_refs({"d": 5}, "train")
    whole = plan(seen + held_out, limit=2)
    assert [ref.segment_id for ref in whole] == ["a-1", "a-5", "b-0", "c-0", "c-2"]
    parts = [plan(seen + held_out, rank, 3, limit=2) for rank in range(3)]
    assert sorted((r for part in parts for r in part), key=whole.index) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [ref.video_id for ref in plan(held_out, limit=1, most=2)] == ["a", "c"]
    assert plan(seen + held_out, limit=9, split="train") == seen
    assert plan(seen) == []


def test_references_come_from_five_other_clips() -> None:
    for seed in range(20):
        start, references = choose(make_refs({"a": 1})[0], seed)
        first = start // CLIP_FRAMES
        assert start % CLIP_FRAMES == 0
        assert first + WINDOW_CLIPS <= 6
        for clip, row in enumerate(references, first):
            clips = {frame // CLIP_FRAMES for frame in row}
            assert len(clips) == 5
            assert clip not in clips
            assert max(row) < 54


def test_a_perfect_generator_equals_the_truth(refs: list[SegmentRef]) -> None:
    found = metrics(validate(Perfect(refs), refs, **SEEN))
    assert (found["segments"], found["frames"]) == (3, 3 * 45)
    assert found["psnr"] == 100
    assert found["ssim"] == pytest.approx(1)
    assert found["pixel"] == 0
    assert found["mouth_correlation"] == pytest.approx(1)
    assert found["silence"] == found["truth_silence"]
    assert found["truth_mouth_correlation"] > 0.95


def test_a_deaf_generator_is_the_baseline_and_its_psnr_tells_nothing(refs: list[SegmentRef]) -> None:
    found = metrics(validate(Deaf(), refs, **SEEN))
    for name in ("psnr", "ssim", "pixel", "mouth_correlation", "silence"):
        assert found[name] == pytest.approx(found[f"baseline_{name}"], rel=1e-6)
    assert found["psnr"] > 20
    assert abs(found["mouth_correlation"]) < 0.5
    assert found["silence"] > found["truth_silence"]


def test_only_the_hidden_rectangle_is_judged(refs: list[SegmentRef]) -> None:
    class Frame(nn.Module):
        """Right in the middle; white down to the first row of the mouth square, which `infer` hardly shows."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Perfect(refs)

        def forward(self, *inputs: Tensor) -> Tensor:
            made: Tensor = self.inner(*inputs).clone()
            made[..., : MOUTH_PX // 2 + 1, :] = 1
            return made

    assert metrics(validate(Frame(), refs, **SEEN))["psnr"] > 45


def test_two_workers_give_what_one_gives(dataset: Dataset, refs: list[SegmentRef]) -> None:
    generator = tiny_generator()
    alone = metrics(validate(generator, refs, **SEEN))
    parts = [validate(generator, plan(dataset.segments(), rank, 2), **SEEN) for rank in range(2)]
    both = metrics(merge(parts))
    assert both.keys() == alone.keys()
    assert all(both[name] == pytest.approx(alone[name], rel=1e-9) for name in alone)
    idle = metrics(merge([*parts, validate(generator, [], **SEEN)]))
    assert idle == both


def test_the_seed_alone_decides_what_is_shown(refs: list[SegmentRef]) -> None:
    first, again, other = (validate(Deaf(), refs, **SEEN, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["psnr"] != other["psnr"]


def test_the_generator_is_left_as_it_was(refs: list[SegmentRef]) -> None:
    class Broken(Deaf):
        def forward(self, *inputs: Tensor) -> Tensor:
            assert not self.training
            raise RuntimeError

    generator = Broken().train()
    with pytest.raises(RuntimeError):
        validate(generator, refs, **SEEN)
    assert generator.training
    assert validate((quiet := Deaf().eval()), refs[:1], **SEEN) != {}
    assert not quiet.training


def test_a_mouth_that_cannot_be_measured_has_no_metric(tmp_path: Path) -> None:
    drawn = drawn_segment("val", 1)
    unlike = dataclasses.replace(drawn, landmarks_T68x2=drawn.landmarks_T68x2[::-1].copy())
    refs = drawn_dataset(tmp_path / "d", {"val": [unlike]}).segments()
    found = metrics(validate(Deaf(), refs, **SEEN))
    assert "psnr" in found
    assert not [name for name in found if "mouth_correlation" in name or "silence" in name]
    mixed = {"segments": 3, "frames": 3, "mouth_segments": 1, "quiet_frames": 0}
    mixed |= {f"{row}mouth_{part}": 1 for row in ("", "truth_", "baseline_") for part in ("xx", "xy", "yy")}
    assert "mouth_correlation" not in metrics(mixed), "one segment of three is a choice"
    assert metrics(mixed | {"mouth_segments": 2})["mouth_correlation"] == 1


def test_nothing_measured_gives_no_metrics() -> None:
    assert metrics(validate(Deaf(), [], **SEEN)) == {}
    assert metrics({}) == {}


class FakeScorer:
    """A sync encoder that only sees how bright the mouths are."""

    name, feature = "fake", "mel"

    def __call__(self, pictures: Sequence[bytes], landmarks: Any, features: Mapping[str, Any], wave: Any) -> Any:
        assert len(pictures) == len(landmarks) == len(features["mel"]) == 45
        shown = [decode_jpeg(data, *stage_size(MOUTH_PX), stored_width=40) for data in pictures]
        return {"sync_offset": -1.0, "sync_confidence": 0.5, "sync_distance": float(np.mean(shown))}


def test_the_encoder_sees_generated_copied_and_true_mouths_alike(refs: list[SegmentRef]) -> None:
    scorer: Any = FakeScorer()
    found = metrics(validate(Perfect(refs), refs, **SEEN, scorer=scorer))
    assert found["sync_distance"] == found["truth_sync_distance"] != found["baseline_sync_distance"]
    assert (found["sync_confidence"], found["truth_sync_in_time"]) == (0.5, 1)
    scorer.feature = None
    with pytest.raises(ValueError, match=r"fake needs the waveform.*lawdnet compare"):
        validate(Deaf(), refs, **SEEN, scorer=scorer)


class FakeEncoder:
    """Knows which frame an image and a window of audio belong to; its audio is `late` frames off."""

    lead = 2

    def __init__(self, begin: int, late: int) -> None:
        self.begin, self.late = begin, late
        self.asked: list[Tensor] = []

    def encode_frames(self, pictures: Sequence[bytes], landmarks: Any, stride: int) -> Tensor:
        return torch.arange(len(pictures) - 4)[:, None] + 0.0

    def encode_audio(self, features: Mapping[str, Any], wave: None, frames: int) -> Tensor:
        return torch.arange(frames - 8)[:, None] + 2.0 - self.late - self.begin

    def distance(self, faces: Tensor, sounds: Tensor) -> Tensor:
        self.asked.append((faces - sounds).abs().squeeze(1))
        return self.asked[-1]


def judged(monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef], late: int) -> dict[str, float]:
    network = SyncNet(SyncNetConfig(audio_dim=320, base_channels=1, face_px=32, head="cosine")).train()
    parts = []
    for ref in refs:
        encoder = FakeEncoder(choose(ref, 0)[0], late)
        monkeypatch.setattr(sync_validation, "encoder_of", lambda *given, encoder=encoder: encoder)
        parts.append(validate_sync(network, [ref], feature="mel"))
        own, other, *_ = encoder.asked
        assert (len(own), len(other)) == (37, 37)
        assert other.min() >= MIN_SHIFT - late, "one or two frames off still look in sync"
    assert network.training
    return merge(parts)


def test_a_sync_network_that_knows_is_always_right(monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef]) -> None:
    sums = judged(monkeypatch, refs, 0)
    found = metrics(sums)
    assert (found["accuracy"], found["own_distance"], found["offset_within_one"]) == (1, 0, 1)
    assert {o for o, n in offsets(sums).items() if n} == {0}


def test_late_audio_shows_in_the_offsets(monkeypatch: pytest.MonkeyPatch, refs: list[SegmentRef]) -> None:
    sums = judged(monkeypatch, refs, 3)
    assert offsets(sums)[3] == 3
    found = metrics(sums)
    assert (found["offset_common"], found["offset_within_one"], found["own_distance"]) == (3, 0, 3)


def test_an_untrained_sync_network_is_at_chance(refs: list[SegmentRef]) -> None:
    torch.manual_seed(0)
    network = SyncNet(SyncNetConfig(audio_dim=320, base_channels=2, face_px=32, head="cosine"))
    found = metrics(validate_sync(network, refs, feature="mel"))
    assert 0.2 < found["accuracy"] < 0.8
    assert sum(offsets(validate_sync(network, refs, feature="mel")).values()) == 3
