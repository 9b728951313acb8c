"""Sound: reading it on the video's clock, and the features that the networks hear.

A new extractor is a class in a file of its own (see `base.AudioExtractor`) and one line here.
"""

from lawdnet.audio.base import EXTRACTORS, AudioExtractor, fit_to_video, make_extractor, windows
from lawdnet.audio.io import load_audio, write_wav
from lawdnet.audio.mel import Mel

EXTRACTORS[Mel.name] = Mel

__all__ = [
    "EXTRACTORS",
    "AudioExtractor",
    "Mel",
    "fit_to_video",
    "load_audio",
    "make_extractor",
    "windows",
    "write_wav",
]
