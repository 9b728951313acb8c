"""Audio-video offsets: their sign, their exactness, and what the networks are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from lawdnet.audio.mel import Mel
from lawdnet.data.sampling import decode_jpeg
from lawdnet.evaluation import sync
from lawdnet.evaluation.sync import SyncScorer, distance_curve, offset_histogram, read_curve, v2_box
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.geometry import stage_size
from lawdnet.models.legacy import syncnet_to_legacy
from lawdnet.models.saved import load_syncnet
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.models.syncnet_v2 import SyncNetV2
from lawdnet.synthetic import Pose, TalkingHead, make_identity, make_motion, make_speech
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.position import Position
from lawdnet.training.steps import GanStep, SyncStep, mouth_square
from lawdnet.types import SAMPLES_PER_FRAME, TrainBatch

CPU = torch.device("cpu")
WIDTH = 160
SPARE = 5
"""Frames of audio before and after the frames, for shifting."""
LINEAGE = Lineage(dataset_hash="d", crop_width=WIDTH, landmarks="auto", features={"mel": {"dim": 320}})
SHIFTS = range(-SPARE, SPARE + 1)


@dataclass
class Clip:
    """Frames, and audio that begins and ends `SPARE` frames outside them."""

    pictures: list[bytes]
    points_T68x2: np.ndarray
    wave: np.ndarray
    opening: np.ndarray
    """As long as the audio."""

    def late(self, shift: int) -> np.ndarray:
        """The waveform whose audio comes `shift` frames late."""
        first = (SPARE - shift) * SAMPLES_PER_FRAME
        return self.wave[first : first + len(self.pictures) * SAMPLES_PER_FRAME]

    def late_opening(self, shift: int) -> np.ndarray:
        """T×1 rows that say how open the mouth is, `shift` frames late."""
        return self.opening[SPARE - shift :][: len(self.pictures), None].astype(np.float32)


def draw(opening: np.ndarray, spread: np.ndarray, wave: np.ndarray, seed: int, *, still: bool = False) -> Clip:
    head = TalkingHead(make_identity(seed), (200, 160))
    inner = range(SPARE, len(opening) - SPARE)
    poses = [Pose(tick=t) for t in range(len(opening))] if still else make_motion(seed, len(opening))
    pictures, points = [], []
    for t in inner:
        frame, points_68x2 = head.draw(poses[t], float(opening[t]), float(spread[t]))
        matrix = fit_all(points_68x2[None], WIDTH)[0]
        bgr = cv2.cvtColor(crop_face(frame, matrix, WIDTH), cv2.COLOR_RGB2BGR)
        pictures.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        points.append(transform_points(points_68x2, matrix))
    return Clip(pictures, np.stack(points), wave, opening)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A still head whose mouth opens at random, and a buzz that is as loud as it is open."""
    rng = np.random.default_rng(5)
    opening = rng.random(80 + 2 * SPARE)
    middles = (np.arange(len(opening)) + 0.5) * SAMPLES_PER_FRAME  # a frame's audio is around its middle here
    samples = np.arange(len(opening) * SAMPLES_PER_FRAME)
    wave = np.interp(samples, middles, opening) ** 2 * 0.3 * np.sign(np.sin(samples * 0.05))
    return draw(opening, np.zeros_like(opening), wave.astype(np.float32), 3, still=True)


class Darkness(nn.Module):
    """How dark the middle of the mouth is in five frames: the analytic stand-in for a face encoder."""

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.ndim == 5:  # SyncNet v2: B×3×5×224×224
            return standard(-pictures[:, :, :, 108:135, 107:117].mean((1, 3, 4)))
        side = pictures.shape[-1]
        rows, columns = slice(round(0.4 * side), round(0.66 * side)), slice(round(0.45 * side), round(0.55 * side))
        return standard(-pictures.unflatten(1, (5, 3))[..., rows, columns].mean((2, 3, 4)))


class Level(nn.Module):
    """The five rows that belong to the frames: of nine, or of twenty MFCC at four a frame."""

    def forward(self, rows: Tensor) -> Tensor:
        if rows.ndim == 4:
            return standard(rows[:, 0, 0].unflatten(1, (5, 4)).mean(2))
        return standard(rows[:, 0, 2:7])


def standard(values_B5: Tensor) -> Tensor:
    centred = values_B5 - values_B5.mean(1, keepdim=True)
    return centred / (centred.norm(dim=1, keepdim=True) + 1e-6)


def stand_in(side: int = 64) -> SyncNet:
    network = SyncNet(SyncNetConfig(audio_dim=1, base_channels=1, face_px=side, head="cosine"))
    network.face_encoder, network.audio_encoder = Darkness(), Level()  # type: ignore[assignment]
    network.face_vector = network.audio_vector = nn.Identity()  # type: ignore[assignment]
    return network


def stand_in_v2() -> SyncNetV2:
    network = SyncNetV2()
    network.netcnnlip, network.netcnnaud = Darkness(), Level()  # type: ignore[assignment]
    network.netfclip = network.netfcaud = nn.Identity()  # type: ignore[assignment]
    return network


def scorer_of(encoder: object, monkeypatch: pytest.MonkeyPatch, stride: int = 1) -> SyncScorer:
    monkeypatch.setattr(sync, "_open", lambda path, device: encoder)
    return SyncScorer(Path("stand-in"), "cpu", stride)


@pytest.mark.parametrize(("side", "stride"), [(32, 1), (64, 1), (256, 1), (64, 3)])
def test_late_audio_has_a_positive_offset(clip: Clip, side: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(sync._SyncNetEncoder("syncnet", stand_in(side), "level", CPU), monkeypatch, stride)
    for shift in SHIFTS:
        found = scorer(clip.pictures, clip.points_T68x2, {"level": clip.late_opening(shift)}, None)
        assert found["sync_offset"] == shift
        assert found["sync_distance"] < 0.3 < found["sync_confidence"]


def test_syncnet_v2_hears_the_waveform_with_the_same_sign(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(sync._SyncNetV2Encoder(stand_in_v2(), CPU), monkeypatch)
    assert scorer.feature is None
    for shift in SHIFTS:
        found = scorer(clip.pictures, clip.points_T68x2, {}, clip.late(shift))
        assert found["sync_offset"] == shift
        assert found["sync_confidence"] > 0.2


@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize("offset", [-15, -7, 0, 4, 15])
def test_the_curve_compares_the_windows_that_both_have(offset: int, lead: int) -> None:
    truth = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    faces = truth[30:80]
    sounds = truth[30 - offset + lead :][:46]  # audio window p hears what frame window p - offset + lead shows
    seen = []

    def distance(some: Tensor, others: Tensor) -> Tensor:
        assert len(some) == len(others) > 0
        seen.append(len(some))
        return (some - others).norm(dim=1)

    found = read_curve(distance_curve(faces, sounds, distance, lead))
    assert found["sync_offset"] == offset
    assert found["sync_distance"] == 0
    assert len(seen) == 31
    assert max(seen) == 46
    assert min(seen) >= 46 - 15 - 2


def test_confidence_is_median_minus_minimum() -> None:
    curve = np.linspace(3.0, 6.0, 31, dtype=np.float32)
    curve[18] = 1.0
    assert read_curve(curve) == {"sync_offset": 3.0, "sync_confidence": pytest.approx(3.4),
                                 "sync_distance": 1.0}  # fmt: skip


@pytest.mark.parametrize("head", ["cosine", "merge"])
def test_a_pair_scores_as_in_training(clip: Clip, head: str) -> None:
    torch.manual_seed(1)
    network = SyncNet(SyncNetConfig(audio_dim=6, base_channels=4, face_px=64, head=head)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    rows = np.random.default_rng(0).standard_normal((len(clip.pictures), 6)).astype(np.float32)
    encoder = sync._SyncNetEncoder("syncnet", network, "rows", CPU)
    with torch.inference_mode():
        faces = encoder.encode_frames(clip.pictures, clip.points_T68x2)
        sounds = encoder.encode_audio({"rows": rows}, None, len(rows))
        assert (len(faces), len(sounds)) == (76, 72)
        for start in (0, 9, 40):
            height, width = stage_size(64)
            crops = np.stack([decode_jpeg(p, height, width, stored_width=WIDTH)
                              for p in clip.pictures[start + 2 : start + 7]])  # fmt: skip
            square = mouth_square(torch.from_numpy(crops)[None].permute(0, 1, 4, 2, 3) / 255, 64, 64)
            wanted = 1 - network(square, torch.from_numpy(rows[start : start + 9].T.copy())[None]).mean()
            found = encoder.distance(faces[start + 2 :][:1], sounds[start : start + 1])
            torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)


def test_silence_and_stillness_are_finite(clip: Clip, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "syncnet_v2.model"
    torch.save(SyncNetV2().state_dict(), path)
    scorer = SyncScorer(path, "cpu")
    assert scorer.name == "syncnet_v2"
    frozen = [clip.pictures[0]] * 39
    silence = np.zeros(39 * SAMPLES_PER_FRAME, np.float32)
    found = scorer(frozen, clip.points_T68x2[:39], {}, silence)
    assert SyncScorer(path, "cpu", stride=5)(frozen, clip.points_T68x2[:39], {}, silence).keys() == found.keys()
    assert found.keys() == {"sync_offset", "sync_confidence", "sync_distance"}
    assert np.isfinite(list(found.values())).all()
    assert found["sync_confidence"] == pytest.approx(0, abs=1e-3)


def test_syncnet_v2_sees_the_square_of_syncnet_python() -> None:
    points = np.zeros((7, 68, 2), np.float32)
    points[:, 0], points[:, 16], points[:, 8] = (10, 100), (150, 100), (80, 200)
    points[:, 1:8], points[:, 9:16], points[:, 17:27] = (80, 150), (80, 150), (80, 50)
    points[3] += 500  # a slip does not move the square
    left, top, side = v2_box(points)
    # the box is 140 wide and 180 high (brows raised by a fifth of 150 px), so b = 90
    assert (left, top, side) == (round(80 - 1.4 * 90), 20, round(2.8 * 90))
    picture = np.full((208, 160, 3), 200, np.uint8)
    cut = sync._cut(picture, (left, top, side))
    assert cut.shape == (224, 224, 3)
    assert (cut[:, :38] == 110).all()
    assert (cut[170:] == 110).all()
    assert (cut[:160, 45:180] == 200).all()


def test_syncnet_v2_sees_blue_first_in_full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = SyncNetV2(), []
    monkeypatch.setattr(network, "embed_lip", lambda faces: seen.append(faces) or torch.zeros(len(faces), 2))
    blue = cv2.imencode(".png", np.full((208, 160, 3), (250, 20, 10), np.uint8))[1].tobytes()
    points = np.random.default_rng(0).uniform(40, 120, (12, 68, 2)).astype(np.float32)
    assert len(sync._SyncNetV2Encoder(network, CPU).encode_frames([blue] * 12, points)) == 8
    faces = torch.cat(seen)
    assert faces.shape == (8, 3, 5, 224, 224)
    torch.testing.assert_close(faces[3, :, 2, 112, 112], torch.tensor([250.0, 20.0, 10.0]))


def saved(folder: Path, config: TrainConfig, stage: str, audio_dim: int) -> Path:
    torch.manual_seed(0)
    kind = SyncStep if stage == "syncnet" else GanStep
    step = kind(config, config.stage(stage), CPU, lambda n: n, audio_dim=audio_dim)
    target = folder / stage / "epoch_0001"
    target.mkdir(parents=True)
    checkpoint.save(target, step, config.stage(stage), config, LINEAGE, position=Position(1))
    return target


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two stages of tiny networks."""
    config = make_config("small", settings=["sync_channels=4", "base_channels=4", "stages.mouth_px=64",
                                            "disc_channels=4", "disc_max_channels=8"])  # fmt: skip
    for stage in ("syncnet", "frame_64"):
        saved(tmp_path / "run", config, stage, 6)
    return tmp_path / "run"


def test_every_kind_of_file_is_known(run: Path, tmp_path: Path) -> None:
    for path in (run, run / "syncnet", run / "syncnet" / "epoch_0001"):
        scorer = SyncScorer(path)
        assert (scorer.name, scorer.feature) == ("syncnet", "mel")
    published = tmp_path / "syncnet_256mouth.pth"
    state = syncnet_to_legacy(SyncNet(SyncNetConfig(audio_dim=29, base_channels=2, face_px=64)))
    torch.save({"state_dict": {"net": state}}, published)
    scorer = SyncScorer(published)
    assert (scorer.name, scorer.feature) == ("syncnet_2024", "deepspeech")


def test_what_is_no_sync_network_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no such run"):
        SyncScorer(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"a checkpoint of frame_64, not of a sync network"):
        SyncScorer(run / "frame_64" / "epoch_0001")
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"net_g": {"w": torch.zeros(1)}}}, other)
    with pytest.raises(ValueError, match=r"other\.pth: not a sync network; give a run"):
        SyncScorer(other)


def test_wrong_input_is_said(clip: Clip, run: Path) -> None:
    with pytest.raises(ValueError, match="stride: 0, expected 1 … 5"):
        SyncScorer(run, stride=0)
    scorer = SyncScorer(run)
    rows = np.zeros((len(clip.pictures), 6), np.float32)
    with pytest.raises(ValueError, match=r"frames: 38, .* needs at least 39"):
        scorer(clip.pictures[:38], clip.points_T68x2[:38], {"mel": rows[:38]}, None)
    with pytest.raises(ValueError, match=r"'mel', the segment has deepspeech, hubert; build with --features mel"):
        scorer(clip.pictures, clip.points_T68x2, {"hubert": rows, "deepspeech": rows}, None)
    with pytest.raises(ValueError, match=r"'mel' has shape \(80, 5\), expected \(80, 6\)"):
        scorer(clip.pictures, clip.points_T68x2, {"mel": rows[:, :5]}, None)
    encoder = sync._SyncNetV2Encoder(stand_in_v2(), CPU)
    for wave in (None, clip.wave):
        with pytest.raises(ValueError, match=r"waveform: .*expected \(51200,\) for 80 frames"):
            encoder.encode_audio({}, wave, 80)


def index(offsets: list[float | None]) -> pa.Table:
    return pa.table({"score_sync_offset": pa.array(offsets, pa.float32())})


def test_the_histogram_says_what_to_do() -> None:
    late = offset_histogram(index([3, 3, 3, 2, 4, 3, None, math.nan, -9] * 2))
    assert late.counts[3] == 8
    assert sum(late.counts.values()) == 14
    assert len(late.counts) == 31
    assert late.within_one == 0
    assert late.verdict.startswith("the audio is 3 frames late: 86%")
    assert offset_histogram(index([-2, -2, -3] * 4)).verdict.startswith("the audio is 2 frames early")
    good = offset_histogram(index([0, 1, 0, -1, 8] * 2))
    assert good.within_one == pytest.approx(0.8)
    assert good.verdict.startswith("frames and audio are in sync")
    assert offset_histogram(index([*range(-15, 16)])).verdict.startswith("no agreement")
    assert offset_histogram(index([15] * 20)).verdict.startswith("no agreement"), "the end of the search is no finding"
    assert offset_histogram(index([3] * 9)).verdict == "9 segments are too few to tell, 10 are needed"
    for empty in (index([]), index([None]), pa.table({"segment_id": ["a"]})):
        found = offset_histogram(empty)
        assert (found.within_one, found.verdict) == (0, "offsets were not measured")


def speaker(seed: int, seconds: float) -> Clip:
    """A drawn person who moves and talks."""
    speech = make_speech(seconds, seed)
    return draw(speech.opening_T, speech.spread_T, speech.audio_S, seed)


def batches(clips: list[Clip], side: int, steps: int) -> Iterator[TrainBatch]:
    """As the sampler draws them for the `syncnet` stage."""
    rng, (height, width) = np.random.default_rng(0), stage_size(side)
    crops = [np.stack([decode_jpeg(p, height, width, stored_width=WIDTH) for p in clip.pictures]) for clip in clips]
    rows = [Mel().extract(clip.late(0)) for clip in clips]
    for _ in range(steps):
        source, own, other = [], [], []
        for _ in range(32):
            who = int(rng.integers(len(clips)))
            starts = np.arange(len(rows[who]) - 8)
            start = int(rng.choice(starts))
            elsewhere = int(rng.choice(starts[np.abs(starts - start) >= 5]))
            source.append(crops[who][start + 2 : start + 7])
            own.append(rows[who][start : start + 9].T)
            other.append(rows[who][elsewhere : elsewhere + 9].T)
        pictures = torch.from_numpy(np.stack(source)).permute(0, 1, 4, 2, 3).float() / 255
        own_BC9, other_BC9 = (torch.from_numpy(np.stack(sound)) for sound in (own, other))
        yield TrainBatch(source_BN3HW=pictures, reference_BN15HW=pictures, audio_BNC5=own_BC9,
                         sync_audio_BC9=own_BC9, other_audio_BC9=other_BC9)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trained_network_finds_every_shift_of_people_it_never_saw(tmp_path: Path) -> None:
    config = make_config("small")
    stage = config.stage("syncnet")
    torch.manual_seed(0)
    step = SyncStep(config, stage, CPU, lambda n: n, audio_dim=Mel().feature_dim)
    for batch in batches([speaker(seed, 8.0) for seed in range(12)], stage.mouth_px, 160):
        step(batch)
    folder = tmp_path / "syncnet" / "epoch_0001"
    folder.mkdir(parents=True)
    checkpoint.save(folder, step, stage, config, LINEAGE, position=Position(1))
    assert load_syncnet(folder).config.head == "cosine"

    scorer = SyncScorer(tmp_path)
    for seed in range(900, 904):
        clip = speaker(seed, 4.0)
        for shift in SHIFTS:
            found = scorer(clip.pictures, clip.points_T68x2, {"mel": Mel().extract(clip.late(shift))}, None)
            assert found["sync_offset"] == shift
            assert found["sync_confidence"] > 0.3
        strange = speaker(seed + 50, 4.0).late(0)
        assert scorer(clip.pictures, clip.points_T68x2, {"mel": Mel().extract(strange)}, None)["sync_confidence"] < 0.3
