"""Video files: probe, decode to RGB on the 25 fps clock, encode and mux. Only this package and audio.io use codecs."""

from lawdnet.video.reading import decode, decode_ticks, first_frame_time, probe
from lawdnet.video.writing import VideoWriter, write_video

__all__ = ["VideoWriter", "decode", "decode_ticks", "first_frame_time", "probe", "write_video"]
