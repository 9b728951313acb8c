"""The network of `deepspeech2`, with the parameter names of deepspeech.pytorch 3, and its checkpoint.

Shape letters: B batch, F frames (100 Hz), Q frequencies, R rows (50 Hz), H hidden size, K characters.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lawdnet.types import Float32

CHANNELS = 32
CONVOLVED = CHANNELS * 41
"""Values per row after the convolutions: 161 frequencies become 81, then 41."""


class DeepSpeech2Model(nn.Module):
    """Two convolutions, bidirectional LSTMs whose directions are added, and a linear layer (D. Amodei et al. 2015)."""

    def __init__(self, hidden: int = 1024, layers: int = 5, classes: int = 29) -> None:
        super().__init__()
        self.classes = classes
        self.conv = _Convolutions()
        self.rnns = nn.ModuleList(_Recurrent(hidden if n else CONVOLVED, hidden, norm=n > 0) for n in range(layers))
        self.fc = nn.Sequential(_EachRow(nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, classes, bias=False))))

    def forward(self, x_B1QF: Tensor) -> Tensor:
        """Return B×R×K outputs before the softmax for normalised spectrograms, with R = ceil(F/2)."""
        x_RBH = self.conv(x_B1QF).flatten(1, 2).permute(2, 0, 1)
        for rnn in self.rnns:
            x_RBH = rnn(x_RBH)
        x_RBK: Tensor = self.fc(x_RBH)
        return x_RBK.swapaxes(0, 1)

    @torch.inference_mode()
    def run(self, x_BFQ: Float32) -> Float32:
        """Run `forward` on arrays, on the network's device."""
        device = next(self.parameters()).device
        x_B1QF = torch.from_numpy(x_BFQ).to(device).swapaxes(1, 2)[:, None]
        return np.asarray(self(x_B1QF).float().cpu().numpy())


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seq_module = nn.Sequential(
            nn.Conv2d(1, CHANNELS, (41, 11), stride=(2, 2), padding=(20, 5)),
            nn.BatchNorm2d(CHANNELS),
            nn.Hardtanh(0, 20, inplace=True),
            nn.Conv2d(CHANNELS, CHANNELS, (21, 11), stride=(2, 1), padding=(10, 5)),
            nn.BatchNorm2d(CHANNELS),
            nn.Hardtanh(0, 20, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.seq_module(x)
        return out


class _EachRow(nn.Module):
    """Applies a module for R·B rows to an input R×B×H."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_RBH: Tensor) -> Tensor:
        out: Tensor = self.module(x_RBH.flatten(0, 1)).unflatten(0, x_RBH.shape[:2])
        return out


class _Recurrent(nn.Module):
    def __init__(self, size: int, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.batch_norm = _EachRow(nn.BatchNorm1d(size)) if norm else None
        self.rnn = nn.LSTM(size, hidden, bidirectional=True)

    def forward(self, x_RBH: Tensor) -> Tensor:
        if self.batch_norm is not None:
            x_RBH = self.batch_norm(x_RBH)
        both, _ = self.rnn(x_RBH)
        out: Tensor = both.unflatten(2, (2, -1)).sum(2)
        return out


def load_deepspeech2(path: Path, device: torch.device) -> DeepSpeech2Model:
    """Load the network from a Lightning checkpoint or a bare state dict, ready to run; sizes follow from the weights.

    Raises:
        ValueError: the file is damaged, or holds another network.
    """
    loaded = read_tensors(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    layers = len({key.split(".")[1] for key in state if re.match(r"rnns\.\d+\.", str(key))})
    try:
        classes, hidden = state["fc.0.module.1.weight"].shape
        model = DeepSpeech2Model(hidden, layers, classes)
        model.load_state_dict(state)
    except (KeyError, AttributeError, ValueError, RuntimeError) as error:
        what = "bidirectional LSTMs of deepspeech.pytorch 3"
        raise ValueError(f"{path}: not a checkpoint of the {what} ({str(error).splitlines()[0]})") from None
    return model.eval().to(device)


def read_tensors(path: Path) -> Any:
    """Read the tensors and plain containers of a torch file; any other pickled object becomes an empty stand-in.

    Lightning pickles hyper-parameters as objects of the training code. Nothing that the file names is imported or
    called.

    Raises:
        ValueError: the file is damaged, or not a torch file.
    """
    mapped = zipfile.is_zipfile(path)  # then the optimiser state, two thirds of the file, stays on disk
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        pass
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}); it is damaged or truncated") from None
    try:
        if tarfile.is_tarfile(path):
            raise ValueError("a tar file from before torch 0.4")
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped, pickle_module=_harmless_pickle())
    except Exception as error:  # torch raises many kinds here, too
        raise ValueError(f"{path}: cannot be read ({error}); it is damaged or not a torch file") from None


def _harmless_pickle() -> Any:
    """Return what torch needs of the module `pickle`, new for each file, so that no file can leave anything behind."""

    class StandIn:
        """Accepts everything that a pickle can do to an object, and does nothing."""

        def __new__(cls, *_: Any, **__: Any) -> StandIn:
            return super().__new__(cls)

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __call__(self, *_: Any, **__: Any) -> StandIn:
            return self

        __setstate__ = __setitem__ = append = extend = add = __call__

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return known.get((module, name), StandIn)

    known = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): partial(_rebuild_tensor),
        ("torch._utils", "_rebuild_parameter"): partial(_rebuild_parameter),
    }
    return SimpleNamespace(
        Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load(), __name__="harmless"
    )


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor over a storage; gradients, hooks and metadata of the file are ignored."""
    tensor: Tensor = torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())
    return tensor


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor
