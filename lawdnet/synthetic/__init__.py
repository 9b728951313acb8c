"""Drawn talking heads, driven by synthesised speech and with exact landmarks: test data without recordings.

`write_corpus` writes a folder for `lawdnet build`; `TalkingHead.draw` draws single frames.
"""

from lawdnet.synthetic.corpus import write_corpus, write_member, write_talking_head
from lawdnet.synthetic.draw import TalkingHead
from lawdnet.synthetic.identity import Identity, Pose, make_identity, make_motion
from lawdnet.synthetic.speech import Speech, make_speech

__all__ = [
    "Identity",
    "Pose",
    "Speech",
    "TalkingHead",
    "make_identity",
    "make_motion",
    "make_speech",
    "write_corpus",
    "write_member",
    "write_talking_head",
]
