"""A sync network's choices between a mouth's own audio and other audio, with its scores averaged over a span.

Shape letters: F positions of a window of frames, P of a window of audio.
"""

from __future__ import annotations

from torch import Tensor

from lawdnet.evaluation.choices import Score, choice_sums
from lawdnet.evaluation.sync import WINDOW_FRAMES, SyncEncoder
from lawdnet.types import CLIP_FRAMES


def sync_choice_sums(
    prefix: str,
    encoder: SyncEncoder,
    faces: Tensor,
    audio: Tensor,
    foreign: Tensor | None,
    *,
    start: int,
    seed: tuple[int, ...],
) -> dict[str, float]:
    """Return the sums of `lawdnet.evaluation.choices.choice_sums`.

    Args:
        prefix: of the names of the sums.
        encoder: the network.
        faces: F embeddings of the mouth.
        audio: P embeddings of the whole segment's audio.
        foreign: embeddings of another person's audio.
        start: frame of the segment at which the mouth's first window begins.
        seed: of the choice of other audio.
    """
    return choice_sums(
        prefix,
        _score(encoder, faces, audio),
        None if foreign is None else _score(encoder, faces, foreign),
        mouths=len(faces) - (CLIP_FRAMES - WINDOW_FRAMES),
        audio=len(audio),
        start=start,
        others=0 if foreign is None else len(foreign),
        lost=CLIP_FRAMES - 1,
        seed=seed,
    )


def _score(encoder: SyncEncoder, faces: Tensor, audio: Tensor) -> Score:
    def score(mouth: int, first: int, length: int) -> float:
        shown = faces[mouth + encoder.lead : mouth + encoder.lead + length]
        return -float(encoder.distance(shown, audio[first : first + length]).mean())

    return score
