"""The option `group_by`: what a video's path says about the group that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

FOLDER = "folder"
REGEX = "regex:"


def check_group_by(group_by: str) -> None:
    """Check the text of the option.

    Raises:
        ValueError: it is none of the choices, or the pattern cannot be used.
    """
    if group_by not in ("", FOLDER) and not (group_by.startswith(REGEX) and group_by != REGEX):
        raise ValueError(f"group_by: {group_by!r} must be {FOLDER} or {REGEX}PATTERN")
    group_names([""], group_by)


def group_names(paths: Sequence[str], group_by: str) -> list[str]:
    """Return the name of the group that each path belongs to.

    Args:
        paths: of videos, as in videos.parquet.
        group_by: empty; `folder`, the folder that the video is in; or `regex:PATTERN`, what the first capturing group
            of the pattern matches, or else the whole pattern, at its first match in the path.

    Returns:
        Names; "" for a video that stands alone: nothing is to be grouped, or the pattern does not match.

    Raises:
        ValueError: the pattern cannot be used.
    """
    if not group_by:
        return [""] * len(paths)
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


def check_paths(paths: Sequence[str], group_by: str) -> None:
    """Check before the work that the option groups any of the paths.

    Raises:
        ValueError: the pattern matches none of them.
    """
    if group_by and not any(group_names(paths, group_by)):
        raise ValueError(f"group_by: {group_by} matches none of the {len(paths)} paths, such as {paths[0]}")
