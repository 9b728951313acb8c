"""Advice on what to do next, from a run's logs. Each rule is a function that yields nothing if it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lawdnet.report.stage_log import SHARE, StageLog, numbers
from lawdnet.storage import Location
from lawdnet.training.gates import VALIDATION_METRICS

WAIT_SHARE = 0.05
"""Share of the time above which waiting for data is worth mending."""
LARGE_SHARE = 0.9
"""Share of the gradient above which a loss leaves nothing to the others."""
MIN_EPOCHS = 3
"""Least number of validations for a trend."""
CLEAR_CHANGE = 0.01
"""Relative difference between epochs from which one counts as better or worse."""
LATE = 0.7
"""Share of the epochs; a best epoch before that is worth a remark."""
FOLLOWS = 0.5
"""Correlation of the mouth's opening with the truth's below which a finished generator is worth a remark."""
OPENINGS = ("opening_correlation", "mouth_correlation")
"""Metrics that are that correlation, the better one first."""
CHANCE = 0.6
"""Accuracy below which a sync network has learnt next to nothing."""

Best = Mapping[str, int]
"""Metric → its best epoch."""


def advise(run: Location, logs: Sequence[StageLog], best: Mapping[str, Best]) -> list[str]:
    """Return sentences, the most urgent first.

    Args:
        best: stage → metric → its best epoch.
    """
    return [
        *_progress(logs),
        *(text for log in logs for rule in RULES for text in rule(log, best.get(log.name, {}))),
        *_unvalidated(logs),
        *_use(run, logs),
    ]


def _progress(logs: Sequence[StageLog]) -> Iterator[str]:
    for log in logs:
        seconds = numbers(log.of_kind("epoch"), "seconds")
        if log.state == "at work" and len(seconds) and log.epochs:
            left = seconds[-1] * (log.epochs - log.epochs_done) / 60
            text = f"about {left:.0f} min" if left >= 1 else "less than a minute"
            done = f"{log.epochs_done} of {log.epochs} epochs are done"
            yield f"{log.name} is training, {done}; at the speed of the last one it needs {text} more."
        if log.state == "interrupted":
            done = f"was interrupted after {log.epochs_done} of {log.epochs} epochs"
            yield f"{log.name} {done}: run the same `lawdnet train` command again to resume from the newest checkpoint."
        if log.state == "stopped":
            cure = f"A smaller learning rate (--set {log.name}.lr=…, in a new run) usually helps"
            yield f"{log.name} stopped by itself: {log.stopped.rstrip('.')}. {cure}; then run the command again."


def _data_wait(log: StageLog, best: Best) -> Iterator[str]:
    waits = numbers(log.of_kind("epoch"), "data_wait")[1:]  # the first epoch opens the files
    waits = waits[np.isfinite(waits)]
    if len(waits) and np.median(waits) > WAIT_SHARE:
        cure = "give it more CPUs for decoding, or a dataset with smaller crops"
        yield f"{log.name} waited for data {np.median(waits):.0%} of its time: {cure}."


def _one_loss(log: StageLog, best: Best) -> Iterator[str]:
    steps = log.of_kind("step")
    names = {name for row in steps for name in row if name.startswith(SHARE)}
    late = {name: _late_mean(numbers(steps, name)) for name in names}
    total = sum(late.values())
    for name, share in sorted(late.items()):
        if len(names) > 1 and total > 0 and share > LARGE_SHARE * total:
            loss = name.removeprefix(SHARE)
            cause = f"{share / total:.0%} of the gradient comes from {loss}, so the other losses have little effect"
            yield f"{log.name}: {cause}; lower --set {log.name}.weights.{loss}."


def _late_mean(values: np.ndarray) -> float:
    """Return the mean over the last quarter of the finite values; 0 if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite[-max(1, len(finite) // 4) :].mean()) if len(finite) else 0.0


def _trend(log: StageLog, best: Best) -> Iterator[str]:
    """Describe the trend of the first metric in which a mouth that ignores the audio does badly."""
    rows = log.of_kind("validation")
    telling = [name for name, epoch in best.items() if epoch and VALIDATION_METRICS[name].needs_audio]
    if len(rows) < MIN_EPOCHS or log.state == "at work" or not telling or _is_at_chance(log):
        return
    name, epoch = telling[0], best[telling[0]]
    values = numbers(rows, name)
    # the last is the best, so the nearest of the others is the best before it
    gain = _change(values[-1], values[:-1])
    if epoch == log.epochs_done and gain > CLEAR_CHANGE:
        yield f"{log.name}: {name} was best after the last epoch and may still improve; more epochs may pay."
    elif (
        epoch <= LATE * log.epochs_done and _change(values[-1], values[numbers(rows, "epoch") == epoch]) > CLEAR_CHANGE
    ):
        past = f"{name} was best after epoch {epoch} of {log.epochs_done} and has become worse since"
        yield f"{log.name}: {past}; use that checkpoint if it was kept, or train for fewer epochs."


def _change(last: float, others: np.ndarray) -> float:
    """Return the distance between the last value and the nearest of the others, relative to the last."""
    return float(np.nanmin(np.abs(others - last), initial=np.inf)) / (abs(last) or 1.0)


def _is_at_chance(log: StageLog) -> bool:
    accuracy = numbers(log.of_kind("validation"), "accuracy")
    return bool(log.row.get("kind") == "syncnet" and len(accuracy) and accuracy[-1] < CHANCE)


def _at_chance(log: StageLog, best: Best) -> Iterator[str]:
    if _is_at_chance(log):
        right = numbers(log.of_kind("validation"), "accuracy")[-1]
        cure = "look at the offsets of the dataset with `lawdnet inspect DATASET --html FILE` before training on"
        yield f"{log.name} is near chance ({right:.0%} right on held-out videos): {cure}."


def _deaf(log: StageLog, best: Best) -> Iterator[str]:
    rows = log.of_kind("validation")[-1:]
    for name in OPENINGS:
        correlation = numbers(rows, name)
        if log.state == "finished" and np.isfinite(correlation).any():
            if correlation[-1] < FOLLOWS:
                found = f"{name} {correlation[-1]:.2f}, 1 is perfect"
                cure = "more epochs, more people, or smaller weights of the image losses may help"
                yield f"{log.name}: the mouth hardly follows the audio ({found}): {cure}."
            return


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
        why = "Losses on the training videos do not show whether the mouth of a new person follows the audio"
        yield f"Never validated: {', '.join(names)}. {why}."


def _use(run: Location, logs: Sequence[StageLog]) -> Iterator[str]:
    trained = [log for log in logs if log.row.get("kind", "gan") == "gan" and log.checkpoint]
    if all(log.state == "finished" for log in logs) and trained:
        infer = f"`lawdnet infer {run} --video V --audio A --out O.mp4` uses {trained[-1].name}"
        evaluate = f"`lawdnet evaluate {run} DATASET` measures it on held-out videos"
        yield f"All stages are finished. {infer}; {evaluate}."
