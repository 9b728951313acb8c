"""Audio: reading it on the video's clock, and the features that the networks get.

A new extractor is a class in a file of its own (see `base.AudioExtractor`) and one line here.
"""

from lawdnet.audio.base import (
    EXTRACTORS,
    AudioExtractor,
    extractor_options,
    fit_to_video,
    frame_features,
    make_extractor,
    windows,
)
from lawdnet.audio.deepspeech import DeepSpeech
from lawdnet.audio.deepspeech2 import DeepSpeech2
from lawdnet.audio.hubert import Hubert
from lawdnet.audio.io import VideoAudio, load_audio, load_video_audio, stream_audio, write_wav
from lawdnet.audio.mel import Mel
from lawdnet.audio.whisper import Whisper

EXTRACTORS.update({extractor.name: extractor for extractor in (Mel, DeepSpeech, DeepSpeech2, Hubert, Whisper)})

__all__ = [
    "EXTRACTORS",
    "AudioExtractor",
    "DeepSpeech",
    "DeepSpeech2",
    "Hubert",
    "Mel",
    "VideoAudio",
    "Whisper",
    "extractor_options",
    "fit_to_video",
    "frame_features",
    "load_audio",
    "load_video_audio",
    "make_extractor",
    "stream_audio",
    "windows",
    "write_wav",
]
