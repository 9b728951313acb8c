import time

import pytest
import torch

from lawdnet.training.speed import SpeedMeter, StepTime


def test_the_meter_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    steps: list[StepTime] = []
    meter = SpeedMeter(torch.device("cpu"), steps.append)
    for number in range(3):
        with meter.waiting():
            work(1.0)
        with meter.computing(samples=2):
            work(10.0)
        if number == 1:
            work(100.0)  # a validation
    assert ([step.waited for step in steps], [step.computed for step in steps]) == ([1.0] * 3, [10.0] * 3)
    values = meter.values()
    assert values["seconds"] == 133
    assert values["data_wait"] == pytest.approx(3 / 133)
    assert values["steps_per_second"] == pytest.approx(3 / 133)
    assert values["samples_per_second"] == pytest.approx(6 / 133)
