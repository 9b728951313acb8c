"""Groups: by path, by re-encoding, and on one side of the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.disjoint import DisjointSets
from lawdnet.data.faces import encode
from lawdnet.data.group_by import check_paths, group_names
from lawdnet.data.groups import groups_of, re_encodings
from lawdnet.data.ledger import SCHEMA, ledger_row
from lawdnet.data.near_duplicates import STARTS
from lawdnet.data.records import SegmentRow, VideoRecord, video_records
from lawdnet.data.settle import reject_re_encoding, settle
from lawdnet.data.split import split_draw, split_videos

PATHS = ["ann/1/a.mp4", "ann/2/b.mp4", "s3://bucket/bob/c.mp4", "d.mp4"]
LISTED = ["A", "B", "A", ""]


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        ("", ["", "", "", ""]),
        ("folder", ["ann/1", "ann/2", "s3://bucket/bob", "."]),
        ("regex:^[^/]+/", ["ann/", "ann/", "s3:/", ""]),
        ("regex:(?:^|/)(ann|bob)/", ["ann", "ann", "bob", ""]),
        ("regex:[a-d].mp4$", ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]),
        ("regex:(?i)ANN|BOB", ["ann", "ann", "bob", ""]),
        ("regex:n|(b)", ["", "", "b", ""]),  # a match whose first group took no part names nothing
        ("regex:([a-z]+)/([0-9])", ["ann", "ann", "", ""]),
        ("column:who", LISTED),
        ("face", ["", "", "", ""]),
        ("face<=0.5", ["", "", "", ""]),
    ],
)
def test_names_of_groups(group_by: str, names: list[str]) -> None:
    assert group_names(PATHS, group_by, LISTED) == names
    assert BuildConfig(group_by=group_by).group_by == group_by


@pytest.mark.parametrize(
    "group_by",
    [
        *("parent", "regex:", "regex:(", "regex:a)(b", "regex:(?<=a)b", r"regex:(a)\1", "list:speaker", "column:"),
        *("face:0.4", "face<=", "face<=0", "face<=2", "face<=nan", "face>=0.4"),
    ],
)
def test_a_bad_choice_is_refused_at_once(group_by: str) -> None:
    with pytest.raises(ValueError, match="group_by: "):
        BuildConfig(group_by=group_by)


def test_no_pattern_takes_exponential_time() -> None:
    """Python's `re` would not end here."""
    assert group_names(["a" * 5000 + "!"], "regex:^(a+)+$", [""]) == [""]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"group_by: regex:zoe matches none of the 4 paths, such as ann/1/a\.mp4"):
        check_paths(PATHS, "regex:zoe", LISTED)
    check_paths(PATHS, "regex:ann", LISTED)
    check_paths(PATHS, "", LISTED)
    check_paths(PATHS, "face", [""] * 4)
    check_paths(PATHS, "column:who", LISTED)
    with pytest.raises(ValueError, match=r"column:who names a group for none of the 4 inputs; .* column path"):
        check_paths(PATHS, "column:who", [""] * 4)


def test_the_settings_change_no_older_hash() -> None:
    plain = BuildConfig()
    assert not {"group_by", "near_duplicates"} & plain.to_dict().keys()
    grouped = BuildConfig(group_by="folder", near_duplicates="reject")
    assert grouped.structure() == plain.structure(), "the same stored images"
    assert len({plain.hash(), grouped.hash(), BuildConfig(near_duplicates="keep").hash()}) == 3
    assert grouped.to_dict() == plain.to_dict() | {"group_by": "folder", "near_duplicates": "reject"}
    with pytest.raises(ValueError, match="near_duplicates: unknown 'drop'; choose from group, reject, keep"):
        BuildConfig(near_duplicates="drop")


def test_disjoint_sets() -> None:
    sets = DisjointSets(6)
    sets.join(4, 5)
    sets.join(5, 2)
    sets.join(3, 0)
    assert sets.firsts().tolist() == [0, 1, 2, 0, 2, 2]
    assert sets.sets() == [[0, 3], [1], [2, 4, 5]]


def test_a_group_is_on_one_side_whatever_else_there_is() -> None:
    videos = {f"v{i}": f"person {i % 40}" for i in range(120)}
    sides = split_videos(videos, 0.3)
    assert set(sides.values()) == {"train", "val"}
    for name in videos.values():
        assert len({sides[key] for key, group in videos.items() if group == name}) == 1
    assert all(sides[key] == ("val" if split_draw(name) < 0.3 else "train") for key, name in videos.items())
    some = {key: name for key, name in reversed(videos.items()) if key < "v3"}
    assert split_videos(some, 0.3) == {key: sides[key] for key in some}


def test_one_group_is_always_held_out_and_never_all() -> None:
    videos = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "c2": "c"}
    least, *_, most = sorted("abc", key=split_draw)
    assert {key[0] for key, side in split_videos(videos, 1e-9).items() if side == "val"} == {least}
    assert {key[0] for key, side in split_videos(videos, 1 - 1e-9).items() if side == "val"} == {"a", "b", "c"} - {
        least
    }
    assert split_videos(videos, split_draw(most))[f"{most}1"] == "train"
    assert set(split_videos({"x": "one", "y": "one"}, 0.99).values()) == {"train"}, "one group is for training"


def record(path: str, motion: int | None = None, status: str = "accepted") -> VideoRecord:
    """Videos of one `motion` are re-encodings of each other."""
    found = VideoRecord(inputs=[], path=path, status=status, sha256=f"sha {path}", video_id=f"id {path}", segments=1)
    found.rows = [SegmentRow("s", index=0, track=0, start_frame=0, num_frames=54, row_group=0, scores={})]
    if motion is not None:
        found.perceptual_hash = f"{STARTS[0]}:{motion:016x} {STARTS[1]}:{motion:016x}"
    return found


ONE, TWO = 0x0123456789ABCDEF, 0xFEDCBA9876543210


def groups(records: dict[str, VideoRecord], near_duplicates: str = "group", group_by: str = "") -> dict[str, str]:
    videos = pa.Table.from_pylist([ledger_row(*entry) for entry in records.items() if entry[1].is_accepted], SCHEMA)
    copies = re_encodings(videos) if near_duplicates == "group" else {}
    found = groups_of(videos, BuildConfig(group_by=group_by), copies)
    return dict.fromkeys(records, "") | dict(zip(videos["key"].to_pylist(), found, strict=True))


def test_groups_of_folders_and_of_copies_are_joined() -> None:
    records = {
        "1": record("a/x.mp4", ONE),
        "2": record("a/y.mp4"),
        "3": record("b/x.mp4", ONE),
        "4": record("b/z.mp4"),
        "5": record("c/x.mp4", TWO),
        "6": record("c/bad.mp4", TWO, status="rejected"),
    }
    records["6"].group = "of an earlier build"
    assert groups(records, group_by="folder") == {**dict.fromkeys("1234", "a"), "5": "c", "6": ""}
    assert groups(records, group_by="folder", near_duplicates="keep") == dict(zip("123456", "aabbc", strict=False)) | {
        "6": ""
    }
    sha = "sha a/x.mp4"
    assert groups(records) == {"1": sha, "2": "", "3": sha, "4": "", "5": "", "6": ""}, "the first one's draw"
    assert groups(records, near_duplicates="keep") == dict.fromkeys("123456", "")
    assert groups(records, group_by="regex:(b)/") == {"1": "b", "2": "", "3": "b", "4": "b", "5": "", "6": ""}


def test_one_face_is_one_group_with_its_copies_and_names() -> None:
    records = {name: record(f"{name}.mp4") for name in "abcde"}
    one, other, far = (np.eye(128)[n] for n in range(3))
    records["a"].faces = encode([one])
    records["b"].faces = encode([other])
    records["c"].faces = encode([0.9 * one, 0.8 * other])  # two people: theirs is one group
    records["d"].faces = encode([far])
    records["d"].perceptual_hash = records["e"].perceptual_hash = record("", ONE).perceptual_hash
    assert groups(records, group_by="face") == dict.fromkeys("abc", "sha a.mp4") | dict.fromkeys("de", "sha d.mp4")
    assert groups(records, group_by="face<=0.15") == {
        "a": "sha a.mp4", "b": "", "c": "sha a.mp4", "d": "sha d.mp4", "e": "sha d.mp4",
    }  # fmt: skip
    records["e"].listed = records["a"].listed = "who"
    assert groups(records, group_by="column:who") == {"a": "who", "b": "", "c": "", "d": "who", "e": "who"}


def test_a_copy_is_rejected_if_wished_and_its_record_stands(tmp_path: Path) -> None:
    store = video_records(tmp_path)
    for key, made in {"1": record("a.mp4", ONE), "2": record("b.mp4", ONE), "3": record("c.mp4", TWO)}.items():
        made.split = "train"
        store.write(key, made)
    settled = settle(tmp_path, BuildConfig(near_duplicates="reject", val_fraction=0.0), {})
    assert settled.videos["path"].to_pylist() == ["a.mp4", "c.mp4"]
    assert settled.re_encodings == {"2": "a.mp4"}
    rejected = store.read("2")
    assert rejected is not None
    assert rejected.is_accepted, "it is as it was"
    assert rejected.rows
    reject_re_encoding(rejected, "a.mp4")
    assert (rejected.status, rejected.reason, rejected.video_id, rejected.segments) == ("rejected", "duplicate", "", 0)
    assert rejected.detail.startswith("a re-encoding of a.mp4: ")
