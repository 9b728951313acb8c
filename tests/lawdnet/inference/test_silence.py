import numpy as np

from lawdnet.inference.silence import silent_frames


def test_only_frames_whose_neighbours_are_silent_too_are_silent() -> None:
    wave = np.zeros(20 * 640, np.float32)
    wave[10 * 640 : 11 * 640] = 0.1
    assert np.flatnonzero(~silent_frames(wave)).tolist() == [8, 9, 10, 11, 12]


def test_faint_noise_is_silent_and_a_whisper_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(3 * 640).astype(np.float32)
    assert silent_frames(0.001 * noise).all()
    assert not silent_frames(0.01 * noise).any()


def test_a_frame_that_has_begun_counts() -> None:
    assert len(silent_frames(np.zeros(641, np.float32))) == 2
