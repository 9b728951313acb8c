from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lawdnet.data import sampling
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.sampling import (
    HEARD_FRAMES,
    MIN_SHIFT,
    SampleSpec,
    Work,
    batches_per_epoch,
    decode_jpeg,
    draw,
    draw_batches,
    plan_epoch,
    rank_order,
)
from lawdnet.data.schema import write_segments
from lawdnet.data.segment_list import SegmentRef
from lawdnet.types import Segment

SPEC = SampleSpec(
    mouth_px=32, num_frames=1, batch_size=4, samples_per_segment=6, audio="mel", sync=None, mix_segments=8
)
CLIP = replace(SPEC, num_frames=5, sync="mel")
CONTRAST = replace(CLIP, contrast=True)


def refs(count: int) -> list[SegmentRef]:
    return [SegmentRef(f"s{i}", "v", "train", 54, "x.parquet", i) for i in range(count)]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40])
def test_every_rank_gets_the_planned_number_of_batches(count: int, world: int) -> None:
    for rank in range(world):
        works = list(plan_epoch(refs(count), SPEC, seed=1, epoch=0, rank=rank, world=world))
        sizes = [-(-len(work.segments) * 6 // 4) for work in works]
        assert sum(sizes) == batches_per_epoch(count, world, SPEC)
        assert [work.first_batch for work in works] == np.cumsum([0, *sizes[:-1]]).tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_visits_every_segment(world: int) -> None:
    seen = Counter(
        number for rank in range(world) for number in rank_order(10, seed=1, epoch=3, rank=rank, world=world).tolist()
    )
    assert set(seen) == set(range(10))
    assert sum(seen.values()) == -(-10 // world) * world


def test_epochs_differ_and_repeat_exactly() -> None:
    def order(epoch: int) -> list[int]:
        return rank_order(20, seed=1, epoch=epoch, rank=0, world=1).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_a_plan_can_start_anywhere() -> None:
    whole = list(plan_epoch(refs(20), SPEC, seed=1, epoch=0, rank=0, world=1))
    for start in range(batches_per_epoch(20, 1, SPEC)):
        first = next(plan_epoch(refs(20), SPEC, seed=1, epoch=0, rank=0, world=1, start=start))
        assert first.first_batch == start
        assert first.segments == whole[start // (SPEC.mix_segments * 6 // 4)].segments


@pytest.mark.parametrize("num_frames", [54, 63, 288])
def test_references_come_from_five_other_clips(num_frames: int) -> None:
    for seed in range(50):
        chosen = draw(np.random.default_rng(seed), num_frames, CLIP)
        assert chosen.frames == tuple(range(chosen.clip_start + 2, chosen.clip_start + 7))
        for row in chosen.references:
            clips = {frame // 9 for frame in row}
            assert len(clips) == 5
            assert chosen.clip_start // 9 not in clips
            assert max(row) < num_frames


def test_single_frames_cover_the_whole_segment() -> None:
    frames = {draw(np.random.default_rng(seed), 54, SPEC).frames[0] for seed in range(1000)}
    assert frames == set(range(54))


def test_clips_for_the_sync_network_begin_at_any_frame() -> None:
    starts = {draw(np.random.default_rng(seed), 54, CONTRAST).clip_start for seed in range(1000)}
    assert starts == set(range(54 - 9 + 1))


def test_other_audio_is_never_close_to_the_clip() -> None:
    draws = [draw(np.random.default_rng(seed), 54, CONTRAST) for seed in range(1000)]
    assert min(abs(d.other_start - d.clip_start) for d in draws) == MIN_SHIFT
    assert {d.other_start for d in draws} == set(range(54 - 9 + 1))


@pytest.fixture
def stored(tmp_path: Path) -> list[SegmentRef]:
    """Two segments whose frames and features tell their number."""
    path = tmp_path / "v.parquet"
    faces = np.zeros((54, 68, 2), np.float32)
    faces[:, 45, 0] = 10
    faces[:, 66, 1] = np.where(np.arange(54) < 40, 4, 0)  # it speaks, then rests

    def segment(index: int) -> Segment:
        images = [np.full((52, 40, 3), (100 * index + t, 40, 200), np.uint8) for t in range(54)]
        return Segment(
            segment_id=f"s{index}", video_id="v", index=index, start_frame=0, split="train",
            frames_jpeg=tuple(encode_jpeg(p, 95) for p in images),
            landmarks_T68x2=faces, matrix_T33=np.zeros((54, 3, 3), np.float32),
            features={"mel": np.repeat(np.arange(54, dtype=np.float32)[:, None] + 100 * index, 2, 1)},
        )  # fmt: skip

    write_segments(path, (segment(i) for i in range(2)))
    return [SegmentRef(f"s{i}", "v", "train", 54, str(path), i) for i in range(2)]


def test_audio_and_frames_of_a_sample_belong_together(stored: list[SegmentRef]) -> None:
    (work,) = plan_epoch(stored, CLIP, seed=1, epoch=0, rank=0, world=1)
    for batch in draw_batches(work, CLIP, seed=1, stored_width=40):
        frame_BN = batch["source"][:, :, 20, 20, 0]
        assert batch["source"].shape == (4, 5, 52, 40, 3)
        assert batch["reference"].shape == (4, 5, 5, 52, 40, 3)
        assert batch["audio"].shape == (4, 5, 2, 5)
        np.testing.assert_allclose(batch["audio"][:, :, 0, 2], frame_BN, atol=2)
        np.testing.assert_allclose(batch["sync_audio"][:, 0, 2:7], frame_BN, atol=2)
        assert len(np.unique(frame_BN[:, 0] // 100)) == 2, "a batch mixes the segments of its group"


def test_lips_come_with_the_audio_of_their_frames(stored: list[SegmentRef]) -> None:
    """The mouth is open in frames 0 … 39, and the feature counts the frames."""
    spec = replace(CLIP, lips=True)
    (work,) = plan_epoch(stored, spec, seed=1, epoch=0, rank=0, world=1)
    plain, with_lips = (list(draw_batches(work, s, seed=1, stored_width=40)) for s in (CLIP, spec))
    for one, two in zip(plain, with_lips, strict=True):
        assert (one["source"] == two["source"]).all()
        assert (one["audio"] == two["audio"]).all()
        assert two["lip_audio"].shape == (4, HEARD_FRAMES, 2, 5)
        number_BR = two["lip_audio"][:, :, 0, 2].astype(int) % 100
        chin_BR = two["lips"][:, :, 2 * (66 - 48) + 1]
        assert ((chin_BR > 0) == (number_BR < 40)).all()
    assert len(np.unique(number_BR)) > 20


def test_dropout_hides_channels_of_the_heard_audio_alone(stored: list[SegmentRef]) -> None:
    spec = replace(CLIP, lips=True, audio_dropout=0.25)
    (work,) = plan_epoch(stored, spec, seed=1, epoch=0, rank=0, world=1)
    plain, hidden = (
        list(draw_batches(work, s, seed=1, stored_width=40)) for s in (replace(spec, audio_dropout=0.0), spec)
    )
    shares = []
    for one, two in zip(plain, hidden, strict=True):
        for name in ("sync_audio", "audio", "lips"):
            assert (one[name] == two[name]).all()
        heard, shown = one["lip_audio"], two["lip_audio"]
        is_hidden = (shown == 0).all(-1)
        shares.append(is_hidden[heard.any(-1)].mean())
        np.testing.assert_allclose(np.where(is_hidden[..., None], 0, heard / 0.75), shown, rtol=1e-5)
    assert 0.15 < np.mean(shares) < 0.35


def test_contrast_brings_other_audio_and_no_references(stored: list[SegmentRef]) -> None:
    (work,) = plan_epoch(stored, CONTRAST, seed=1, epoch=0, rank=0, world=1)
    for batch in draw_batches(work, CONTRAST, seed=1, stored_width=40):
        assert "reference" not in batch
        assert (np.abs(batch["other_audio"][:, 0, 0] - batch["sync_audio"][:, 0, 0]) >= MIN_SHIFT).all()


def test_contrast_brings_the_audio_of_a_mouth_at_rest(stored: list[SegmentRef]) -> None:
    (work,) = plan_epoch(stored, CONTRAST, seed=1, epoch=0, rank=0, world=1)
    rows = []
    for batch in draw_batches(work, CONTRAST, seed=1, stored_width=40):
        first = [batch[f"{kind}_audio"][:, 0, 0] % 100 for kind in ("sync", "other", "quiet")]
        rows += list(zip(*first, strict=True))
    assert min(own for own, _, _ in rows) < 30 < 40 < max(own for own, _, _ in rows)
    for own, other, quiet in rows:
        assert abs(quiet - own) >= MIN_SHIFT
        assert quiet >= 40 if own < 40 else quiet == other, "a mouth at rest is not contradicted by silence"


def test_a_batch_names_its_segments(stored: list[SegmentRef]) -> None:
    (work,) = plan_epoch(stored, SPEC, seed=1, epoch=0, rank=0, world=1)
    for batch in draw_batches(work, SPEC, seed=1, stored_width=40):
        assert batch["segment_ids"].dtype.kind == "U"
        assert [int(name[1:]) for name in batch["segment_ids"]] == (batch["source"][:, 0, 9, 9, 0] >= 90).tolist()


def test_diverse_references_reach_the_batch_and_repeat(stored: list[SegmentRef]) -> None:
    made = []
    for spec in (replace(CLIP, references="diverse"), replace(CLIP, references="diverse"), CLIP):
        (work,) = plan_epoch(stored, spec, seed=1, epoch=0, rank=0, world=1)
        made.append(np.stack([batch["reference"] for batch in draw_batches(work, spec, seed=1, stored_width=40)]))
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_batches_are_the_same_again_and_from_the_middle(stored: list[SegmentRef]) -> None:
    (work,) = plan_epoch(stored, SPEC, seed=1, epoch=0, rank=0, world=1)
    whole = list(draw_batches(work, SPEC, seed=1, stored_width=40))
    (late,) = plan_epoch(stored, SPEC, seed=1, epoch=0, rank=0, world=1, start=2)
    for again, from_middle in ((whole, draw_batches(work, SPEC, seed=1, stored_width=40)),
                               (whole[2:], draw_batches(late, SPEC, seed=1, stored_width=40))):  # fmt: skip
        for a, b in zip(again, from_middle, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
    other = next(draw_batches(work, SPEC, seed=2, stored_width=40))
    assert not np.array_equal(other["audio"], whole[0]["audio"])


def test_each_frame_is_decoded_once_and_stays_as_it_was(
    stored: list[SegmentRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def counted(data: bytes, height: int, width: int, *, stored_width: int) -> np.ndarray:
        decoded.append(data)
        return decode_jpeg(data, height, width, stored_width=stored_width)

    work, spec = Work(0, 0, 0, tuple(stored[:1])), replace(SPEC, samples_per_segment=40)
    monkeypatch.setattr(sampling, "decode_jpeg", counted)
    kept = list(draw_batches(work, spec, seed=0, stored_width=320))
    assert len(decoded) <= stored[0].num_frames
    monkeypatch.setattr(sampling, "IMAGE_CACHE_BYTES", 0)
    fresh = list(draw_batches(work, spec, seed=0, stored_width=320))
    assert len(decoded) > 6 * 40
    for ours, theirs in zip(kept, fresh, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("width", [40, 80, 120, 160, 320, 360])
def test_reduced_decoding_moves_nothing(width: int) -> None:
    y, x = np.mgrid[:416, :320]
    wave = np.sin(x / 25) * np.cos(y / 31)
    image = np.repeat((127 + 100 * wave)[..., None], 3, 2).astype(np.uint8)
    height = round(1.3 * width)
    made = decode_jpeg(encode_jpeg(image, 95), height, width, stored_width=320)
    shrinks = width < 320
    area = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    assert made.shape == (height, width, 3)
    assert np.abs(made.astype(int) - area).max() <= 4


def test_every_round_takes_each_segment_once_in_an_order_of_its_own(stored: list[SegmentRef]) -> None:
    group = tuple(replace(stored[i % 2], segment_id=f"s{i}") for i in range(8))
    batches = list(draw_batches(Work(0, 0, 0, group), SPEC, seed=1, stored_width=40))
    ids = [str(name) for batch in batches for name in batch["segment_ids"]]
    rounds = [ids[start : start + 8] for start in range(0, len(ids), 8)]
    assert [sorted(names) for names in rounds] == [[f"s{i}" for i in range(8)]] * 6
    assert len({tuple(names) for names in rounds}) > 1


def test_looks_change_the_images_and_nothing_else_of_what_is_drawn(stored: list[SegmentRef]) -> None:
    work = Work(epoch=0, first_batch=0, skip=0, segments=tuple(stored))
    plain, changed, again = (
        list(draw_batches(work, spec, seed=1, stored_width=40))
        for spec in (CLIP, replace(CLIP, augment=True), replace(CLIP, augment=True))
    )
    for one, two, three in zip(plain, changed, again, strict=True):
        for name, values in one.items():
            is_image = name in ("source", "reference")
            assert np.array_equal(values, two[name]) != is_image, name
            assert np.array_equal(two[name], three[name]), name
