"""lawdnet.inference.live: what is pushed is spoken on the clock, however it is cut, and no lag grows without bound."""

from __future__ import annotations

import itertools
import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from lawdnet.audio import streaming
from lawdnet.inference.engine import Engine
from lawdnet.inference.listening import Listener
from lawdnet.inference.live import LiveFrame, LiveSession
from lawdnet.inference.resting import Resting
from lawdnet.inference.stream import ping_pong
from lawdnet.inference.template import Template
from lawdnet.types import Float32
from lawdnet.video import decode
from tests.support.live_heads import TICKS, FakeClock, make_engine, make_template, noise


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("head"), engine)


def take(session: LiveSession, count: int) -> list[LiveFrame]:
    frames = session.frames()
    taken = list(itertools.islice(frames, count))
    frames.close()  # type: ignore[attr-defined]
    return taken


def make(engine: Engine, template: Template, **options: Any) -> LiveSession:
    return LiveSession(engine, template, clock=FakeClock(), **options)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_give_the_frames_of_the_whole(engine: Engine, template: Template, seed: int) -> None:
    audio = noise(30.4)
    session = make(engine, template)
    rng = np.random.default_rng(seed)
    for piece in np.split(audio, np.sort(rng.integers(0, len(audio), 15))):
        session.push(piece)
    session.end()
    made = take(session, 31)
    for frame, whole in zip(made, engine.frames(template, audio), strict=True):
        assert frame.image_HW3 is not None
        assert np.abs(frame.image_HW3.astype(int) - whole).max() <= 1
    heard = np.concatenate([frame.audio for frame in made])
    np.testing.assert_array_equal(heard[: len(audio)], audio)
    assert [frame.position for frame in made] == [640 * number for number in range(31)]


def test_pieces_that_come_while_it_speaks_give_the_same(engine: Engine, template: Template) -> None:
    audio = noise(20)
    session = make(engine, template)
    made = []
    frames = session.frames()
    session.push(audio[: 4 * 640])  # the look-ahead, and one frame for the time between two pieces
    for start in range(4 * 640, len(audio), 640):
        made.append(next(frames))
        session.push(audio[start : start + 640])
    session.end()
    made += itertools.islice(frames, 20 - len(made))
    for frame, whole in zip(made, engine.frames(template, audio), strict=True):
        assert frame.image_HW3 is not None
        assert np.abs(frame.image_HW3.astype(int) - whole).max() <= 1


def test_audio_of_another_rate_stays_as_it_was_sent(engine: Engine, template: Template) -> None:
    audio = noise(10, rate=48_000)
    session = make(engine, template, rate=48_000)
    for piece in np.split(audio, 20):
        session.push(piece)
    session.end()
    made = take(session, 12)
    assert [frame.position for frame in made] == [1920 * n for n in range(10)] + [None, None]
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in made[:10]]), audio)


def test_the_look_ahead_is_what_it_waits_for(engine: Engine, template: Template) -> None:
    session = make(engine, template)
    assert session.look_ahead == pytest.approx(0.12)
    audio = noise(10)
    session.push(audio[: 3 * 640 - 1])
    assert session._listener.take() is None
    session.push(audio[3 * 640 - 1 : 3 * 640])
    assert session._listener.take() is not None


def position_of(frame: LiveFrame, template: Template) -> int:
    """The tick that a frame shows, by its background."""
    assert frame.image_HW3 is not None
    true = [image for _, image in decode(template.path)]
    return int(np.argmin([np.abs(image[:30].astype(int) - frame.image_HW3[:30]).mean() for image in true]))


def test_the_template_goes_on_between_idle_and_speech_and_back(engine: Engine, template: Template) -> None:
    session = make(engine, template)
    frames = session.frames()
    made = list(itertools.islice(frames, 7))
    session.push(noise(20))
    session.end()
    made += itertools.islice(frames, 9)
    assert session.interrupt() == pytest.approx(11 / 25)
    made += itertools.islice(frames, 20)
    assert [frame.position is None for frame in made] == [True] * 7 + [False] * 9 + [True] * 20
    assert [position_of(frame, template) for frame in made] == list(itertools.islice(ping_pong(TICKS), 36))
    assert [frame.number for frame in made] == list(range(36))


def test_after_an_interrupt_the_mouth_comes_to_rest_within_five_frames(engine: Engine, template: Template) -> None:
    def heard(self: Any, template: Template, shown: list[Any], audio_BC5: Float32) -> list[Any]:
        windows.append(audio_BC5[0])
        return [shown[0][1]]

    windows: list[Float32] = []
    session = make(engine, template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine), "draw", heard)
        frames = session.frames()
        session.push(noise(20))
        for _ in range(5):
            next(frames)
        session.interrupt()
        for _ in range(6):
            next(frames)
    silent = [int((window == -1).all(0).sum()) for window in windows[1:]]  # the first is drawn before the clock runs
    assert silent == [0] * 5 + [1, 2, 3, 4, 5, 5]
    np.testing.assert_array_equal(windows[6][:, :4], windows[5][:, 1:])


def test_an_idle_template_is_shown_as_it_is(engine: Engine, template: Template) -> None:
    made = take(make(engine, template, idle="template"), 5)
    for frame, (_, true) in zip(made, decode(template.path), strict=False):
        np.testing.assert_array_equal(frame.image_HW3, true)


def test_the_mouth_at_rest_is_drawn_once_per_tick(
    engine: Engine, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = engine.draw
    monkeypatch.setattr(engine, "draw", lambda *given: drawn.append(given) or draw(*given))
    made = take(make(engine, template), 3 * TICKS)
    assert len(drawn) == TICKS + 1
    silent = list(engine.frames(template, np.zeros(640 * 3 * TICKS, np.float32)))
    for frame, whole in zip(made, silent, strict=True):
        assert frame.image_HW3 is not None
        assert np.abs(frame.image_HW3.astype(int) - whole).max() <= 1


def test_resting_mouths_are_bounded() -> None:
    resting = Resting(max_bytes=3 * 4 * 5)
    frame = np.zeros((20, 30, 3), np.uint8)
    drawn = frame.copy()
    drawn[3:7, 10:15] = 9
    resting.keep(0, frame, drawn)
    resting.keep(1, frame, drawn)
    resting.keep(2, frame, frame)
    np.testing.assert_array_equal(resting.recall(0, frame), drawn)
    assert resting.recall(1, frame) is None
    np.testing.assert_array_equal(resting.recall(2, frame), frame)


def test_a_pause_ends_an_utterance(engine: Engine, template: Template) -> None:
    session = make(engine, template, pause=0.6)
    session.push(noise(10))
    made = take(session, 20)
    spoken = [frame.number for frame in made if frame.position is not None]
    assert spoken == [*range(8), 15, 16]  # the last two lack their look-ahead until the pause says that none comes
    assert session.summary().latency_p95 == pytest.approx(0.62, abs=0.03)


def test_a_slow_receiver_gets_all_audio_and_fewer_images(engine: Engine, template: Template) -> None:
    session = make(engine, template)
    audio = noise(50)
    session.push(audio)
    session.end()
    session.clock.delay = 0.1  # type: ignore[attr-defined]
    made = take(session, 50)
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in made]), audio)
    summary = session.summary()
    assert summary.skipped_images == sum(frame.image_HW3 is None for frame in made) > 10
    assert summary.spoken == 50


def test_a_slow_receiver_of_idle_frames_is_never_behind(engine: Engine, template: Template) -> None:
    session = make(engine, template)
    session.clock.delay = 0.1  # type: ignore[attr-defined]
    made = take(session, 40)
    elapsed = session.clock.now()
    assert session.summary().dropped_idle == pytest.approx(25 * elapsed - 40, abs=3)
    assert all(frame.image_HW3 is not None for frame in made)


def test_after_a_stall_speech_goes_on_where_it_was(engine: Engine, template: Template) -> None:
    session = make(engine, template)
    session.push(noise(40))
    session.end()
    frames = session.frames()
    next(frames)
    session.clock.time += 30  # type: ignore[attr-defined]
    made = list(itertools.islice(frames, 39))
    assert [frame.position for frame in made] == [640 * n for n in range(1, 40)]
    assert session.summary().stalls == 1
    assert session.summary().skipped_images == 0


def test_a_microphone_does_not_lag(engine: Engine, template: Template) -> None:
    session = make(engine, template, max_lag=0.4)
    session.push(noise(50))
    made = take(session, 5)
    assert made[0].position is not None
    assert made[0].position == 38 * 640  # ten of the 48 frames that have their look-ahead are left
    assert session.summary().dropped_seconds == pytest.approx(38 / 25)


def test_audio_that_waits_is_bounded_and_an_interrupt_makes_room(engine: Engine, template: Template) -> None:
    session = make(engine, template, max_seconds=2)
    session.push(noise(45))
    with pytest.raises(ValueError, match="more than 2 s of audio would wait"):
        session.push(noise(6))
    assert session.queued == pytest.approx(45 / 25)
    assert session.interrupt() == pytest.approx(45 / 25)
    session.push(noise(45))
    assert take(session, 1)[0].position == 45 * 640
    with pytest.raises(ValueError, match="finite mono"):
        session.push(np.array([0, np.nan], np.float32))


@pytest.mark.parametrize("rate", [0, 7999, 16_001, 96_000])
def test_rates_that_are_not_supported_are_refused(engine: Engine, template: Template, rate: int) -> None:
    with pytest.raises(ValueError, match=f"rate: {rate} Hz"):
        make(engine, template, rate=rate)


def test_latency_counts_from_the_last_sample_of_a_frame(engine: Engine) -> None:
    now = [0.0]
    listener = Listener(engine.extractor, rate=16_000, max_seconds=9, now=lambda: now[0])
    for tick in range(6):
        now[0] = float(tick)
        listener.push(noise(1, seed=tick))
    heard = [listener.take() for _ in range(5)]
    assert [h.heard_at for h in heard if h] == [0, 1, 2, 3]
    now[0] = 9
    listener.end()
    heard = [listener.take() for _ in range(3)]
    assert [h.heard_at for h in heard if h] == [4, 5]


def test_a_real_clock_is_kept_and_closing_ends_everything(engine: Engine, template: Template) -> None:
    before = threading.active_count()
    session = LiveSession(engine, template)
    made: list[float] = []

    def run() -> None:
        made.extend(time.perf_counter() for _ in session.frames())

    thread = threading.Thread(target=run)
    thread.start()
    audio = noise(25)
    for start in range(0, len(audio), 320):
        session.push(audio[start : start + 320])
        time.sleep(0.02)
    session.close()
    thread.join(5)
    assert not thread.is_alive()
    assert threading.active_count() == before
    summary = session.summary()
    assert made[-1] - made[0] == pytest.approx((summary.frames + summary.dropped_idle - 1) / 25, abs=0.1)
    assert summary.spoken >= 15
    assert 0 < summary.draw_p50 < summary.latency_p50 < 1
    assert math.isnan(LiveSession(engine, template).summary().latency_p50)


def test_a_microphone_is_heard_whatever_the_look_ahead(
    engine: Engine, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(streaming.REACHES, "mel", streaming.WINDOWED)
    session = make(engine, template, max_lag=0.5)
    frames = session.frames()
    for number in range(50):  # in real time: one frame comes and one leaves
        session.push(noise(1, seed=number))
        next(frames)
    assert session.look_ahead == pytest.approx(0.76)
    assert session.summary().spoken == pytest.approx(50 - 0.76 * 25, abs=5)
    assert session.summary().dropped_seconds == 0
