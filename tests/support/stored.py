"""What a build has stored."""

from __future__ import annotations

from lawdnet.data.records import VideoRecord, video_records
from lawdnet.storage import Location


def read_records(root: Location) -> dict[str, VideoRecord]:
    """All records of a dataset by key, in the order of their paths, without the rows of their segments."""
    found = {key: record for piece in video_records(root).pieces() for key, record in piece.items()}
    return dict(sorted(found.items(), key=lambda entry: entry[1].path))
