"""`--set KEY=VALUE`: what the commands that take settings share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list"}


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML.

    Raises:
        ValueError: there is no `=`, or the value is not YAML.
    """
    key, sign, text = setting.partition("=")
    key = key.strip()
    if not sign:
        raise ValueError(f"--set {setting!r}: write key=value")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {key}: {text!r} is not a YAML value; quotes around it make it text") from None


def unknown_key(key: str, keys: Iterable[str], listing: str) -> ValueError:
    """The error for a key that does not exist.

    Args:
        keys: all valid keys; the closest one is suggested.
        listing: what to print after "valid are".
    """
    close = difflib.get_close_matches(key, list(keys), 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ValueError(f"--set: unknown key {key!r}{hint}; valid are {listing}")


def convert(key: str, value: Any, wanted: type) -> Any:
    """Convert a YAML value to the type of its field. YAML reads 1e-4 as text and 1 as a whole number.

    Raises:
        ValueError: the value does not fit.
    """
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif wanted is tuple and isinstance(value, list):
        return tuple(map(str, value))
    elif type(value) is wanted:
        return value
    raise ValueError(f"--set {key}: {value!r} is not {_NAMES[wanted]}")
