import time

import pytest

from lawdnet.tasks import background


def test_it_runs_beside_the_block_and_once_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PERIOD_SECONDS", 0.01)
    calls: list[str] = []
    stage = "during"

    def fail() -> None:
        nonlocal stage
        with background.repeated(lambda: calls.append(stage)):
            time.sleep(0.2)
            stage = "after"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "during" in calls
    assert calls[-1] == "after"
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count
