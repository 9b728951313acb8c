"""The option `group_by`: what says which group a video belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

FOLDER = "folder"
REGEX = "regex:"
COLUMN = "column:"
FACE = "face"
FACE_DISTANCE = 0.38
"""Largest distance of the face embeddings of one person, if the option names none; see docs/decisions.md."""


def check_group_by(group_by: str) -> None:
    """Check the text of the option.

    Raises:
        ValueError: it is none of the choices, or the pattern cannot be used.
    """
    is_open = group_by.startswith((REGEX, COLUMN)) and group_by not in (REGEX, COLUMN)
    if group_by not in ("", FOLDER) and not is_open and face_distance(group_by) is None:
        choices = f"{FOLDER}, {REGEX}PATTERN, {COLUMN}NAME, {FACE} or {FACE}<=DISTANCE"
        raise ValueError(f"group_by: {group_by!r} must be {choices}")
    group_names([""], group_by, [""])


def face_distance(group_by: str) -> float | None:
    """Return the largest distance of the embeddings of one person, if videos are grouped by faces.

    Raises:
        ValueError: the distance is not a number in (0, 1].
    """
    if group_by == FACE:
        return FACE_DISTANCE
    name, sign, number = group_by.partition("<=")
    if (name, sign) != (FACE, "<="):
        return None
    try:
        distance = float(number)
    except ValueError:
        distance = 0.0
    if not 0 < distance <= 1:
        raise ValueError(f"group_by: {group_by}: {number!r} must be a number in (0, 1]")
    return distance


def column_name(group_by: str) -> str:
    """Return the column of the list of inputs that names the groups; "" if none does."""
    return group_by.removeprefix(COLUMN) if group_by.startswith(COLUMN) else ""


def group_names(paths: Sequence[str], group_by: str, listed: Sequence[str]) -> list[str]:
    """Return the name of the group that each path belongs to.

    Args:
        paths: of videos, as in videos.parquet.
        group_by: empty; `folder`, the folder that the video is in; `regex:PATTERN`, what the first capturing group of
            the pattern matches, or else the whole pattern, at its first match in the path; `column:NAME`, what the list
            of inputs says in that column; or `face`, which has no names.
        listed: what the list of inputs says of each path.

    Returns:
        Names; "" for a video that stands alone: nothing is to be grouped, or the pattern does not match.

    Raises:
        ValueError: the pattern cannot be used.
    """
    if not group_by or face_distance(group_by):
        return [""] * len(paths)
    if column_name(group_by):
        return list(listed)
    if group_by == FOLDER:
        return [path.rpartition("/")[0] or "." for path in paths]
    try:
        return _first_matches(group_by.removeprefix(REGEX), paths)
    except pa.ArrowInvalid as error:
        hint = "the syntax is RE2's, without look-around and back-references"
        raise ValueError(f"group_by: {group_by}: {error}; {hint}") from None


def _first_matches(pattern: str, paths: Sequence[str]) -> list[str]:
    """Match with RE2, whose time is proportional to the length of a path; Python's `re` may take exponential time.

    Raises:
        pa.ArrowInvalid: the pattern cannot be used.
    """
    texts = pa.array(paths, pa.string())
    matched = pc.match_substring_regex(texts, pattern)  # alone first: within another pattern, `a)(b` would be valid
    try:
        pc.replace_substring_regex(pa.array([""]), pattern, r"\1")
    except pa.ArrowInvalid:  # the pattern captures nothing
        pattern = f"({pattern})"
    whole = rf"\A(?s:.*?)(?:{pattern})(?s:.*)\z"  # the shortest beginning leads to the first match
    return pc.if_else(matched, pc.replace_substring_regex(texts, whole, r"\1"), "").to_pylist()


def check_paths(paths: Sequence[str], group_by: str, listed: Sequence[str]) -> None:
    """Check before the work that the option groups any of the paths; the arguments are those of `group_names`.

    Raises:
        ValueError: the pattern matches none of them, or the list says nothing of them in that column.
    """
    if not group_by or face_distance(group_by) or any(group_names(paths, group_by, listed)):
        return
    if column_name(group_by):
        what = "the inputs must be a .csv or .parquet list that has the column, beside the column path"
        raise ValueError(f"group_by: {group_by} names a group for none of the {len(paths)} inputs; {what}")
    raise ValueError(f"group_by: {group_by} matches none of the {len(paths)} paths, such as {paths[0]}")
