"""Write drawn talking heads as the files that a dataset is built from: videos with audio, and landmark CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lawdnet.landmarks.openface import write_csv
from lawdnet.synthetic.draw import TalkingHead
from lawdnet.synthetic.identity import make_identity, make_motion
from lawdnet.synthetic.speech import make_speech
from lawdnet.types import FPS
from lawdnet.video import VideoWriter

SIZE = (320, 256)
"""(height, width) in px."""
QUALITY = 16
"""H.264 constant rate factor; the result is hard to tell from the drawing."""
MIN_SIDE = 64


def write_talking_head(
    path: Path, *, identity: int, motion: int, speech: int, seconds: float, size: tuple[int, int] = SIZE
) -> None:
    """Draw a person who speaks: writes `path` (25 fps H.264 with 16 kHz audio) and an OpenFace `.csv` next to it.

    The three seeds are independent. The same identity and motion with other speech gives the same clip dubbed: the
    ground truth for a system that gets one of the two and must generate the other.

    Args:
        path: the video to write.
        identity: seed of the person, the room and the light.
        motion: seed of the head's movement, blinks and gaze.
        speech: seed of the words and the voice.
        seconds: length, rounded to whole frames.
        size: (height, width) in px, even and at least 64.

    Raises:
        ValueError: `seconds` or `size` is too small, or `size` is odd.
    """
    height, width = size
    if min(size) < MIN_SIDE or height % 2 or width % 2:
        raise ValueError(f"size: {height}×{width}; both sides must be even and at least {MIN_SIDE} px")
    voice = make_speech(seconds, speech)
    head = TalkingHead(make_identity(identity), size)
    poses = make_motion(motion, len(voice.opening_T))
    points = []
    with VideoWriter(path, height=height, width=width, audio=voice.audio_S, crf=QUALITY) as writer:
        for pose, opening, spread in zip(poses, voice.opening_T, voice.spread_T, strict=True):
            frame, points_68x2 = head.draw(pose, float(opening), float(spread))
            writer.write(frame)
            points.append(points_68x2)
    write_csv(Path(path).with_suffix(".csv"), np.stack(points), FPS)


def write_corpus(out: Path, *, videos: int, seconds: float, seed: int) -> list[Path]:
    """Write drawn_000.mp4 … and their CSV files into `out`, each with another person who moves and speaks differently.

    Returns:
        The paths of the videos, in order.

    Raises:
        ValueError: `videos` is not positive, or `out` is not empty.
    """
    if videos < 1:
        raise ValueError(f"videos: {videos}, must be at least 1")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: already contains files; choose an empty or new folder")
    return [write_member(out, index, seconds=seconds, seed=seed) for index in range(videos)]


def write_member(out: Path, index: int, *, seconds: float, seed: int) -> Path:
    """Write one video of a corpus, which depends only on these arguments, and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"drawn_{index:03d}.mp4"
    identity, motion, speech = np.random.SeedSequence([seed, index]).generate_state(3).tolist()
    write_talking_head(path, identity=identity, motion=motion, speech=speech, seconds=seconds)
    return path
