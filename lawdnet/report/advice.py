"""What to do next, out of what a run's logs show. Each rule is a function that says nothing where it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lawdnet.report.stage_log import SHARE, StageLog, numbers
from lawdnet.storage import Location
from lawdnet.training.gates import MEASURES

WAIT_SHARE = 0.05
"""Of the time, above which waiting for data is worth mending."""
LARGE_SHARE = 0.9
"""Of the gradient, above which a loss leaves nothing to the others."""
MIN_EPOCHS = 3
"""Validations it takes to speak of a trend."""
CLEAR_CHANGE = 0.01
"""Of the value, by which the last epoch must differ from others to be better or worse."""
LATE = 0.7
"""Of the epochs; a best one before that is worth a word."""
FOLLOWS = 0.5
"""Correlation of the mouth's opening with the truth's, below which a finished generator is worth a word."""
CHANCE = 0.6
"""Accuracy of a sync network's choices between two sounds below which it has learnt next to nothing."""

Best = Mapping[str, int]
"""Measure → its best epoch."""


def advise(run: Location, logs: Sequence[StageLog], best: Mapping[str, Best]) -> list[str]:
    """Sentences, the most pressing first.

    Args:
        best: stage → measure → its best epoch.
    """
    return [
        *_go_on(logs),
        *(text for log in logs for rule in RULES for text in rule(log, best.get(log.name, {}))),
        *_unvalidated(logs),
        *_use(run, logs),
    ]


def _go_on(logs: Sequence[StageLog]) -> Iterator[str]:
    for log in logs:
        seconds = numbers(log.of_kind("epoch"), "seconds")
        if log.state == "at work" and len(seconds) and log.epochs:
            left = seconds[-1] * (log.epochs - log.epochs_done) / 60
            text = f"about {left:.0f} min" if left >= 1 else "less than a minute"
            yield (f"{log.name} is at work and has done {log.epochs_done} of {log.epochs} epochs; at the pace of the "
                   f"last one it needs {text} more.")  # fmt: skip
        if log.state == "interrupted":
            yield (f"{log.name} was interrupted after {log.epochs_done} of {log.epochs} epochs: run the same `lawdnet "
                   "train` command again, it goes on from the newest checkpoint.")  # fmt: skip
        if log.state == "stopped":
            yield (f"{log.name} stopped by itself: {log.stopped.rstrip('.')}. A smaller learning rate "
                   f"(--set {log.name}.lr=…, in a new run) is the usual cure; then run the command again.")  # fmt: skip


def _data_wait(log: StageLog, best: Best) -> Iterator[str]:
    waits = numbers(log.of_kind("epoch"), "data_wait")[1:]  # the first epoch opens the files
    waits = waits[np.isfinite(waits)]
    if len(waits) and np.median(waits) > WAIT_SHARE:
        yield (f"{log.name} waited for data {np.median(waits):.0%} of its time: give it more CPUs for decoding, "
               "or a dataset with smaller crops.")  # fmt: skip


def _one_loss(log: StageLog, best: Best) -> Iterator[str]:
    steps = log.of_kind("step")
    names = {name for row in steps for name in row if name.startswith(SHARE)}
    late = {name: _late_mean(numbers(steps, name)) for name in names}
    total = sum(late.values())
    for name, share in sorted(late.items()):
        if len(names) > 1 and total > 0 and share > LARGE_SHARE * total:
            loss = name.removeprefix(SHARE)
            yield (f"{log.name}: {share / total:.0%} of the gradient comes from {loss}, so the other losses decide "
                   f"little; lower --set {log.name}.weights.{loss}.")  # fmt: skip


def _late_mean(values: np.ndarray) -> float:
    """Of the last quarter of what was measured."""
    finite = values[np.isfinite(values)]
    return float(finite[-max(1, len(finite) // 4) :].mean()) if len(finite) else 0.0


def _trend(log: StageLog, best: Best) -> Iterator[str]:
    """Speaks of the first measure that a mouth which ignores the sound would do badly in."""
    rows = log.of_kind("validation")
    telling = [name for name, epoch in best.items() if epoch and MEASURES[name].needs_sound]
    if len(rows) < MIN_EPOCHS or log.state == "at work" or not telling or _is_at_chance(log):
        return
    name, epoch = telling[0], best[telling[0]]
    values = numbers(rows, name)
    # being the best, it is nearest to the best before it
    gain = _change(values[-1], values[:-1])
    if epoch == log.epochs_done and gain > CLEAR_CHANGE:
        yield f"{log.name}: {name} was best after the last epoch and may still get better; more epochs may pay."
    elif (
        epoch <= LATE * log.epochs_done and _change(values[-1], values[numbers(rows, "epoch") == epoch]) > CLEAR_CHANGE
    ):
        yield (f"{log.name}: {name} was best after epoch {epoch} of {log.epochs_done} and got worse since; take that "
               "checkpoint where it was kept, or train for fewer epochs.")  # fmt: skip


def _change(last: float, others: np.ndarray) -> float:
    """How far the nearest of the others is from the last, relative to it."""
    return float(np.nanmin(np.abs(others - last), initial=np.inf)) / (abs(last) or 1.0)


def _is_at_chance(log: StageLog) -> bool:
    accuracy = numbers(log.of_kind("validation"), "accuracy")
    return bool(log.row.get("kind") == "syncnet" and len(accuracy) and accuracy[-1] < CHANCE)


def _at_chance(log: StageLog, best: Best) -> Iterator[str]:
    if _is_at_chance(log):
        right = numbers(log.of_kind("validation"), "accuracy")[-1]
        yield (f"{log.name} is near chance ({right:.0%} right on held-out videos): look at the offsets of the dataset "
               "with `lawdnet inspect DATASET --html FILE` before training on.")  # fmt: skip


def _deaf(log: StageLog, best: Best) -> Iterator[str]:
    correlation = numbers(log.of_kind("validation"), "mouth_correlation")
    if log.state == "finished" and len(correlation) and correlation[-1] < FOLLOWS:
        yield (f"{log.name}: the mouth hardly follows the sound (mouth_correlation {correlation[-1]:.2f}, 1 is "
               "perfect): more epochs, more people, or less weight on the picture's losses.")  # fmt: skip


RULES: tuple[Callable[[StageLog, Best], Iterator[str]], ...] = (
    _at_chance,
    _deaf,
    _one_loss,
    _data_wait,
    _trend,
)


def _unvalidated(logs: Sequence[StageLog]) -> Iterator[str]:
    names = [log.name for log in logs if log.of_kind("epoch") and not log.of_kind("validation")]
    if names:
        yield (f"Never validated: {', '.join(names)}. Losses of the training videos do not show whether the mouth of a "
               "new person follows the sound.")  # fmt: skip


def _use(run: Location, logs: Sequence[StageLog]) -> Iterator[str]:
    trained = [log for log in logs if log.row.get("kind", "gan") == "gan" and log.checkpoint]
    if all(log.state == "finished" for log in logs) and trained:
        yield (f"All stages are finished. `lawdnet infer {run} --video V --audio A --out O.mp4` uses "
               f"{trained[-1].name}; `lawdnet evaluate {run} DATASET` measures it on held-out videos.")  # fmt: skip
