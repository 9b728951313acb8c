from typing import Any

import pytest

from lawdnet.settings import convert, parse_setting, unknown_key


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("seed=7", ("seed", 7)),
        (" stage.lr =1e-4", ("stage.lr", "1e-4")),
        ("where=a=b", ("where", "a=b")),
        ("names=[x, y]", ("names", ["x", "y"])),
        ("parent=null", ("parent", None)),
        ("empty=", ("empty", None)),
    ],
)
def test_a_setting_is_a_key_and_a_yaml_value(setting: str, wanted: tuple[str, Any]) -> None:
    assert parse_setting(setting) == wanted


@pytest.mark.parametrize(
    ("setting", "message"),
    [("seed", "--set 'seed': write key=value"), ("gap=[", r"--set gap: '\[' is not a YAML value; quotes")],
)
def test_what_is_no_setting_says_what_to_write(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_setting(setting)


@pytest.mark.parametrize(
    ("value", "wanted", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        (True, bool, True),
        ("x", str, "x"),
        ([1, "a"], tuple, ("1", "a")),
    ],
)
def test_values_take_the_type_of_their_field(value: Any, wanted: type, result: Any) -> None:
    found = convert("key", value, wanted)
    assert (found, type(found)) == (result, wanted)


@pytest.mark.parametrize(
    ("value", "wanted", "name"),
    [
        ("abc", int, "a whole number"),
        (1.5, int, "a whole number"),
        (True, int, "a whole number"),
        (True, float, "a number"),
        ("fast", float, "a number"),
        (None, float, "a number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        (3, tuple, "a list"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, wanted: type, name: str) -> None:
    with pytest.raises(ValueError, match=f"--set key: .* is not {name}$"):
        convert("key", value, wanted)


def test_an_unknown_key_suggests_the_closest() -> None:
    error = unknown_key("bach_size", ["seed", "batch_size"], "seed, batch_size")
    assert str(error) == "--set: unknown key 'bach_size' (did you mean batch_size?); valid are seed, batch_size"
    assert "did you mean" not in str(unknown_key("zzz", ["seed"], "seed"))
