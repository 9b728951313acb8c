"""The sync network: do these five mouth images and this audio belong together?

Shape letters: B batch, S face side in px, C audio feature dimension, h w score map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.layers import (
    LEAKY_SLOPE,
    ConvReLU1d,
    ConvReLU2d,
    ConvReLUPool2d,
    Residual,
    check_at_least,
    check_shape,
    init_he,
)
from lawdnet.types import CLIP_FRAMES

FACE_CHANNELS = 15
SCORE_PX = 8
HEADS = ("merge", "cosine")
AUDIO_COLUMNS = 2
MOTION_GAIN = 4.0
EMBEDDING = 4
"""Length of an embedding in multiples of the feature's channels."""


@dataclass(frozen=True)
class SyncNetConfig:
    """Sizes of a sync network."""

    audio_dim: int = 29
    """Audio features per frame, C."""
    base_channels: int = 64
    """All channel counts are one or two times this."""
    face_px: int = 256
    """Side of the mouth square in px."""
    motion: bool = False
    """Look at how the frames differ from their mean. Without it the network learns who speaks, not when: on real people
    it stays near chance against other moments of the same recording."""
    head: str = "merge"
    """`merge` is the published head: convolutions over both features give a map of scores. `cosine` turns both into
    vectors of length 1, and the score is their cosine; it learns from every pair of a batch and so leaves chance level
    far sooner."""

    def __post_init__(self) -> None:
        check_at_least(self, audio_dim=1, base_channels=1, face_px=4 * SCORE_PX)
        if self.head not in HEADS:
            raise ValueError(f"SyncNetConfig.head: {self.head!r}, expected one of {', '.join(HEADS)}")

    @property
    def halvings(self) -> int:
        """How often the face is halved, so that about 8×8 scores remain."""
        return round(math.log2(self.face_px / SCORE_PX))


class SyncNet(nn.Module):
    """Scores pairs of mouth images and audio; the target is 1 if they are in sync."""

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SyncNetConfig()
        width = 2 * config.base_channels
        self.face_encoder = _face_encoder(config.base_channels, config.halvings)
        self.audio_encoder = _audio_encoder(config.audio_dim, width)
        if config.head == "cosine":
            pixels = self.face_encoder(torch.zeros(1, FACE_CHANNELS, config.face_px, config.face_px)).numel()
            self.face_vector = nn.Linear(pixels, EMBEDDING * width)
            self.audio_vector = nn.Linear(width * AUDIO_COLUMNS, EMBEDDING * width)
        else:
            self.merge = nn.Sequential(
                nn.Conv2d(2 * width, width, 3, padding=1),
                nn.LeakyReLU(LEAKY_SLOPE),
                nn.Conv2d(width, 1, 3, padding=1),
            )
        init_he(self)

    def forward(self, faces_B15SS: Tensor, audio_AC9: Tensor, *, pairwise: bool = False) -> Tensor:
        """Score how well faces and audio belong together; the target is 1 if they do.

        Args:
            faces_B15SS: mouth squares of the five middle frames of a clip, RGB in [0, 1], stacked by channel.
            audio_AC9: feature rows of all nine frames of the clip; A equals B unless `pairwise`.
            pairwise: score all B·A pairs; each face and each audio window is encoded once.

        Returns:
            B×1×h×w, a map whose mean is the score (1×1 for `cosine`), or with `pairwise` the scores B×A.

        Raises:
            ValueError: a shape does not fit.
        """
        if self.config.head == "cosine":
            face_BD, audio_AD = self.embed(faces_B15SS, audio_AC9)
            return face_BD @ audio_AD.T if pairwise else (face_BD * audio_AD).sum(1)[:, None, None, None]
        face_BChw = self.encode_faces(faces_B15SS)
        audio_AC11 = self.encode_audio(audio_AC9).mean(2)[:, :, None, None]
        if not pairwise:
            return self._merged(face_BChw, audio_AC11)
        faces = len(face_BChw)
        audios = len(audio_AC11)
        scores = self._merged(face_BChw.repeat_interleave(audios, 0), audio_AC11.repeat(faces, 1, 1, 1))
        return scores.mean((1, 2, 3)).view(faces, audios)

    def embed(self, faces_B15SS: Tensor, audio_AC9: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of length 1 whose cosine is the score, B×D and A×D (`cosine` only).

        Args:
            faces_B15SS: as in `forward`.
            audio_AC9: as in `forward`.
        """
        return self.embed_faces(faces_B15SS), self.embed_audio(audio_AC9)

    def embed_faces(self, faces_B15SS: Tensor) -> Tensor:
        """The faces' half of `embed`: B×D."""
        assert self.config.head == "cosine"
        return F.normalize(self.face_vector(self.encode_faces(faces_B15SS).flatten(1)), dim=1)

    def embed_audio(self, audio_AC9: Tensor) -> Tensor:
        """The audio's half of `embed`: A×D."""
        assert self.config.head == "cosine"
        return F.normalize(self.audio_vector(self.encode_audio(audio_AC9).flatten(1)), dim=1)

    def encode_faces(self, faces_B15SS: Tensor) -> Tensor:
        """The features of the faces, B×C×h×w, before either head."""
        check_shape("faces", faces_B15SS, FACE_CHANNELS, self.config.face_px, self.config.face_px)
        return cast("Tensor", self.face_encoder(_motion(faces_B15SS) if self.config.motion else faces_B15SS))

    def encode_audio(self, audio_AC9: Tensor) -> Tensor:
        """The features of the audio, A×C×AUDIO_COLUMNS, before either head."""
        check_shape("audio", audio_AC9, self.config.audio_dim, CLIP_FRAMES)
        return cast("Tensor", self.audio_encoder(audio_AC9))

    def _merged(self, face_BChw: Tensor, audio_BC11: Tensor) -> Tensor:
        return cast("Tensor", self.merge(torch.cat((face_BChw, audio_BC11.expand_as(face_BChw)), 1)))


def _motion(faces_B15SS: Tensor) -> Tensor:
    """The difference of each frame from the mean of all five, at about the size of the images themselves."""
    faces_B53SS = faces_B15SS.unflatten(1, (-1, 3))
    return MOTION_GAIN * (faces_B53SS - faces_B53SS.mean(1, keepdim=True)).flatten(1, 2)


def _face_encoder(base: int, halvings: int) -> nn.Sequential:
    layers: list[nn.Module] = [ConvReLU2d(FACE_CHANNELS, base, 7)]
    for halving in range(halvings):
        width = base if halving == 0 else 2 * base
        kernel = 1 if halving == halvings - 1 else 3
        layers += [Residual(width, relu_first=True), ConvReLUPool2d(width, width), ConvReLU2d(width, 2 * base, kernel)]
    return nn.Sequential(*layers)


def _audio_encoder(inputs: int, width: int) -> nn.Sequential:
    """Reduce nine columns to AUDIO_COLUMNS."""
    layers: list[nn.Module] = [ConvReLU1d(inputs, width, 7)]
    for _ in range(3):
        layers += [Residual(width, dims=1, relu_first=True), ConvReLU1d(width, width, stride=2)]
    return nn.Sequential(*layers, ConvReLU1d(width, width))
