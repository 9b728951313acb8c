"""How much one client may ask for. Every limit has one place here, and an error that names it."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Raises:
        ValueError: a limit is not a positive number.
    """

    audio_bytes: int = 64 * MIB
    """Size of an uploaded audio file, or of a video whose audio is used."""
    audio_seconds: float = 600.0
    """Length of the audio after decoding, whatever the file claims."""
    video_bytes: int = 512 * MIB
    """Size of an uploaded template."""
    video_seconds: float = 600.0
    video_pixels: int = 3840 * 2160
    """Height times width of a template's frames."""
    video_rate: float = 240.0
    """Mean frames per second of a template: more of them would cost decoding, and none would be shown."""
    queue: int = 64
    """Jobs that wait; one more is answered with 503."""
    templates: int = 256
    """Templates that are kept."""
    uploads: int = 16
    """Uploads at the same time."""
    upload_seconds: float = 600.0
    """Longest time from the first to the last byte of a request."""
    idle_seconds: float = 20.0
    """Longest pause in an upload."""
    posts_per_minute: float = 600.0
    """Uploads of one client, on average; a burst may have a tenth of them at once."""
    header_bytes: int = 16 << 10
    """All headers of a request together."""
    keep_seconds: float = 24 * 3600.0
    """How long a finished result is kept."""
    free_bytes: int = 512 * MIB
    """Room that must be left on the disk; with less, nothing new is accepted."""
    listeners: int = 256
    """Clients that listen to events at the same time."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} must be more than 0")


class RateLimit:
    """A token bucket per client; its memory is bounded, because a full bucket is forgotten."""

    MAX_CLIENTS = 10_000

    def __init__(self, per_minute: float) -> None:
        self.per_second = per_minute / 60
        self.burst = max(1.0, per_minute / 10)
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, client: str, now: float) -> float:
        """Take a token, or return the number of seconds until there is one.

        Args:
            client: whom to count it for.
            now: seconds of a clock that only runs forwards.
        """
        level, since = self._buckets.get(client, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.per_second)
        if level < 1:
            return (1 - level) / self.per_second
        self._buckets[client] = level - 1, now
        if len(self._buckets) > self.MAX_CLIENTS:
            self._buckets = {
                name: (left, seen)
                for name, (left, seen) in self._buckets.items()
                if left + (now - seen) * self.per_second < self.burst
            }
            if len(self._buckets) > self.MAX_CLIENTS:  # many clients at once: everybody begins with a full bucket
                self._buckets.clear()
        return 0.0
