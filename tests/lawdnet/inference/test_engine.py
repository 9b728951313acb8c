import dataclasses
import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lawdnet.audio import write_wav
from lawdnet.data.levels import encode_jpeg
from lawdnet.data.sampling import decode_jpeg
from lawdnet.evaluation.image import psnr
from lawdnet.face.align import crop_face, fit_all, scale_matrix
from lawdnet.face.geometry import stage_size, template_px
from lawdnet.face.mask import paste_alpha
from lawdnet.face.points import ALIGN_POINTS, JAW
from lawdnet.inference import mouths as mouths_module
from lawdnet.inference import stream
from lawdnet.inference.engine import Engine, num_frames
from lawdnet.inference.template import network_crop
from lawdnet.landmarks.openface import OpenFace, write_csv
from lawdnet.types import Float32, Rejected, RejectReason, UInt8
from lawdnet.video import decode, probe, write_video
from tests.support.listening import MOUTH_PX, save_listening

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
SIZE = (160, 144)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("run")
    save_listening(root / "frame_64" / "epoch_0001")
    return root


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine(run, device="cpu", batch_size=4)


def face_points(frames: int) -> Float32:
    """A face that drifts, and opens its mouth wider and wider."""
    points = np.random.default_rng(0).uniform(-5, 5, (68, 2)) + np.array([72, 80])
    around = np.linspace(np.pi, 0, 17)
    points[JAW] = np.stack([72 + 40 * np.cos(around), 60 + 66 * np.sin(around)], 1)
    points[ALIGN_POINTS] = template_px(80) + np.array([32, 26])
    points = np.repeat(points[None], frames, 0)
    points[:, 61:64, 1] = 95
    points[:, [67, 66, 65], 1] = 95 + np.arange(frames)[:, None] * 0.2
    drift = np.stack([np.sin(np.arange(frames) / 5), np.cos(np.arange(frames) / 7)], 1) * 4
    return (points + drift[:, None]).astype(np.float32)


def pictures(frames: int, height: int, width: int) -> list[UInt8]:
    """Smooth, and different in every frame."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / 9 + t / 3) + 60 * np.cos(y / 11 - t / 4) for t in range(frames)]
    return [np.stack([w, w[::-1], 255 - w], -1).clip(0, 255).astype(np.uint8) for w in waves]


def make_template(folder: Path, frames: int, *, missing: tuple[int, ...] = (), size: tuple[int, int] = SIZE) -> Path:
    path = folder / "template.mp4"
    write_video(path, iter(pictures(frames, *size)), crf=8)
    points = face_points(frames)
    points[list(missing)] = np.nan
    write_csv(path.with_suffix(".csv"), points, 25)
    return path


def sound(frames: float) -> Float32:
    rng = np.random.default_rng(1)
    return (0.3 * rng.standard_normal(round(frames * 640))).clip(-1, 1).astype(np.float32)


def picture_through(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the network answer with the true crops."""
    mouths = engine._mouths
    monkeypatch.setattr(mouths, "complete", lambda template, ticks, crops, *_: [c[mouths.box.slices] for c in crops])


def test_a_template_has_five_references_from_shut_to_open_and_from_all_over(engine: Engine, tmp_path: Path) -> None:
    template = engine.prepare(make_template(tmp_path, 60), OpenFace())
    assert template.reference_5HW3.shape == (5, *stage_size(MOUTH_PX), 3)
    assert template.usable_T.tolist() == [True] * 60
    assert template.reference_ticks == tuple(sorted(template.reference_ticks))  # the mouth opens with time
    assert len({tick // 12 for tick in template.reference_ticks}) == 5
    again = engine.prepare(template.path, OpenFace())
    assert again.reference_ticks == template.reference_ticks


def test_references_are_found_however_few_and_far_the_usable_frames(engine: Engine, tmp_path: Path) -> None:
    shown = (3, 40, 41, 120, 180)
    path = make_template(tmp_path, 200, missing=tuple(set(range(200)) - set(shown)))
    template = engine.prepare(path, OpenFace())
    assert sorted(template.reference_ticks) == list(shown)


def test_too_few_faces_are_one_clear_line(engine: Engine, tmp_path: Path) -> None:
    path = make_template(tmp_path, 40, missing=tuple(range(4, 40)))
    with pytest.raises(Rejected, match=r"4 frames show a face, 5 are needed") as caught:
        engine.prepare(path, OpenFace())
    assert caught.value.reason is RejectReason.NO_FACE


def test_landmarks_of_another_file_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = make_template(tmp_path, 20)
    write_csv(path.with_suffix(".csv"), face_points(30), 25)
    with pytest.raises(Rejected, match="30 landmark rows for 20 frames"):
        engine.prepare(path, OpenFace())


def test_a_last_row_that_openface_lost_is_a_frame_without_a_face(engine: Engine, tmp_path: Path) -> None:
    path = make_template(tmp_path, 20)
    write_csv(path.with_suffix(".csv"), face_points(19), 25)
    assert engine.prepare(path, OpenFace()).usable_T.tolist() == [True] * 19 + [False]


def test_short_gaps_are_bridged_and_long_ones_pass_through_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    missing = (*range(10, 15), *range(20, 28))
    template = engine.prepare(make_template(tmp_path, 40, missing=missing), OpenFace())
    assert np.flatnonzero(~template.usable_T).tolist() == list(range(20, 28))
    made = list(engine.frames(template, sound(40)))
    true = [frame for _, frame in decode(template.path)]
    same = [np.array_equal(a, b) for a, b in zip(made, true, strict=True)]
    assert np.flatnonzero(same).tolist() == list(range(20, 28))


@pytest.mark.parametrize("frames", [0.01, 1, 5, 8, 9.5, 12])
def test_the_audio_decides_the_length(engine: Engine, tmp_path: Path, frames: float) -> None:
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    wave = sound(frames)
    assert len(list(engine.frames(template, wave))) == num_frames(wave) == int(np.ceil(frames))


def test_a_frame_depends_on_its_own_audio_whatever_the_batch(run: Path, tmp_path: Path) -> None:
    template = Engine(run, device="cpu").prepare(make_template(tmp_path, 12), OpenFace())
    one, many = (list(Engine(run, device="cpu", batch_size=n).frames(template, sound(11))) for n in (1, 8))
    silent = list(Engine(run, device="cpu").frames(template, 0 * sound(11)))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(one, many, strict=True))
    assert all(np.abs(a.astype(int) - b).max() > 1 for a, b in zip(one, silent, strict=True))


def test_a_longer_audio_plays_the_template_back_and_forth(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 4)
    picture_through(engine, monkeypatch)
    template = engine.prepare(make_template(tmp_path, 11), OpenFace())
    true = [frame for _, frame in decode(template.path)]
    made = list(engine.frames(template, sound(34)))
    order = list(itertools.islice(stream.ping_pong(11), 34))
    assert all(psnr(frame, true[tick]) > 40 for frame, tick in zip(made, order, strict=True))
    assert psnr(true[0], true[1]) < 35  # so a wrong frame would show


def shift_between(first: UInt8, second: UInt8) -> Float32:
    """(x, y) px by which the second frame's content lies further on, by least squares."""
    a, b = first[..., 0].astype(float), second[..., 0].astype(float)
    slope_y, slope_x = np.gradient((a + b) / 2)
    slopes = -np.stack([slope_x.ravel(), slope_y.ravel()], 1)
    found: Float32 = np.linalg.lstsq(slopes, (b - a).ravel(), rcond=None)[0]
    return found


def test_the_face_goes_back_to_where_it_came_from(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_through(engine, monkeypatch)
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    for made, (tick, true) in zip(engine.frames(template, sound(12)), decode(template.path), strict=True):
        assert psnr(made, true) > 40
        mouth = slice(85, 110), slice(50, 94)
        assert not np.array_equal(made[mouth], true[mouth])
        assert np.abs(shift_between(true[mouth], made[mouth])).max() < 0.1
        matrix = scale_matrix(template.matrix_T33[tick], engine.crop_width, stage_size(MOUTH_PX)[1])
        far = np.ones(true.shape[:2], bool)
        y, x = np.mgrid[: true.shape[0], : true.shape[1]]
        place = np.stack([x, y], -1) @ matrix[:2, :2].T + matrix[:2, 2]
        opaque_y, opaque_x = np.nonzero(paste_alpha(*stage_size(MOUTH_PX)) > 0)
        low, high = (opaque_x.min() - 2, opaque_y.min() - 2), (opaque_x.max() + 2, opaque_y.max() + 2)
        far &= (place < low).any(-1) | (place > high).any(-1)
        assert np.array_equal(made[far], true[far])


def test_what_the_network_draws_arrives_in_the_frame(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = engine._mouths.box.slices
    red = np.full((rows.stop - rows.start, columns.stop - columns.start, 3), (255, 0, 0), np.uint8)
    monkeypatch.setattr(engine._mouths, "complete", lambda template, ticks, crops, *_: [red] * len(crops))
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    mouth_x, mouth_y = face_points(12)[0, 48:68].mean(0).round().astype(int)
    made = next(engine.frames(template, sound(3)))
    assert made[mouth_y, mouth_x].tolist() == [255, 0, 0]


def test_render_writes_the_whole_audio_and_counts(engine: Engine, tmp_path: Path) -> None:
    path = make_template(tmp_path, 30, missing=tuple(range(10, 20)), size=(161, 145))
    write_wav(tmp_path / "speech.wav", sound(20.3))
    seen: list[tuple[int, int]] = []
    summary = engine.render(
        engine.prepare(path, OpenFace()), tmp_path / "speech.wav", tmp_path / "out.mp4", lambda *n: seen.append(n)
    )
    made = probe(tmp_path / "out.mp4")
    assert (summary.frames, summary.passed_through, made.num_frames) == (21, 10, 21)
    assert (made.height, made.width, made.sample_rate) == (162, 146, 48000)  # H.264 needs even sizes
    assert seen == [(n, 21) for n in range(1, 22)]
    assert summary.fps == pytest.approx(21 / summary.seconds)


def test_render_does_not_write_over_its_inputs(engine: Engine, tmp_path: Path) -> None:
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    before = template.path.read_bytes()
    with pytest.raises(ValueError, match="is an input"):
        engine.render(template, sound(3), template.path)
    assert template.path.read_bytes() == before


def test_a_failing_render_leaves_nothing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())

    def fail(*_: object) -> UInt8:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._mouths, "complete", fail)
    (tmp_path / "new").mkdir()
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.render(template, sound(6), tmp_path / "new" / "out.mp4")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.zeros((2, 640), np.float32)])
def test_no_audio_is_an_error(engine: Engine, tmp_path: Path, wave: Float32) -> None:
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    with pytest.raises(ValueError, match="the audio has shape"):
        engine.frames(template, wave)


def test_a_template_of_another_network_is_refused(engine: Engine, tmp_path: Path) -> None:
    other = Engine(save_listening(tmp_path / "epoch_0001", mouth_px=96), device="cpu")
    template = other.prepare(make_template(tmp_path, 12), OpenFace())
    with pytest.raises(ValueError, match="another network"):
        engine.frames(template, sound(3))


@pytest.mark.parametrize("name", ["silent_portrait_25fps", "talk_garden_25fps"])
@pytest.mark.parametrize("mouth_px", [32, 64, 256])
def test_the_network_sees_what_it_saw_in_training(name: str, mouth_px: int) -> None:
    path = SHARED / "media" / f"{name}.mp4"
    if not path.exists():
        pytest.skip("shared media are absent")
    index, frame = next(decode(path))
    matrix = fit_all(OpenFace().detect(path).points_T68x2[[index]], 320)[0]
    height, width = stage_size(mouth_px)
    stored = encode_jpeg(crop_face(frame, matrix, 320), 95)
    trained = decode_jpeg(stored, height, width, stored_width=320)
    ours = network_crop(frame, matrix, 320, mouth_px)
    moved = [psnr(trained[2:-2, 2:-2], np.roll(ours, shift, axis)[2:-2, 2:-2]) for shift in (-1, 1) for axis in (0, 1)]
    assert psnr(trained, ours) > 45
    assert max(moved) < psnr(trained, ours) - 9


def test_a_part_of_the_frames_is_that_part_of_all_frames(engine: Engine, tmp_path: Path) -> None:
    """No seam at any border of batches, also where the template has turned round several times."""
    template = engine.prepare(make_template(tmp_path, 11), OpenFace())
    wave = sound(50)
    whole = list(engine.frames(template, wave))
    for start, stop in ((0, 8), (8, 16), (16, 50), (24, None), (48, 60)):
        part = list(engine.frames(template, wave, start=start, stop=stop))
        assert len(part) == len(whole[start:stop])
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:stop], strict=True))
    for start, stop in ((5, 23), (20, 21)):  # other batches, of which one is of one frame: rounding may differ
        other = list(engine.frames(template, wave, start=start, stop=stop))
        assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(other, whole[start:stop], strict=True))


def test_a_second_render_of_a_template_equals_the_first(run: Path, tmp_path: Path) -> None:
    """What is remembered of a template changes nothing."""
    engine = Engine(run, device="cpu", batch_size=4)
    template = engine.prepare(make_template(tmp_path, 12), OpenFace())
    first, second = (list(engine.frames(template, sound(12))) for _ in range(2))
    fresh = list(Engine(run, device="cpu", batch_size=4).frames(template, sound(12)))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(first, second, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, fresh, strict=True))


def test_templates_do_not_mix_and_are_forgotten(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = engine.prepare(make_template(tmp_path / "a", 12), OpenFace())
    two = dataclasses.replace(
        engine.prepare(make_template(tmp_path / "b", 12), OpenFace()), reference_5HW3=255 - one.reference_5HW3
    )
    known = len(engine._mouths._memories)
    before = list(engine.frames(one, sound(4)))
    assert any(not np.array_equal(a, b) for a, b in zip(before, engine.frames(two, sound(4)), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, engine.frames(one, sound(4)), strict=True))
    assert len(engine._mouths._memories) == known + 2
    del one, two
    gc.collect()
    assert len(engine._mouths._memories) == known


def test_little_memory_is_enough(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = engine.prepare(make_template(tmp_path, 6), OpenFace())
    usual = list(engine.frames(template, sound(20), still_silence=True))
    monkeypatch.setattr(mouths_module, "MEMORY_BYTES", 10_000)
    poor = dataclasses.replace(template)
    made = list(engine.frames(poor, sound(20), still_silence=True))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(made, usual, strict=True))
    memory = engine._mouths._memories[poor]
    assert 0 <= memory.left < 10_000
    assert len(memory.features) < 6


def test_silence_shows_the_mouth_at_rest_once_per_frame_of_the_template(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = engine.prepare(make_template(tmp_path, 6), OpenFace())
    wave = sound(40)
    wave[8 * 640 :] = 0.0005 * np.sin(np.arange(32 * 640))  # faint hum
    generated: list[int] = []
    generate = engine._mouths._generate

    def counted(memory: Any, ticks: list[int], *rest: Any) -> list[UInt8]:
        generated.extend(ticks)
        return generate(memory, ticks, *rest)

    monkeypatch.setattr(engine._mouths, "_generate", counted)
    still = list(engine.frames(template, wave, still_silence=True))
    assert 16 <= len(generated) < 24  # ten that speak, six at rest, and what a batch repeats
    order = list(itertools.islice(stream.ping_pong(6), 40))
    assert all(np.array_equal(still[n], still[n + 10]) for n in range(14, 30))
    assert order[14:30] == order[24:40]
    usual = list(engine.frames(template, wave))
    assert all(np.array_equal(a, b) for a, b in zip(still[:8], usual[:8], strict=True))


def test_the_region_decides_what_changes(run: Path, tmp_path: Path) -> None:
    path = make_template(tmp_path, 12)
    true = next(frame for _, frame in decode(path))
    changed = {}
    for region in ("lower-face", "mouth"):
        engine = Engine(run, device="cpu", region=region)
        made = next(engine.frames(engine.prepare(path, OpenFace()), sound(2)))
        changed[region] = (made != true).any(-1)
    assert 0 < changed["mouth"].sum() < 0.6 * changed["lower-face"].sum()
    assert not (changed["mouth"] & ~changed["lower-face"]).any()
    with pytest.raises(ValueError, match="expected one of"):
        Engine(run, device="cpu", region="nose")


def test_the_frames_of_a_video_that_shows_some_twice_are_their_own(engine: Engine, tmp_path: Path) -> None:
    """A mouth is pasted into the frame itself, which must not show in the next one."""
    path = tmp_path / "slow.mp4"
    write_video(path, iter(pictures(10, *SIZE)), crf=8, fps=12.5)
    write_csv(path.with_suffix(".csv"), face_points(10), 12.5)
    template = engine.prepare(path, OpenFace())
    true = [frame.copy() for _, frame in decode(path)]
    shown = list(itertools.islice(stream.back_and_forth(path, len(true)), 2 * len(true)))
    for (tick, frame), _ in zip(shown, range(40), strict=False):
        assert np.array_equal(frame, true[tick])
        frame[:] = 0
    assert len(list(engine.frames(template, sound(20)))) == 20
