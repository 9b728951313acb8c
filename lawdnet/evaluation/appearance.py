"""Metrics of how generated faces look, computed by the packages that the field uses: LPIPS, FID and CSIM.

All of them see the aligned crop with the generated mouth pasted in, as `lawdnet infer` shows it, at its own size.
Published figures come from other crops, so compare only figures of one table.

Shape letters: T frames, H W crop height and width, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lawdnet.evaluation import arcface
from lawdnet.evaluation.face_embedding import EXTRA, FILE, FaceEmbedder
from lawdnet.models.device import images_to_tensor
from lawdnet.storage import Location, files_sha256
from lawdnet.types import Float32, UInt8
from lawdnet.weights import find_local, need_package, published

BATCH = 16
"""Frames that a network sees at once."""
SIMILARITY_EVERY = 5
"""Identity hardly changes from frame to frame, and dlib's network is slow on a CPU."""


class AppearanceMetric(Protocol):
    """A metric that compares the frames of a row with the true ones."""

    name: str
    text: str
    """What it measures, where, and in which range of values."""
    is_paired: bool
    """Whether each frame is compared with its own true frame, which must then show the same mouth."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the network's file."""
        ...

    def add(self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32) -> None:
        """Take frames into account.

        Args:
            row: whose frames they are, such as `baseline_`.
            true_THW3: aligned RGB crops.
            shown_THW3: crops of the same size.
            points_T68x2: landmarks of the true frames, in px of the crops.
        """
        ...

    def result(self, row: str) -> float | None:
        """Return the metric over all frames of a row; None if there are too few."""
        ...


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


def _file(name: str, weights_dir: Location | None) -> Path:
    """Return a weights file; nothing is fetched for a metric that few people need.

    Raises:
        ValueError: it is not there, or damaged.
    """
    path = find_local(name, weights_dir)
    if path is None:
        raise ValueError(f"{name} is not on this machine; fetch it with: lawdnet weights {published(name).name}")
    return path


class Lpips:
    """LPIPS 0.1 with AlexNet (Zhang et al. 2018), by the package `lpips`; its heads come with it.

    Raises:
        ValueError: the package or the weights of AlexNet are missing.
    """

    name = "lpips"
    text = "LPIPS 0.1 (AlexNet) of the aligned crop, RGB in [-1, 1]; lower is better"
    is_paired = True

    def __init__(self, weights_dir: Location | None = None, device: str = "cpu") -> None:
        need_package("lpips", EXTRA)
        self._file = _file("alexnet-owt-7be5be79.pth", weights_dir)
        self._device = torch.device(device)
        self._network = open_lpips(self._file).to(self._device)
        self._means: dict[str, _Mean] = {}

    @property
    def sha256(self) -> str:
        """SHA-256 of AlexNet's file."""
        return files_sha256([self._file])

    @torch.inference_mode()
    def add(self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32) -> None:
        """See `AppearanceMetric.add`."""
        mean = self._means.setdefault(row, _Mean())
        for start in range(0, len(true_THW3), BATCH):
            true, shown = (images_to_tensor(x[start : start + BATCH], self._device) for x in (true_THW3, shown_THW3))
            mean.add(self._network(true, shown, normalize=True).flatten().tolist())

    def result(self, row: str) -> float | None:
        """See `AppearanceMetric.result`."""
        return self._means.get(row, _Mean()).value


def open_lpips(alexnet: Path) -> Any:
    """Return the package's network with AlexNet from a file, which the package itself would download.

    Raises:
        ValueError: the file does not hold torchvision's AlexNet.
    """
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = {name: layer for part in network.net.children() for name, layer in part.named_children()}
    state = torch.load(alexnet, map_location="cpu", weights_only=True)
    try:
        for name, layer in layers.items():
            if list(layer.parameters()):
                layer.load_state_dict({key: state[f"features.{name}.{key}"] for key in ("weight", "bias")})
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{alexnet}: not torchvision's AlexNet: {error}") from error
    return network.eval()


@dataclass
class _Gaussian:
    """Sums of feature vectors and of their products."""

    sum_D: np.ndarray
    product_DD: np.ndarray
    count: int = 0

    def add(self, rows_TD: np.ndarray) -> None:
        self.count += len(rows_TD)
        self.sum_D += rows_TD.sum(0)
        self.product_DD += rows_TD.T @ rows_TD

    @property
    def mean_D(self) -> np.ndarray:
        return np.asarray(self.sum_D / self.count)

    @property
    def covariance_DD(self) -> np.ndarray:
        spread = self.product_DD - self.count * np.outer(self.mean_D, self.mean_D)
        return np.asarray(spread / (self.count - 1))


class Fid:
    """Fréchet Inception distance (Heusel et al. 2017), by the package `pytorch-fid`.

    torchmetrics' figures differ, as it resizes without smoothing. Figures of different numbers of frames cannot be
    compared.

    Raises:
        ValueError: the package or the weights are missing.
    """

    name = "fid"
    text = "FID (pytorch-fid, 2048 features) of the aligned crop, RGB in [0, 1]; lower is better"
    is_paired = False

    def __init__(self, weights_dir: Location | None = None, device: str = "cpu", dims: int = 2048) -> None:
        need_package("pytorch_fid", EXTRA)
        self._file = _file("pt_inception-2015-12-05-6726825d.pth", weights_dir)
        self._device = torch.device(device)
        self._network = open_inception(self._file, dims).to(self._device)
        self._truth: dict[str, _Gaussian] = {}
        self._shown: dict[str, _Gaussian] = {}

    @property
    def sha256(self) -> str:
        """SHA-256 of Inception's file."""
        return files_sha256([self._file])

    def add(self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32) -> None:
        """See `AppearanceMetric.add`."""
        for known, images_THW3 in ((self._truth, true_THW3), (self._shown, shown_THW3)):
            rows_TD = self.features(images_THW3)
            width = rows_TD.shape[1]
            known.setdefault(row, _Gaussian(np.zeros(width), np.zeros((width, width)))).add(rows_TD)

    @torch.inference_mode()
    def features(self, images_THW3: UInt8) -> np.ndarray:
        """Return T×D features, as float64."""
        parts = [
            self._network(images_to_tensor(images_THW3[start : start + BATCH], self._device))[0].mean((2, 3))
            for start in range(0, len(images_THW3), BATCH)
        ]
        return np.asarray(torch.cat(parts).double().cpu().numpy())

    def result(self, row: str) -> float | None:
        """See `AppearanceMetric.result`."""
        from pytorch_fid.fid_score import calculate_frechet_distance

        if row not in self._shown or self._shown[row].count < 2:
            return None
        true, shown = self._truth[row], self._shown[row]
        found = calculate_frechet_distance(true.mean_D, true.covariance_DD, shown.mean_D, shown.covariance_DD)
        return float(np.real(found))


def open_inception(file: Path, dims: int = 2048) -> Any:
    """Return the package's network with weights from a file, which the package itself would download.

    Raises:
        ValueError: the file does not hold these weights.
    """
    from pytorch_fid import inception

    download = inception.load_state_dict_from_url
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(file, map_location="cpu", weights_only=True)
    try:
        return inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]]).eval()
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{file}: not the weights of pytorch-fid's Inception: {str(error).splitlines()[0]}") from error
    finally:
        inception.load_state_dict_from_url = download


class _Similarity:
    """CSIM: cosine similarity of the face embeddings of true and shown frames.

    Both faces are cut out at the true landmarks, so no detector is needed.
    """

    is_paired = False

    def __init__(self, file: Path, embed: Callable[[UInt8, Float32], np.ndarray]) -> None:
        self._file, self._embed = file, embed
        self._means: dict[str, _Mean] = {}

    @property
    def sha256(self) -> str:
        """SHA-256 of the embedding's file."""
        return files_sha256([self._file])

    def add(self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32) -> None:
        """See `AppearanceMetric.add`."""
        some = slice(None, None, SIMILARITY_EVERY)
        true, shown = (self._embed(images_THW3[some], points_T68x2[some]) for images_THW3 in (true_THW3, shown_THW3))
        norms = np.linalg.norm(true, axis=1) * np.linalg.norm(shown, axis=1)
        self._means.setdefault(row, _Mean()).add(((true * shown).sum(1) / norms).tolist())

    def result(self, row: str) -> float | None:
        """See `AppearanceMetric.result`."""
        return self._means.get(row, _Mean()).value


class DlibSimilarity(_Similarity):
    """CSIM by dlib's embedding (King 2017), whose package is `dlib-bin`; its figures are not those of ArcFace.

    Raises:
        ValueError: the package or the weights are missing.
    """

    name = "csim_dlib"
    text = "cosine similarity of dlib's face embeddings, every fifth frame, aligned crop, 8-bit RGB"

    def __init__(self, weights_dir: Location | None = None, device: str = "cpu") -> None:
        need_package("dlib", EXTRA)
        file = _file(FILE, weights_dir)
        super().__init__(file, FaceEmbedder(file).embed)


class ArcFaceSimilarity(_Similarity):
    """CSIM by ArcFace's embedding, as the field has it, where its file is.

    Raises:
        ValueError: the weights are missing or something else.
    """

    name = "csim_arcface"
    text = "cosine similarity of ArcFace's face embeddings, every fifth frame, five points, RGB in [-1, 1]"

    def __init__(self, weights_dir: Location | None = None, device: str = "cpu") -> None:
        file = _file(arcface.FILE, weights_dir)
        super().__init__(file, arcface.ArcFace(file).embed)


METRICS: tuple[Callable[[Location | None, str], AppearanceMetric], ...] = (
    Lpips,
    Fid,
    DlibSimilarity,
    ArcFaceSimilarity,
)


@dataclass
class Appearance:
    """Those of `METRICS` whose package and weights are here."""

    metrics: list[AppearanceMetric] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Metric → what it lacks."""
    rows: dict[str, None] = field(default_factory=dict)
    """Rows that were added, in order."""

    @classmethod
    def open(cls, weights_dir: Location | None = None, device: str = "cpu") -> Appearance:
        """Open every metric that can be opened."""
        found = cls()
        for kind in METRICS:
            try:
                found.metrics.append(kind(weights_dir, device))
            except (ValueError, RuntimeError, ImportError) as error:  # a package may not fit the installed torch
                found.missing[kind.name] = str(error).splitlines()[0]  # type: ignore[attr-defined]
        return found

    def add(
        self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32, *, same_words: bool = True
    ) -> None:
        """Take frames into account; see `AppearanceMetric.add`.

        Args:
            row, true_THW3, shown_THW3, points_T68x2: as there.
            same_words: whether both show the same words; otherwise metrics that compare frame by frame are left out.
        """
        self.rows[row] = None
        for metric in self.metrics:
            if same_words or not metric.is_paired:
                metric.add(row, true_THW3, shown_THW3, points_T68x2)

    def results(self) -> dict[str, float]:
        """Return `{row}{metric}` → value."""
        found = {row + metric.name: metric.result(row) for row in self.rows for metric in self.metrics}
        return {name: value for name, value in found.items() if value is not None}

    def protocol(self) -> dict[str, dict[str, str]]:
        """Return for each metric what it measured, and with which weights."""
        return {metric.name: {"text": metric.text, "sha256": metric.sha256} for metric in self.metrics}
