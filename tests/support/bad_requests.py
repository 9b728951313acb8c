"""Requests that something is wrong with, and what the server says to them.

`FORMS` is name → (status, kind, route, what httpx is told); `RAW` is name → (statuses, bytes that a client writes), for
what no honest client can send.
"""

from __future__ import annotations

import io
import struct
import wave
from fractions import Fraction
from typing import Any

import av
import numpy as np

VIDEOS, TEMPLATES = "/v1/videos", "/v1/templates"
SECONDS_OF_3_HOURS = 3 * 3600
Form = tuple[int, str, str, dict[str, Any]]


def wav(seconds: float = 0.4, *, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """A WAV of noise, of whole numbers of `width` bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.random.default_rng(0).bytes(round(seconds * rate) * channels * width))
    return buffer.getvalue()


def float_wav(value: float) -> bytes:
    """0.4 s of one 32-bit floating point value."""
    data = np.full(6400, value, "<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def long_flac(seconds: int) -> bytes:
    """Silence, which FLAC makes very small."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=8000, layout="mono")
        silence = np.zeros((1, 8000 * 60), np.int16)
        for minute in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, minute * 8000 * 60, Fraction(1, 8000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def audio(content: bytes, name: str = "speech.wav", **data: str) -> dict[str, Any]:
    """A form with an audio file and other fields."""
    return {"files": {"audio": (name, content)}, "data": data}


def video(content: bytes, name: str = "new", **data: str) -> dict[str, Any]:
    """A form with a template."""
    return {"files": {"video": ("video.mp4", content)}, "data": {"name": name, **data}}


def body(content: bytes, kind: str = "multipart/form-data; boundary=x") -> dict[str, Any]:
    """A body that is made by hand."""
    return {"content": content, "headers": {"content-type": kind}}


def part(disposition: str, content: bytes = b"1") -> bytes:
    """One part of a form whose boundary is x."""
    return f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


GOOD = part('form-data; name="audio"; filename="a.wav"', wav())

FORMS: dict[str, Form] = {
    # the audio
    "empty": (422, "empty_file", VIDEOS, audio(b"")),
    "one byte": (422, "not_a_video", VIDEOS, audio(b"\0")),
    "text named wav": (422, "not_a_video", VIDEOS, audio(b"hello, this is not audio\n" * 50)),
    "HTML named mp3": (422, "not_a_video", VIDEOS, audio(b"<html><body>404</body></html>", "a.mp3")),
    "JSON": (422, "not_a_video", VIDEOS, audio(b'{"audio": "base64"}', "a.json")),
    "pickle": (422, "not_a_video", VIDEOS, audio(b"\x80\x04\x95\x10\0\0\0\0\0\0\0c__builtin__\neval\n.", "a.pkl")),
    "playlist": (422, "not_a_video", VIDEOS, audio(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n", "a.m3u8")),
    "concat script": (422, "not_a_video", VIDEOS, audio(b"ffconcat version 1.0\nfile /etc/passwd\n", "a.ffconcat")),
    "0 s": (422, "no_audio", VIDEOS, audio(wav(0))),
    "one sample": (422, "audio_too_short", VIDEOS, audio(wav(1 / 16_000))),
    "header alone": (422, "any", VIDEOS, audio(wav()[:44])),
    "half a header": (422, "any", VIDEOS, audio(wav()[:20])),
    "no channels": (422, "any", VIDEOS, audio(wav()[:22] + b"\0\0" + wav()[24:])),
    "3 hours in 1 MB": (413, "audio_too_long", VIDEOS, audio(long_flac(SECONDS_OF_3_HOURS), "a.flac")),
    "1 Hz": (413, "audio_too_long", VIDEOS, audio(wav(5000, rate=1))),
    # the form
    "no form": (415, "not_a_form", VIDEOS, {}),
    "JSON instead": (415, "not_a_form", VIDEOS, {"json": {"audio": "x"}}),
    "URL-encoded": (415, "not_a_form", VIDEOS, {"data": {"audio": "x"}}),
    "raw WAV": (415, "not_a_form", VIDEOS, body(wav(), "audio/wav")),
    "no boundary": (415, "not_a_form", VIDEOS, body(GOOD, "multipart/form-data")),
    "mixed": (415, "not_a_form", VIDEOS, body(GOOD, "multipart/mixed; boundary=x")),
    "another boundary": (400, "malformed_form", VIDEOS, body(GOOD, "multipart/form-data; boundary=yy")),
    "a boundary that is too long": (
        400,
        "malformed_form",
        VIDEOS,
        body(GOOD, f"multipart/form-data; boundary={'y' * 999}"),
    ),
    "empty body": (400, "cut_off", VIDEOS, body(b"")),
    "no last boundary": (400, "cut_off", VIDEOS, body(GOOD)),
    "cut in a header": (400, "cut_off", VIDEOS, body(GOOD[:30])),
    "garbage": (400, "malformed_form", VIDEOS, body(np.random.default_rng(0).bytes(3000))),
    "no fields": (422, "no_audio_field", VIDEOS, body(b"--x--\r\n")),
    "audio as text": (422, "empty_file", VIDEOS, body(part('form-data; name="audio"', b"") + b"--x--\r\n")),
    "no disposition": (422, "unknown_field", VIDEOS, body(b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n")),
    "no name": (422, "unknown_field", VIDEOS, body(part("form-data") + b"--x--\r\n")),
    "audio twice": (422, "repeated_field", VIDEOS, body(GOOD + GOOD + b"--x--\r\n")),
    "unknown field": (422, "unknown_field", VIDEOS, audio(wav(), path="/etc/passwd")),
    "a file in a text field": (422, "any", VIDEOS, {"files": {"audio": wav(), "template": b"ann"}}),
    "text that is not UTF-8": (
        422,
        "not_utf8",
        VIDEOS,
        body(part('form-data; name="template"', b"\xff") + b"--x--\r\n"),
    ),
    "a field of 1 MB": (413, "field_too_long", VIDEOS, audio(wav(), template="x" * 1_000_000)),
    "100 headers in a part": (
        400,
        "malformed_form",
        VIDEOS,
        body(b"--x\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(100)) + b"\r\n1\r\n--x--\r\n"),
    ),
    "too many bytes": (413, "too_large", VIDEOS, audio(bytes(3 << 20))),
    # names and options
    "unknown template": (422, "unknown_template", VIDEOS, audio(wav(), template="nobody")),
    "traversal": (422, "unknown_template", VIDEOS, audio(wav(), template="../../../../etc/passwd")),
    "absolute path": (422, "unknown_template", VIDEOS, audio(wav(), template="/etc/passwd")),
    "URL": (422, "unknown_template", VIDEOS, audio(wav(), template="http://169.254.169.254/latest/meta-data")),
    "S3": (422, "unknown_template", VIDEOS, audio(wav(), template="s3://bucket/key")),
    "shell": (422, "unknown_template", VIDEOS, audio(wav(), template="anna; rm -rf /")),
    "NUL": (422, "unknown_template", VIDEOS, audio(wav(), template="anna\0.mp4")),
    "SQL": (422, "unknown_template", VIDEOS, audio(wav(), template="' OR 1=1 --")),
    "unknown model": (422, "unknown_model", VIDEOS, audio(wav(), options='{"model": "../run"}')),
    "options that are no JSON": (422, "bad_options", VIDEOS, audio(wav(), options="{model: 1}")),
    "options that are a list": (422, "bad_options", VIDEOS, audio(wav(), options="[]")),
    "unknown option": (422, "bad_options", VIDEOS, audio(wav(), options='{"out": "/tmp/x"}')),
    "an option of another type": (422, "bad_options", VIDEOS, audio(wav(), options='{"keep_seconds": "1e9"}')),
    "NaN": (422, "bad_options", VIDEOS, audio(wav(), options='{"keep_seconds": NaN}')),
    "for ever": (422, "bad_keep", VIDEOS, audio(wav(), options='{"keep_seconds": 1e300}')),
    "deep JSON": (422, "bad_options", VIDEOS, audio(wav(), options="[" * 4000)),
    # templates
    "no video": (422, "no_video_field", TEMPLATES, {"files": {"name": (None, "new")}}),
    "no name for a template": (422, "no_name_field", TEMPLATES, {"files": {"video": b"x"}}),
    "an empty video": (422, "empty_file", TEMPLATES, video(b"")),
    "text as a video": (422, "not_a_video", TEMPLATES, video(b"no video" * 100)),
    "sound as a video": (422, "no_video_stream", TEMPLATES, video(wav())),
    "name with a path": (422, "bad_name", TEMPLATES, video(wav(), "../x")),
    "hidden name": (422, "bad_name", TEMPLATES, video(wav(), ".x")),
    "name of 65 letters": (422, "bad_name", TEMPLATES, video(wav(), "x" * 65)),
    "name in Chinese": (422, "bad_name", TEMPLATES, video(wav(), "安娜")),
    "all faces": (422, "bad_face", TEMPLATES, video(wav(), face="all")),
    "face -1": (422, "bad_face", TEMPLATES, video(wav(), face="-1")),
    "face of 4000 digits": (422, "bad_face", TEMPLATES, video(wav(), face="9" * 4000)),
    "model of another server": (422, "unknown_model", TEMPLATES, video(wav(), model="x")),
    # the published routes
    "published: text": (422, "not_a_video", "/upload-audio", {"files": {"file": ("../../x.wav", b"text")}}),
    "published: empty": (422, "empty_file", "/generate_video", {"files": {"audio": b""}}),
}

ACCEPTED = {
    "NaN": audio(float_wav(np.nan)),
    "infinite": audio(float_wav(np.inf)),
    "too loud": audio(float_wav(1e30)),
    "8 bit": audio(wav(width=1)),
    "24 bit": audio(wav(width=3)),
    "7.1": audio(wav(channels=8)),
    "192 kHz": audio(wav(rate=192_000)),
    "8 kHz": audio(wav(rate=8000)),
    "one frame": audio(wav(0.04)),
    "traversal in the file's name": audio(wav(), "../../../../tmp/evil.wav"),
    "a strange file name": audio(wav(), "'; rm -rf /\u202e\n.wav"),
}
"""Odd audio that gives a video all the same."""

POST = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MULTIPART = b"Content-Type: multipart/form-data; boundary=x\r\n"

RAW: dict[str, tuple[set[int], bytes]] = {
    "no HTTP": ({400}, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n"),
    "headers of 32 kB": ({431}, b"GET /v1/templates HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 32_000 + b"\r\n\r\n"),
    "headers of 1 MB": ({400, 431}, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n"),
    "an address of 32 kB": ({431}, b"GET /" + b"a" * 32_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "negative length": ({400}, POST + b"Content-Length: -1\r\n\r\n"),
    "two lengths": ({400}, POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "bad chunks": ({400}, POST + MULTIPART + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"),
    "a length that is too large": ({413}, POST + MULTIPART + b"Content-Length: 99999999999\r\n\r\n"),
    "traversal in the path": ({404}, b"GET /v1/videos/../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "encoded traversal": ({404}, b"GET /v1/templates/%2e%2e%2f%2e%2e%2fetc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "no host": ({400, 421}, b"GET /v1/templates HTTP/1.1\r\n\r\n"),
    "a strange method": ({405, 501, 400}, b"BREW /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
}
