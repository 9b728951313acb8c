"""Gates between stages, and which of two values is better."""

from __future__ import annotations

import math

import pytest

from lawdnet.training.gates import VALIDATION_METRICS, check_gates, is_better, parse_gate
from lawdnet.training.options import RunOptions


def test_a_gate_reads_back_as_it_was_written() -> None:
    for text in ("mouth_correlation>=0.8", "sync_distance<1.2 and psnr>=20", "accuracy>0.95"):
        assert str(parse_gate(text)) == text
        assert str(parse_gate(f"  {text.replace('>=', ' >= ')} ")) == text


@pytest.mark.parametrize("text", ["psnr>=30", "ssim>0.9", "pixel<=0.02", "psnr>=30 and ssim>=0.9", "silence<=0.01"])
def test_what_a_deaf_generator_passes_is_no_gate(text: str) -> None:
    with pytest.raises(ValueError, match=r"ignores the audio can pass.*mouth_correlation"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mouth>=0.8", "unknown metric 'mouth': choose from psnr"),
        ("mouth_correlation", "write NAME OP VALUE"),
        ("mouth_correlation=0.8", "write NAME OP VALUE"),
        ("", "write NAME OP VALUE"),
        ("mouth_correlation>=high", "'high' is not a number"),
        ("mouth_correlation>=nan", "'nan' is not a number"),
        ("mouth_correlation<=0.8", r"higher is better; write mouth_correlation>=0\.8"),
        ("sync_distance>1", "lower is better; write sync_distance<=1"),
        ("abs(mouth_correlation)>=0.5", r"higher is better; write mouth_correlation>=0\.5"),
        ("mouth_correlation==0.8", r"higher is better; write mouth_correlation>=0\.8"),
        ("accuracy>0.9 and mouth_correlation>0.8", "write two gates"),
    ],
)
def test_wrong_gates_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_gate(text)


def test_failures_name_the_metric() -> None:
    gates = [parse_gate("mouth_correlation>=0.8 and psnr>=20"), parse_gate("sync_distance<=0.5")]
    assert check_gates(gates, {"mouth_correlation": 0.8, "psnr": 20.0, "sync_distance": 0.5}) == []
    failed = check_gates(gates, {"mouth_correlation": 0.79, "psnr": 25.0})
    assert failed[0] == "mouth_correlation>=0.8: it is 0.79"
    assert failed[1].startswith("sync_distance<=0.5: not measured, it needs a sync network")
    assert len(check_gates(gates, {"mouth_correlation": math.nan, "psnr": 1, "sync_distance": 0.1})) == 2
    assert check_gates([parse_gate("sync_distance<0.5")], {"sync_distance": 0.5}) != []


def test_gates_guard_their_own_kind_of_stage() -> None:
    gates = [parse_gate("accuracy>=0.9"), parse_gate("mouth_correlation>=0.8")]
    assert check_gates(gates, {"accuracy": 0.95}, "syncnet") == []
    assert check_gates(gates, {"mouth_correlation": 0.9}, "gan") == []


def test_better_depends_on_the_measure() -> None:
    assert is_better("psnr", 31, 30)
    assert not is_better("psnr", 30, 30)
    assert is_better("sync_distance", 0.1, 0.2)
    assert not is_better("sync_distance", 0.3, 0.2)
    assert is_better("mouth_correlation", -0.5, None)
    assert is_better("mouth_correlation", -0.5, math.nan)
    assert not is_better("mouth_correlation", math.nan, 0.1)
    assert not is_better("mouth_correlation", math.nan, None)
    with pytest.raises(ValueError, match="unknown metric 'loss'"):
        is_better("loss", 1, 2)


def test_measures_that_a_still_mouth_does_well_at_are_marked() -> None:
    still = {"psnr", "ssim", "pixel", "silence", "articulation", "lmd", "lmd_eye", "silence_opening"}
    still |= {"landmark_jitter", "landmarks_found", "floor_9", "floor_25", "floor_50"}
    assert {name for name, m in VALIDATION_METRICS.items() if not m.needs_audio} == still


def test_a_movement_that_is_too_large_is_as_wrong_as_one_that_is_too_small() -> None:
    assert is_better("articulation", 0.9, 1.2)
    assert not is_better("articulation", 1.2, 0.9)
    assert is_better("articulation", 1.1, 0.8)
    gate = parse_gate("opening_correlation>=0.5 and articulation>=0.7 and articulation<=1.3")
    held = {"opening_correlation": 0.6, "articulation": 0.9}
    assert check_gates([gate], held) == []
    assert check_gates([gate], held | {"articulation": 1.5}) == ["articulation<=1.3: it is 1.5"]
    with pytest.raises(ValueError, match=r"higher is better; write articulation>=0\.7"):
        parse_gate("opening_correlation>=0.5 and articulation<=0.7")


def test_a_gate_that_needs_landmarks_says_which_command_fetches_the_network() -> None:
    (failed,) = check_gates([parse_gate("opening_correlation>=0.5")], {"psnr": 20.0})
    assert "lawdnet weights face_landmarker" in failed
    assert RunOptions(gates=("opening_correlation>=0.5",)).needs_landmarks
    assert RunOptions(best="lmd").needs_landmarks
    assert not RunOptions(gates=("mouth_correlation>=0.5",), best="psnr").needs_landmarks
