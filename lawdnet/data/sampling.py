"""Training samples as pure functions of (seed, epoch, segment, number).

There is no state: the same numbers give the same samples on any machine, in any order, after any restart.

Shape letters: N frames of a sample (1 or 5), K references (5), R frames to hear (16), M frames of either
(N + R), H W crop, C feature dimension.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pyarrow.compute as pc

from lawdnet.audio.base import windows
from lawdnet.data.augment import Look, draw_look
from lawdnet.data.levels import frames_column, level_for
from lawdnet.data.lips import lip_points, lip_shapes
from lawdnet.data.references import diverse, looks, resting_start
from lawdnet.data.schema import FEATURES, from_rows
from lawdnet.data.segment_list import SegmentRef
from lawdnet.face.geometry import stage_size
from lawdnet.storage import locate, parquet_file
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES, Float32, Int32, UInt8

IMAGE_CACHE_BYTES = 128 << 20
"""Limit on the decoded frames that a group keeps: its samples show each stored frame several times."""
READS = 8
"""Segments that a process reads at the same time: an object store answers late, and many at once."""
HEARD_FRAMES = 16
"""Frames of a sample's segment whose audio and lips come with it: an image shows one moment, too few to learn from."""
REFERENCES = ("random", "diverse")
MIN_SHIFT = 5
"""Fewest frames between a clip and the wrong audio drawn for it: one or two still look in sync."""


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """What a stage needs in each sample."""

    mouth_px: int
    num_frames: int
    """1, or 5 for the middle frames of a clip."""
    batch_size: int
    samples_per_segment: int
    audio: str
    """Audio feature of the generator."""
    sync: str | None
    """Audio feature of the sync network; None if the stage uses none."""
    contrast: bool = False
    """For the sync network: each sample also has wrong audio from its segment (any, and of a mouth at rest), and has no
    references."""
    lips: bool = False
    """Whether each sample also has the audio and the shape of the lips of other frames, and the place of its own."""
    audio_dropout: float = 0.0
    """Share of the channels of `lip_audio` that are hidden, others for every frame."""
    augment: bool = False
    """Whether samples are mirrored and shown in other light; see `lawdnet.data.augment`."""
    references: str = "random"
    """`random` or `diverse`; see `lawdnet.data.references`."""
    windows: int = 1
    """Samples that follow each other from the same segment: a sync network tells apart the moments of one recording."""
    mix_segments: int = 64
    """Segments of a group: their samples are mixed into the same batches. Each is read from storage once per epoch."""

    @property
    def columns(self) -> list[str]:
        """The columns of a segment that sampling reads beside its frames, which come from one level."""
        return [
            "segment_id",
            *(["landmarks"] if self.needs_faces or self.lips else []),
            *sorted({FEATURES + name for name in (self.audio, self.sync) if name}),
        ]

    @property
    def needs_faces(self) -> bool:
        """Whether the stored landmarks are needed to choose the frames of a sample."""
        return self.contrast or self.references == "diverse"


@dataclass(frozen=True)
class Work:
    """One group of segments in one epoch and the batches to draw from it: what is sent to a sampling worker."""

    epoch: int
    first_batch: int
    """Index within the rank's epoch of the first batch to draw."""
    skip: int
    """Number of the group's batches before it."""
    segments: tuple[SegmentRef, ...]


@dataclass(frozen=True)
class Draw:
    """The frames chosen for one sample."""

    clip_start: int
    """First frame of the clip."""
    frames: tuple[int, ...]
    """The N frames to generate."""
    references: tuple[tuple[int, ...], ...]
    """K reference frames for each of them."""
    other_start: int
    """First of nine rows of audio that does not belong to the clip."""
    quiet_start: int
    """First of nine rows of audio of a mouth at rest; `other_start` if the segment has none."""
    heard: tuple[int, ...] = ()
    """R frames from anywhere in the segment, whose audio and lips are wanted."""
    dropout: int = 0
    """Seed of what is hidden of the heard frames' audio."""
    look: Look | None = None
    """How it is changed; None leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class Faces:
    """What is known of a segment's frames without decoding them."""

    look_TL: Float32
    """See `looks`; column 0 is the gap between the lips."""
    bytes_T: Int32
    """Sizes of the stored JPEGs."""


def batches_per_group(segments: int, spec: SampleSpec) -> int:
    """Number of batches of a group; the last one is filled up from the same segments."""
    return -(-segments * spec.samples_per_segment // spec.batch_size)


def rank_order(segments: int, *, seed: int, epoch: int, rank: int, world: int) -> Int32:
    """This rank's segments, by number, in this epoch's order; every rank gets equally many.

    If the number of segments does not divide by `world`, the first ones of the order are used twice, so that none is
    left out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(segments)
    share = -(-segments // world)
    return order[np.arange(rank, share * world, world) % segments].astype(np.int32)


def batches_per_epoch(num_segments: int, world: int, spec: SampleSpec) -> int:
    """Number of batches of every rank in an epoch."""
    share = -(-num_segments // world)
    full, rest = divmod(share, spec.mix_segments)
    return full * batches_per_group(spec.mix_segments, spec) + (batches_per_group(rest, spec) if rest else 0)


def plan_epoch(
    segments: Sequence[SegmentRef],
    spec: SampleSpec,
    *,
    seed: int,
    epoch: int,
    rank: int,
    world: int,
    start: int = 0,
) -> Iterator[Work]:
    """Yield the groups of one rank in one epoch, from batch `start` on."""
    mine = rank_order(len(segments), seed=seed, epoch=epoch, rank=rank, world=world)
    index = 0
    for begin in range(0, len(mine), spec.mix_segments):
        group = mine[begin : begin + spec.mix_segments]
        size = batches_per_group(len(group), spec)
        if index + size > start:
            skip = max(0, start - index)
            yield Work(epoch, index + skip, skip, tuple(segments[int(number)] for number in group))
        index += size


def draw(rng: np.random.Generator, num_frames: int, spec: SampleSpec, faces: Faces | None = None) -> Draw:
    """Choose the frames of one sample from a segment of `num_frames` frames.

    The references of each frame come from five different clips other than its own (LawDNet 2024).

    Args:
        faces: required if `spec.needs_faces`.
    """
    clips = num_frames // CLIP_FRAMES
    clip = int(rng.integers(clips))
    start = clip * CLIP_FRAMES
    if spec.contrast:  # there are no references to keep apart from the clip, so it may begin anywhere
        start = int(rng.integers(num_frames - CLIP_FRAMES + 1))
    middle = (CLIP_FRAMES - 5) // 2
    frames = (
        range(start + middle, start + middle + 5) if spec.num_frames == 5 else [start + int(rng.integers(CLIP_FRAMES))]
    )
    if spec.references == "diverse" and faces and not spec.contrast:
        references = tuple(diverse(rng, clip, faces.look_TL, faces.bytes_T) for _ in frames)
    else:
        references = tuple(_random_references(rng, clip, clips) for _ in frames)
    starts = np.arange(num_frames - CLIP_FRAMES + 1, dtype=np.int32)
    starts = starts[np.abs(starts - start) >= MIN_SHIFT]
    other = int(rng.choice(starts))
    resting = resting_start(faces.look_TL[:, 0], start, starts) if faces and spec.contrast else None
    heard = rng.integers(num_frames, size=HEARD_FRAMES).tolist() if spec.lips else ()
    dropout = int(rng.integers(1 << 32)) if spec.audio_dropout else 0
    look = draw_look(rng) if spec.augment else None
    quiet = other if resting is None else resting
    return Draw(start, tuple(frames), references, other, quiet, tuple(heard), dropout, look)


def _random_references(rng: np.random.Generator, clip: int, clips: int) -> tuple[int, ...]:
    others = np.delete(np.arange(clips), clip)
    return tuple(
        int(c) * CLIP_FRAMES + int(rng.integers(CLIP_FRAMES)) for c in rng.choice(others, NUM_REFERENCES, False)
    )


def decode_jpeg(data: bytes, height: int, width: int, *, stored_width: int) -> UInt8:
    """Decode a stored crop to RGB of height × width, at half, quarter or eighth size if that is enough."""
    flags = cv2.IMREAD_COLOR
    for reduction, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    ):
        if stored_width // reduction >= width:
            flags = flag
            break
    image_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert image_HW3 is not None
    if image_HW3.shape[:2] != (height, width):
        shrinks = image_HW3.shape[1] > width
        image_HW3 = cv2.resize(
            image_HW3, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    return cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class Loaded:
    """A segment in memory."""

    ref: SegmentRef
    image: Callable[[int], UInt8]
    """Frame number → H×W×3; cached, so it must not be written to."""
    audio_TC5: Float32
    sync_TC: Float32 | None
    faces: Faces | None
    lips: Lips | None


@dataclass(frozen=True, kw_only=True)
class Lips:
    """See `lawdnet.data.lips`."""

    shapes_T40: Float32
    points_T40: Float32


def load_group(work: Work, spec: SampleSpec, *, stored_width: int, part: int = 0, parts: int = 1) -> dict[int, Loaded]:
    """Read the segments of a group at the same time; `part` of `parts` has every `parts`-th one. Nothing is decoded.

    Raises:
        ValueError: a segment cannot be read; the message names its file.
    """
    cache_bytes = IMAGE_CACHE_BYTES // len(work.segments)
    places = range(part, len(work.segments), parts)
    with ThreadPoolExecutor(READS) as threads:
        read = threads.map(lambda place: _load(work.segments[place], spec, stored_width, cache_bytes), places)
        return dict(zip(places, read, strict=True))


def _load(ref: SegmentRef, spec: SampleSpec, stored_width: int, cache_bytes: int) -> Loaded:
    height, width = stage_size(spec.mouth_px)
    with _named(ref), parquet_file(locate(ref.path)) as file:
        level = level_for(width, stored_width, file.schema_arrow.names)
        table = file.read_row_group(ref.row_group, columns=[frames_column(level), *spec.columns])
    sync = from_rows(table[FEATURES + spec.sync]) if spec.sync else None
    jpegs, faces, lips = table[frames_column(level)][0].values, None, None
    if "landmarks" in spec.columns:
        points_T68x2 = from_rows(table["landmarks"]).reshape(ref.num_frames, -1, 2)
        faces = Faces(look_TL=looks(points_T68x2), bytes_T=pc.binary_length(jpegs).to_numpy())
        if spec.lips:
            lips = Lips(shapes_T40=lip_shapes(points_T68x2), points_T40=lip_points(points_T68x2, stored_width))

    @lru_cache(maxsize=cache_bytes // (3 * height * width))
    def image(frame: int) -> UInt8:
        return decode_jpeg(jpegs[frame].as_py(), height, width, stored_width=stored_width // level)

    audio_TC5 = np.ascontiguousarray(windows(from_rows(table[FEATURES + spec.audio])))
    return Loaded(ref, image, audio_TC5, sync, faces, lips)


@contextmanager
def _named(ref: SegmentRef) -> Iterator[None]:
    """Name the file and the segment in whatever goes wrong with them."""
    try:
        yield
    except Exception as error:  # of the file system, of Parquet or of a JPEG
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(f"{ref.path}: segment {ref.segment_id} cannot be read ({reason})") from error


def make_sample(loaded: Loaded, chosen: Draw, spec: SampleSpec) -> dict[str, np.ndarray]:
    """Return the images and audio of one sample.

    Returns:
        source N×H×W×3 and reference N×K×H×W×3 uint8, and audio N×C×5; with lips also lip_audio R×C×5, lips R×40 and
        lip_points N×40 (see `lawdnet.data.lips`); with a sync feature also sync_audio C×9, for
        contrast other_audio and quiet_audio C×9, `origin` 3×2 (a number of the segment and the first row of sync_audio,
        other_audio and quiet_audio), and no reference.
    """
    frames, heard = list(chosen.frames), list(chosen.heard)
    sample: dict[str, np.ndarray] = {
        "source": np.stack([loaded.image(f) for f in frames]),
        "audio": loaded.audio_TC5[frames],
    }
    if not spec.contrast:  # the sync network looks at the mouth alone
        sample["reference"] = np.stack([[loaded.image(f) for f in row] for row in chosen.references])
    if loaded.lips:
        sample |= {"lip_audio": loaded.audio_TC5[heard], "lips": loaded.lips.shapes_T40[heard]}
        sample["lip_points"] = loaded.lips.points_T40[frames]
        if spec.audio_dropout:
            sample["lip_audio"] = _hide(sample["lip_audio"], spec.audio_dropout, chosen.dropout)
    if chosen.look:
        sample |= {name: chosen.look.images(sample[name]) for name in ("source", "reference") if name in sample}
        sample |= {name: chosen.look.lips(sample[name]) for name in ("lips", "lip_points") if name in sample}
    if loaded.sync_TC is not None:
        sample["sync_audio"] = _rows(loaded.sync_TC, chosen.clip_start)
        if spec.contrast:
            sample["other_audio"] = _rows(loaded.sync_TC, chosen.other_start)
            sample["quiet_audio"] = _rows(loaded.sync_TC, chosen.quiet_start)
            starts = (chosen.clip_start, chosen.other_start, chosen.quiet_start)
            sample["origin"] = np.array([(_number(loaded.ref), start) for start in starts])
    return sample


def _hide(audio_RC5: Float32, share: float, seed: int) -> Float32:
    """Set a share of the channels of each frame to 0 and raise the others to make up for it."""
    is_shown_RC = np.random.default_rng(seed).random(audio_RC5.shape[:2], np.float32) >= share
    return audio_RC5 * (is_shown_RC / np.float32(1 - share))[..., None].astype(np.float32)


def _rows(values_TC: Float32, start: int) -> Float32:
    """The nine rows from `start` on, as C×9."""
    return np.ascontiguousarray(values_TC[start : start + CLIP_FRAMES].T)


def _number(ref: SegmentRef) -> int:
    return zlib.crc32(ref.segment_id.encode())


def draw_batches(work: Work, spec: SampleSpec, *, seed: int, stored_width: int) -> Iterator[dict[str, np.ndarray]]:
    """Draw the batches of one group, in rounds: each takes `windows` samples of every segment, in an order of its own.

    Yields:
        The arrays of `make_sample`, stacked along a new first axis B, with `segment_ids` (B), `epoch`, and the batch's
        `index` within the rank's epoch.
    """
    loaded = load_group(work, spec, stored_width=stored_width)
    for number, (_, batch) in enumerate(draw_part(work, spec, seed=seed, loaded=loaded)):
        yield batch | {"epoch": np.array(work.epoch), "index": np.array(work.first_batch + number)}


def draw_part(
    work: Work, spec: SampleSpec, *, seed: int, loaded: Mapping[int, Loaded]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Draw the samples of some of a group's segments: those that are loaded, by their place in the group.

    Yields:
        For each batch of the group the samples' places in it, and their arrays as in `draw_batches`; no arrays if none
        of its samples is of these segments.
    """
    size = len(work.segments)

    @lru_cache(maxsize=2)  # a batch may span two rounds
    def order(turn: int) -> list[int]:
        rng = np.random.default_rng([seed, work.epoch, _number(work.segments[0]), turn])
        return [int(place) for place in rng.permutation(size)]

    for index in range(work.skip, batches_per_group(size, spec)):
        samples, ids, slots = [], [], []
        for slot in range(spec.batch_size):
            row, window = divmod(index * spec.batch_size + slot, spec.windows)
            turn, place = divmod(row, size)
            segment = loaded.get(order(turn)[place])
            if segment is None:
                continue
            rng = np.random.default_rng([seed, work.epoch, _number(segment.ref), turn * spec.windows + window])
            chosen = draw(rng, segment.ref.num_frames, spec, segment.faces)
            with _named(segment.ref):
                samples.append(make_sample(segment, chosen, spec))
            ids.append(segment.ref.segment_id)
            slots.append(slot)
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]} if samples else {}
        yield slots, stacked | ({"segment_ids": np.array(ids)} if ids else {})
