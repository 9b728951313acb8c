"""What live clients send first, as JSON."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lawdnet.serving.problems import Problem
from lawdnet.types import SAMPLE_RATE

ModelT = TypeVar("ModelT", bound=BaseModel)


class Start(BaseModel):
    """The first message over a WebSocket."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["start"]
    template: str = Field("", max_length=64, description="Empty: the server's first.")
    rate: int = Field(SAMPLE_RATE, description="Of the audio that follows, Hz.")
    format: Literal["jpeg", "mp4"] = "jpeg"
    quality: int = Field(85, ge=10, le=100, description="Of the JPEGs.")
    idle: Literal["rest", "template"] = "rest"
    microphone: bool = Field(False, description="Audio that waits too long is dropped.")
    audio: bool = Field(True, description="It comes back with the frames.")
    window: int = Field(0, ge=0, le=10_000, description="Most frames under way that were not seen; 0: no limit.")
    key: str | None = Field(None, max_length=512)


class Offer(BaseModel):
    """The offer of a WebRTC client."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["offer"]
    sdp: str = Field(max_length=64 << 10)
    template: str = Field("", max_length=64, description="Empty: the server's first.")
    idle: Literal["rest", "template"] = "rest"


def parsed(model: type[ModelT], text: str | bytes, kind: str) -> ModelT:
    """Return what a JSON text says.

    Raises:
        Problem: 422, of this kind, with the first thing that is wrong.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in found["loc"])
        raise Problem(422, kind, f"{where}: {found['msg']}".removeprefix(": ")) from error
