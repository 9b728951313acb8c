import math
from typing import Any

import pyarrow as pa
import pytest

from lawdnet.data.rules import FunnelStep, apply_rules, parse_rule


def make_index(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    plain: dict[str, Any] = {
        "segment_id": [f"a-{i}" for i in range(rows)],
        "video_id": ["a"] * rows,
        "split": ["train"] * rows,
        "num_frames": pa.array([54] * rows, pa.int32()),
        "start_frame": pa.array(range(rows), pa.int64()),
        "track": pa.array([0] * rows, pa.int32()),
        "dropped": [""] * rows,
    }
    typed = {k: pa.array(v, pa.float32()) if k.startswith("score_") else v for k, v in columns.items()}
    return pa.table(plain | typed)


def dropped(index: pa.Table, *rules: str) -> list[str]:
    return list(apply_rules(index, [parse_rule(rule) for rule in rules])[0]["dropped"].to_pylist())


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("yaw>=2", [2, 3]),
        ("yaw <= 2", [-3, 2]),
        ("yaw>2", [3]),
        ("yaw<2", [-3]),
        ("yaw==2.0", [2]),
        ("yaw!=2", [-3, 3]),
        ("abs(yaw)>=3", [-3, 3]),
        (" abs( yaw ) < 2.5e0 ", [2]),
        ("yaw>-3 and yaw<3", [2]),
    ],
)
def test_operators(rule: str, kept: list[float]) -> None:
    values = [-3.0, 2.0, 3.0]
    marks = dropped(make_index(score_yaw=values), rule)
    assert [value for value, mark in zip(values, marks, strict=True) if not mark] == kept


@pytest.mark.parametrize("rule", ["yaw>=2", "abs(sync_offset)<=6 and split==val", "video_id!='a b'", "pitch<0.1"])
def test_the_text_of_a_rule_gives_the_same_rule(rule: str) -> None:
    assert str(parse_rule(rule)) == rule
    assert parse_rule(str(parse_rule(rule))) == parse_rule(rule)


def test_columns_of_the_index_are_names_too() -> None:
    index = make_index(num_frames=[54, 90, 288], split=["train", "val", "train"], video_id=["it's", "and b", "<c>"])
    assert dropped(index, "num_frames>=90") == ["num_frames>=90", "", ""]
    assert dropped(index, "split == val") == ["split==val", "", "split==val"]
    assert dropped(index, """video_id=="it's" """)[0] == ""
    assert dropped(index, "video_id!='and b' and video_id!='<c>'")[1:] == ["video_id!='and b' and video_id!='<c>'"] * 2


def test_a_row_carries_the_first_rule_it_falls_at_and_the_funnel_adds_up() -> None:
    index = make_index(score_yaw=[0, 50, 50, 0, 0], score_pitch=[0, 0, 50, 50, 0], dropped=["", "", "", "", "older"])
    marked, steps = apply_rules(index, [parse_rule("yaw<10"), parse_rule("pitch<10"), parse_rule("track==0")])
    assert marked["dropped"].to_pylist() == ["", "yaw<10", "yaw<10", "pitch<10", "older"]
    assert steps == [
        FunnelStep("", 0, 4),
        FunnelStep("yaw<10", 2, 2),
        FunnelStep("pitch<10", 1, 1),
        FunnelStep("track==0", 0, 1),
    ]
    assert marked.drop_columns("dropped").equals(index.drop_columns("dropped"))
    assert index["dropped"].to_pylist() == ["", "", "", "", "older"]


@pytest.mark.parametrize("rule", ["yaw>=0", "yaw<0", "yaw!=0", "abs(yaw)>=0"])
def test_what_was_not_measured_falls_and_is_counted(rule: str) -> None:
    marked, steps = apply_rules(make_index(score_yaw=[None, math.nan, None]), [parse_rule(rule)])
    assert marked["dropped"].to_pylist() == [rule] * 3
    assert steps[-1] == FunnelStep(rule, 3, 0, 3)


def test_not_measured_counts_only_what_this_rule_dropped() -> None:
    index = make_index(score_yaw=[None, 5, 5], score_pitch=[None, None, 5])
    steps = apply_rules(index, [parse_rule("yaw<10"), parse_rule("pitch<10 and yaw<10")])[1]
    assert [step.not_measured for step in steps] == [0, 1, 1]


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, 16_777_217.0])
def test_a_float32_equals_the_number_it_was_made_from(value: float) -> None:
    index = make_index(score_yaw=[value])
    assert dropped(index, f"yaw>={value}", f"yaw<={value}", f"yaw=={value}") == [""]
    assert dropped(index, f"yaw>{value}") != [""]


def test_an_index_without_rows_and_no_rules() -> None:
    marked, steps = apply_rules(make_index(score_yaw=[]), [parse_rule("yaw>1")])
    assert (len(marked), steps) == (0, [FunnelStep("", 0, 0), FunnelStep("yaw>1", 0, 0)])
    assert dropped(make_index(score_yaw=[1])) == [""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write NAME OP VALUE"),
        ("yaw", "write NAME OP VALUE"),
        ("yaw=3", "write NAME OP VALUE"),
        ("yaw>=", "write NAME OP VALUE"),
        ("abs(yaw>=3", "write NAME OP VALUE"),
        ("yaw>=3 or yaw<=5", "write NAME OP VALUE"),
        ("yaw>=3 and", "write NAME OP VALUE"),
        ("yaw>=3 4", "write NAME OP VALUE"),
        ("yaw=>3", "write NAME OP VALUE"),
        ("size>=3", "unknown name 'size'; choose from face_px, "),
        ("score_yaw>=3", "unknown name 'score_yaw'; choose from "),
        ("yaw>=wide", "'wide' is not a number"),
        ("yaw>=nan", "'nan' is not a number"),
        ("yaw>=inf", "'inf' is not a number"),
        ("split>val", "compare it with == or !="),
        ("abs(split)==val", "compare it with == or !="),
    ],
)
def test_a_rule_that_cannot_be_meant_is_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="rule ") as caught:
        parse_rule(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scores_of_the_caller_are_names_and_a_score_that_is_not_there_is_named() -> None:
    index = make_index(score_smile=[1.0])
    assert str(parse_rule("smile>0", ["smile"])) == "smile>0"
    with pytest.raises(ValueError, match=r"'yaw>0': yaw was not measured; choose from smile, num_frames"):
        apply_rules(index, [parse_rule("yaw>0")])
