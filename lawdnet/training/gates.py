"""The metrics of a validation, and the gates that a stage must pass.

An image can be close to the truth although the mouth ignores the audio: most of a mouth square is skin, and a mouth
that is always half open is never far off. So a gate must not rest on such metrics alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lawdnet.conditions import Condition, parse_conditions


@dataclass(frozen=True)
class Metric:
    """One metric of a validation."""

    text: str
    """What it measures, for people."""
    is_higher_better: bool = True
    needs_audio: bool = True
    """Whether a generator that ignores the audio scores badly."""
    kind: str = "gan"
    """Kind of the stages that have it."""
    needs: str = ""
    """What is required to measure it, for people."""
    ideal: float | None = None
    """The value of a perfect generator, if more than that is as wrong as less."""

    def is_better(self, new: float, old: float) -> bool:
        """Whether one number beats another."""
        if self.ideal is not None:
            return abs(new - self.ideal) < abs(old - self.ideal)
        return new > old if self.is_higher_better else new < old


_DRAWN = "drawn heads, whose mouth can be measured in the image"
_LANDMARKS = "the network that finds landmarks (lawdnet weights face_landmarker)"
_LEVEL = f"mel features and {_LANDMARKS}"
_SPANS = (9, 25, 50)
"""Frames over which a choice between audio is made, as in `lawdnet.evaluation.choices`."""
_NETWORK = "a sync network (--sync)"

VALIDATION_METRICS = {
    "psnr": Metric("dB over the mouth square", needs_audio=False),
    "ssim": Metric("structural similarity of the mouth square", needs_audio=False),
    "pixel": Metric("mean absolute error over the mouth square, 0 … 1", is_higher_better=False, needs_audio=False),
    "opening_correlation": Metric("correlation of the lips' gap with the truth's, -1 … 1", needs=_LANDMARKS),
    "articulation": Metric(
        "movement of the lips' gap, as a share of the truth's", needs_audio=False, needs=_LANDMARKS, ideal=1.0
    ),
    "lmd": Metric(
        "distance of the mouth's landmarks from the truth's, in px of a 256 px crop",
        is_higher_better=False,
        needs_audio=False,
        needs=_LANDMARKS,
    ),
    "lmd_eye": Metric(
        "the same distance in eye distances", is_higher_better=False, needs_audio=False, needs=_LANDMARKS
    ),
    "silence_opening": Metric(
        "the lips' gap while nobody speaks, in eye distances", is_higher_better=False, needs_audio=False, needs=_LEVEL
    ),
    "landmark_jitter": Metric(
        "second difference of the mouth's landmarks, in px of a 256 px crop",
        is_higher_better=False,
        needs_audio=False,
        needs=_LANDMARKS,
    ),
    "landmarks_found": Metric("share of the frames in which a face was found", needs_audio=False, needs=_LANDMARKS),
    **{
        f"opening_level_{span}": Metric(
            f"share of {span}-frame mouths whose gap follows their own audio's level better than other audio's",
            needs=_LEVEL,
        )
        for span in _SPANS
    },
    "mouth_correlation": Metric("correlation of the mouth's opening with the truth's, -1 … 1", needs=_DRAWN),
    "silence": Metric(
        "the mouth's opening while nobody speaks, in half crop widths",
        is_higher_better=False,
        needs_audio=False,
        needs=f"mel features and {_DRAWN}",
    ),
    "sync_distance": Metric(
        "distance of mouth and audio under the sync network", is_higher_better=False, needs=_NETWORK
    ),
    "sync_confidence": Metric("how sure the sync network is of the offset", needs=_NETWORK),
    "sync_in_time": Metric("share of segments within one frame of offset 0", needs=_NETWORK),
    **{
        f"sync_accuracy_{span}": Metric(
            f"share of {span}-frame mouths that the sync network gives their own audio, not that of another moment",
            needs=f"{_NETWORK}, and segments longer than the span",
        )
        for span in _SPANS
    },
    **{
        f"sync_foreign_{span}": Metric(
            f"share of {span}-frame mouths that the sync network gives their own audio, not another person's",
            needs=f"{_NETWORK}, and several people",
        )
        for span in _SPANS
    },
    "accuracy": Metric("share of right choices between the true audio and another", kind="syncnet"),
    **{
        f"accuracy_{span}": Metric(f"the same with scores averaged over {span} frames", kind="syncnet")
        for span in _SPANS[1:]
    },
    **{
        f"foreign_{span}": Metric(
            f"share of right choices between own and another person's audio over {span} frames",
            kind="syncnet",
            needs="several people",
        )
        for span in _SPANS
    },
    **{
        f"floor_{span}": Metric(
            f"accuracy over {span} frames of the lips' gap and the audio's level alone, without a network",
            needs_audio=False,
            kind="syncnet",
            needs="mel features",
        )
        for span in _SPANS
    },
    "offset_within_one": Metric("share of segments found within one frame of offset 0", kind="syncnet"),
}
"""Every metric that a gate or the choice of a checkpoint may use; `truth_…` and `baseline_…` are for comparison."""
LANDMARK_METRICS = frozenset(name for name, metric in VALIDATION_METRICS.items() if _LANDMARKS in metric.needs)
"""Metrics that need the network that finds landmarks in generated frames."""


@dataclass(frozen=True)
class Gate:
    """Conditions that must all hold. `str` gives the text that parses to the same gate."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    @property
    def kind(self) -> str:
        """Kind of the stages that it applies to."""
        return VALIDATION_METRICS[self.conditions[0].name].kind


def parse_gate(text: str) -> Gate:
    """Parse a gate such as "mouth_correlation>=0.8" or "sync_in_time>0.7 and psnr>=20".

    Raises:
        ValueError: `text` is not a list of conditions, a name is unknown (the message lists the valid ones), a bound is
            on the wrong side, the metrics belong to different kinds of stages, or a generator that ignores the audio
            could pass.
    """
    gate = Gate(parse_conditions(text, "gate", "mouth_correlation>=0.8 and psnr>=20"))
    for condition in gate.conditions:
        _check_direction(condition, text)
    names = [condition.name for condition in gate.conditions]
    if len({VALIDATION_METRICS[name].kind for name in names}) > 1:
        raise ValueError(f"gate {text!r}: {' and '.join(names)} belong to different kinds of stages; write two gates")
    if not any(VALIDATION_METRICS[name].needs_audio for name in names):
        listeners = ", ".join(n for n, m in VALIDATION_METRICS.items() if m.needs_audio and m.kind == gate.kind)
        problem = "a generator that ignores the audio can pass this gate"
        raise ValueError(f"gate {text!r}: {problem}; add one of {listeners} with `and`")
    return gate


def _check_direction(condition: Condition, text: str) -> None:
    name = condition.name
    metric = find_metric(name)
    assert not isinstance(condition.value, str)
    is_least = metric.is_higher_better if metric.ideal is None else condition.value < metric.ideal
    good = (">=", ">") if is_least else ("<=", "<")
    if condition.is_absolute or condition.operator not in good:
        better = "higher" if is_least else "lower"
        raise ValueError(f"gate {text!r}: {better} is better; write {name}{good[0]}{condition.value}")


def find_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if name not in VALIDATION_METRICS:
        raise ValueError(f"unknown metric {name!r}: choose from {', '.join(VALIDATION_METRICS)}")
    return VALIDATION_METRICS[name]


def check_gates(gates: Sequence[Gate], metrics: Mapping[str, float], kind: str = "gan") -> list[str]:
    """Return a sentence for every condition that does not hold; the list is empty if all gates are passed.

    Args:
        gates: gates for another kind of stage are ignored.
        metrics: result of `lawdnet.evaluation.validation.metrics`; a condition on a missing metric fails.
        kind: kind of the stage, `gan` or `syncnet`.
    """
    failed = []
    for condition in (c for gate in gates if gate.kind == kind for c in gate.conditions):
        value = metrics.get(condition.name, math.nan)
        if math.isnan(value):
            needs = VALIDATION_METRICS[condition.name].needs
            failed.append(f"{condition}: not measured" + (f", it needs {needs}" if needs else ""))
        elif not condition.holds(value):
            failed.append(f"{condition}: it is {value:.4g}")
    return failed


def is_better(name: str, new: float, old: float | None) -> bool:
    """Whether `new` beats `old` in the metric's direction; NaN never does, and any number beats None or NaN.

    Raises:
        ValueError: unknown metric.
    """
    metric = find_metric(name)
    if math.isnan(new):
        return False
    return old is None or math.isnan(old) or metric.is_better(new, old)
