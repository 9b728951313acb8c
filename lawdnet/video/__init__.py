"""Pictures: probe a file, decode it to RGB on the 25 fps clock, encode and mux. Only this package touches codecs."""

from lawdnet.video.reading import decode, picture_start, probe
from lawdnet.video.writing import VideoWriter, write_video

__all__ = ["VideoWriter", "decode", "picture_start", "probe", "write_video"]
