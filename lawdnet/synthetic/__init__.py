"""Drawn talking heads driven by synthesised speech, with exact landmarks: a test bed that needs no data.

`write_corpus` makes a folder that `lawdnet build` takes; `TalkingHead.draw` makes single frames.
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
