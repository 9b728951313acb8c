"""The encoder of OpenAI's Whisper, and its weights in a file of CTranslate2.

Shape letters: B batch, M mel bands, L spectrogram frames at 100 Hz, R rows at 50 Hz, C width of the network.
Source: Radford et al. 2022, arXiv 2212.04356; the file format is CTranslate2's `model_spec.py`, version 6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TYPES = {0: "f4", 1: "i1", 2: "i2", 3: "i4", 4: "f2"}
"""CTranslate2's numbers of element types."""
PREFIX = "encoder/"


class WhisperEncoder(nn.Module):
    """Turns a log-mel spectrogram into hidden states at half its rate.

    Args:
        bands: M.
        width: C.
        layers: number of transformer layers.
        heads: attention heads of a layer.
        rows: most rows (1500 in all published networks, 30 s).
    """

    def __init__(self, *, bands: int, width: int, layers: int, heads: int, rows: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.position_RC = nn.Parameter(torch.zeros(rows, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    @torch.inference_mode()
    def forward(self, mel_BML: Tensor) -> Tensor:
        """Return B×R×C, R = ceil(L / 2)."""
        rows_BRC = F.gelu(self.conv2(F.gelu(self.conv1(mel_BML)))).transpose(1, 2)
        rows_BRC = rows_BRC + self.position_RC[: rows_BRC.shape[1]]
        for layer in self.layers:
            rows_BRC = layer(rows_BRC)
        return self.norm(rows_BRC)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, rows_BRC: Tensor) -> Tensor:
        joined = self.query_key_value(self.attention_norm(rows_BRC)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        rows_BRC = rows_BRC + self.attention_out(attended)
        return rows_BRC + self.mlp(self.mlp_norm(rows_BRC))


_NAMES = {
    "attention_norm": "self_attention/layer_norm",
    "query_key_value": "self_attention/linear_0",
    "attention_out": "self_attention/linear_1",
    "mlp_norm": "ffn/layer_norm",
    "mlp.0": "ffn/linear_0",
    "mlp.2": "ffn/linear_1",
}
"""Part of a layer → its name in the file."""


def load_encoder(path: Path, *, layers: int | None = None) -> WhisperEncoder:
    """Load the encoder of a Whisper network that was converted by CTranslate2, in float32, ready to run.

    Args:
        path: the file `model.bin`.
        layers: use only the first layers; None uses all.

    Raises:
        ValueError: the file is not such a network, is damaged, or has fewer layers.
    """
    try:
        stored = read_variables(path, PREFIX)
        found = sum(name.endswith("/self_attention/linear_0/bias") for name in stored)
        used = found if layers is None else layers
        if not 1 <= used <= found:
            raise ValueError(f"layer: {layers}, expected 1 … {found}")
        width, bands = stored["conv1/weight"].shape[:2]
        encoder = WhisperEncoder(
            bands=bands,
            width=width,
            layers=used,
            heads=int(stored["num_heads"]),
            rows=len(stored["position_encodings/encodings"]),
        )
        encoder.load_state_dict({name: _tensor(stored, name) for name in encoder.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a Whisper network of CTranslate2 ({error})") from None
    return encoder.eval()


def _tensor(stored: dict[str, np.ndarray], name: str) -> Tensor:
    """Return the parameter with this name in `WhisperEncoder`."""
    if name == "position_RC":
        return torch.from_numpy(stored["position_encodings/encodings"].astype(np.float32))
    part, _, kind = name.rpartition(".")
    if part.startswith("layers."):
        _, number, part = part.split(".", 2)
        part = f"layer_{number}/{_NAMES[part]}"
    elif part == "norm":
        part = "layer_norm"
    if part.endswith("layer_norm"):
        kind = {"weight": "gamma", "bias": "beta"}[kind]
    return torch.from_numpy(stored[f"{part}/{kind}"].astype(np.float32))


def feature_dim(path: Path) -> int:
    """Return C of a network, without loading it.

    Raises:
        ValueError: as `load_encoder`.
    """
    with _opened(path) as file:
        for name, shape, _, size in _variables(file):
            if name == f"{PREFIX}conv1/bias":
                return shape[0]
            file.seek(size, 1)
    raise ValueError(f"{path}: not a Whisper network of CTranslate2 (no {PREFIX}conv1/bias)")


def read_variables(path: Path, prefix: str) -> dict[str, np.ndarray]:
    """Read the variables of a CTranslate2 file whose names begin with `prefix`, without it.

    Raises:
        ValueError: the file is not of this format, or is damaged.
    """
    found = {}
    with _opened(path) as file:
        for name, shape, kind, size in _variables(file):
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = np.frombuffer(_read(file, size), TYPES[kind]).reshape(shape)
            else:
                file.seek(size, 1)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except (struct.error, EOFError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a network of CTranslate2, or damaged ({error})") from None


def _variables(file: IO[bytes]) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Yield name, shape, type and size in bytes of each variable; the caller reads or skips its bytes."""
    version = _number(file, "I")
    if version != 6 or _string(file) != "WhisperSpec":
        raise EOFError(f"version {version}, expected 6 and a WhisperSpec")
    _number(file, "I")  # revision of the specification
    for _ in range(_number(file, "I")):
        name = _string(file)
        shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
        yield name, shape, _number(file, "B"), _number(file, "I")


def _string(file: IO[bytes]) -> str:
    return _read(file, _number(file, "H")).decode().rstrip("\0")


def _number(file: IO[bytes], kind: str) -> int:
    return int(struct.unpack(f"<{kind}", _read(file, struct.calcsize(kind)))[0])


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("it ends too early")
    return data
